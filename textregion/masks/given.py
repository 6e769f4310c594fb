"""Masks that are known before: label maps (the paper's upper bound), arrays, files with one of `SUFFIXES`."""

import io
import json
import lzma
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from os.path import isdir, isfile
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Integer, Shaped
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage
from torch import Tensor, nn

from textregion.config import option
from textregion.errors import InputError, first_line, one_of
from textregion.image_names import ListedImages, id_key
from textregion.mask_arrays import MOST_BYTES, check_bytes, same_aspect
from textregion.masks.base import Pixels, Size, SourceWithoutModel, register_mask_source, speed_option
from textregion.storage import reading
from textregion.types import RegionMasks

IGNORED = 255  # the value of "no class" in benchmark label maps; in masks that users give it is white, or a label
PARTS = ("class", "component")
FARTHEST = 4  # times the image's longer side: corners beyond are no pixels, and drawing their outline takes for ever
LONGEST_OUTLINE = 4_000_000  # pixels of a polygon: pycocotools keeps all of them in memory
MOST_PIXELS = 2**32  # of a run-length coded mask: COCO's run lengths have 32 bits
LONGEST_RUN = 7  # characters of five bits each
MOST_TOLD = 5  # broken annotations that a warning names
SUFFIXES = (".safetensors", ".npz", ".npy", ".json", ".png")


@contextmanager
def _opened_png(path: str | Path) -> Iterator[Image.Image]:
    """The PNG at a path, not yet decoded; InputError when it is none, or when the body cannot decode it."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            yield image
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a readable PNG; expected one whose pixel values are labels") from error


def _plane(image: Image.Image, path: str | Path) -> Shaped[np.ndarray, "H W"]:
    """The values of a picture of one channel; a palette's are the indices. InputError for colours."""
    if len(image.getbands()) != 1:
        raise InputError(
            f"{path} has {len(image.getbands())} channels, expected one channel whose values are labels: save it in "
            "grey or with a palette, ids that are coded as colours as their numbers"
        )
    return np.asarray(image)


def read_label_map(path: str | Path) -> Int[np.ndarray, "H W"]:
    """A single-channel PNG (1, 8 or 16 bits, or palette) as integers; InputError for anything else."""
    if not isfile(path):
        raise InputError(f"no label map at {path}; give the path of a PNG whose pixel values are labels")
    with _opened_png(path) as image:
        return _plane(image, path).astype(np.int64)


def label_masks(
    label_map: Integer[np.ndarray, "H W"], ignored: int | None = IGNORED, part: str = "class"
) -> tuple[Bool[np.ndarray, "R H W"], Int[np.ndarray, " R"]]:
    """Masks in the order of their labels, and the label of each.

    ignored: a value that belongs to no region (None: every value counts). part: "class" gives one mask per label,
    "component" one per 8-connected component of a label, in reading order of their first pixels.
    """
    masks, owners = [], []
    for label in (value for value in np.unique(label_map).tolist() if value != ignored):
        pieces = [label_map == label]
        if part == "component":
            numbered = np.zeros(label_map.shape, np.int32)
            ndimage.label(pieces[0], np.ones((3, 3), int), output=numbered)
            pieces = [numbered == n for n in range(1, numbered.max() + 1)]
        masks += pieces
        owners += [label] * len(pieces)
    stacked = np.stack(masks) if masks else np.zeros((0, *label_map.shape), bool)
    return stacked, np.array(owners, dtype=np.int64)


@register_mask_source("ground-truth", needs="a label map: array (H, W) of integers or the path of a PNG")
@dataclass(eq=False)
class GroundTruthMasks(SourceWithoutModel):
    """A benchmark's label map as mask source: (H, W) integers of the original image's size, or the path of such a PNG.

    Unlike masks that users give (`PrecomputedMasks`), every value but `ignored` is a region, also in a map of 0 and 1.
    """

    label_map: np.ndarray | str | Path = field(repr=False)
    part: str = option("class", "one region per class, or per connected component", choices=PARTS)
    ignored: int | None = option(IGNORED, "value that belongs to no region")

    def __post_init__(self) -> None:
        one_of("part", self.part, PARTS)
        given = self.label_map
        labels = read_label_map(given) if isinstance(given, (str, Path)) else np.asarray(given)
        if labels.ndim != 2 or labels.dtype.kind not in "iu":
            shape = labels.shape
            raise InputError(f"got a label map of {labels.dtype} of shape {shape}, expected integers of shape (H, W)")
        self.label_map = labels.astype(np.int64)

    @classmethod
    def example(cls, sam2: nn.Module, image_size: Size) -> "GroundTruthMasks":
        """Two classes in bands of five rows."""
        return cls(np.arange(image_size[0] * image_size[1]).reshape(image_size) // (image_size[1] * 5) % 2)

    def generate(self, image: Pixels, image_size: Size | None = None, mask_size: Size | None = None) -> RegionMasks:
        """The map's regions, at its own resolution; InputError when the map has another size than the image."""
        image_size = image_size or (image.shape[0], image.shape[1])
        if self.label_map.shape != tuple(image_size):
            raise InputError(f"got a label map of size {self.label_map.shape}, expected the image's {image_size}")
        masks = label_masks(self.label_map, self.ignored, self.part)[0]
        return RegionMasks.from_array(masks, image_size, self.device)


def mask_file(path: str | Path, name: str | Path | None) -> Path | None:
    """The file of masks of an image: the path itself, or of a folder the file of the image's name, of the first of
    SUFFIXES there is; None if there is none.
    """
    path = Path(path)
    if not isdir(path):
        return path if isfile(path) else None
    stems = dict.fromkeys([Path(name).name, Path(name).stem]) if name is not None else ()
    candidates = (path / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES)
    return next((candidate for candidate in candidates if isfile(candidate)), None)


def read_masks(path: str | Path, image_size: Size, name: str | Path | None = None) -> RegionMasks:
    """Masks of one image from a file, or from a folder that has one file per image.

    path: a file, or a folder with `<name>.png` and so on. image_size: (H, W) of the image. name: the image's path or
    file name, with or without ending; needed for a folder and for a COCO file of several images.

    PNG of one channel, `.npy`, and `.npz` with an array `masks` mean the same: `mask_arrays.mask_stack` has the rule,
    from a single mask or label map (H, W) to masks (R, H, W), of the image's size or of its aspect. In a PNG, white is
    the mask where there is only black and white, by value or by palette; any other palette's values are its indices.

    `.json` holds a list of COCO annotations or RLEs, or {"images": […], "annotations": […]}. Only the annotations of
    the image are read: it is found by `ListedImages.find`, and has no region if it has no annotation. A file without
    file names is of any image if it has a single image id or none; so is a file of one image in a folder, where it is
    named after the image. What was made for another size, as "width" and "height" of the images or the RLEs say, is
    scaled if the aspect is the same (`same_aspect`). Broken annotations and polygons are passed over with a warning
    that counts and names them.

    `.safetensors` is what `RegionMasks.save` wrote for an image of this size.

    Raises InputError: missing, unreadable, damaged, of another size, of other images, no annotation usable.
    """
    path, image_size, endings = Path(path), (image_size[0], image_size[1]), ", ".join(SUFFIXES)
    in_folder = isdir(path)
    if in_folder:
        if name is None:
            raise InputError(f"{path} is a folder of masks; the image needs a file name to find its own in it")
        found, stem = mask_file(path, name), Path(name).stem
        if found is None:
            raise InputError(f"no masks for {stem} in {path}; expected {stem} with one of {endings}")
        path = found
    if not isfile(path):
        raise InputError(f"no mask file at {path}; expected {endings} or a folder of such files")
    if path.suffix not in SUFFIXES:
        raise InputError(f"got the mask file {path}, expected one of {endings}")
    if path.suffix == ".safetensors":
        masks = RegionMasks.load(path)
        if masks.image_size != image_size:
            raise InputError(f"{path} holds masks of an image of size {masks.image_size}, expected {image_size}")
        return masks
    with reading(path):
        if path.suffix == ".json":
            return RegionMasks.from_array(_read_coco(path, image_size, name, in_folder), image_size)
        array = _read_png(path, image_size) if path.suffix == ".png" else _read_numpy(path)
        try:
            return RegionMasks.from_array(array, image_size)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _read_png(path: Path, image_size: Size) -> Shaped[np.ndarray, "H W"]:
    """Booleans of a picture in black and white, else the integers it holds."""
    with _opened_png(path) as image:
        size = (image.height, image.width)
        if not same_aspect(size, image_size):
            raise InputError(f"{path} has size {size}, expected the image's {image_size} or the same aspect")
        values = _plane(image, path)
        if image.mode != "P":
            return values
        palette = image.getpalette("RGB") or []
    colours, used = np.array(palette, np.uint8).reshape(-1, 3), np.unique(values)
    if (
        used[-1] < len(colours)
        and np.isin(colours, (0, 255))[used].all()
        and (np.ptp(colours[used], axis=1) == 0).all()
    ):
        return colours[values, 0] == 255
    return values


# ---------------------------------------------------------------------- arrays in files

NUMPY_ERRORS = (ValueError, TypeError, LookupError, SyntaxError, EOFError, MemoryError, ArithmeticError, RuntimeError)
NUMPY_ERRORS += (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError)


def _read_numpy(path: Path) -> Shaped[np.ndarray, "..."]:
    """The array of an .npy file, or `masks` of an .npz file; nothing is read before its header was checked."""
    try:
        with path.open("rb") as file:
            if path.suffix == ".npy":
                return _read_array(file, path, path.stat().st_size)
            with zipfile.ZipFile(file) as members:
                if "masks.npy" not in members.namelist():
                    raise InputError(f"{path} has no array named masks; save it with np.savez(path, masks=…)")
                info = members.getinfo("masks.npy")
                with members.open(info) as member:
                    return _read_array(member, path, info.file_size)
    except InputError:
        raise
    except NUMPY_ERRORS as error:
        raise InputError(f"{path} is not a readable array file; save it again with np.save or np.savez") from error


def _read_array(file: io.BufferedIOBase, path: Path, length: int) -> Shaped[np.ndarray, "..."]:
    """An array in numpy's format of `length` bytes with its header; ValueError and others when it is damaged."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version} of the format")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read_header(file)
    if dtype.kind not in "bifu" or dtype.itemsize > 8:
        raise InputError(f"{path} holds {str(dtype)[:60]}, expected booleans or numbers of at most 64 bits")
    count = math.prod(shape)
    if any(side < 0 for side in shape) or count * dtype.itemsize > min(MOST_BYTES, length):
        raise InputError(
            f"{path} claims an array of shape {str(shape)[:60]} of {dtype}, more than its {length} bytes or than "
            f"{MOST_BYTES >> 30} GiB; save it again, as booleans or at a lower resolution"
        )
    array = np.empty(count, dtype)
    if file.readinto(array.view(np.uint8)) != array.nbytes:
        raise EOFError("the array is cut off")
    return array.reshape(shape, order="F" if by_columns else "C")


# ---------------------------------------------------------------------- COCO masks


@dataclass(frozen=True)
class CocoMasks:
    """The annotations of a COCO file by image.

    images: those it lists; without an `images` part those that its annotations name. entries: of each image (key of
    `ListedImages.find`; ANY for a file that names no image) the annotations, each with what to call it in a message.
    sizes: (H, W) of the images whose width and height the file has. count: of all annotations. astray: how many name no
    image, or none that is listed.
    """

    images: ListedImages
    entries: dict[str, list[tuple[str, object]]]
    sizes: dict[str, Size]
    count: int
    astray: int


ANY = ""


class BrokenMaskError(ValueError):
    """An annotation that is no mask; the message says why."""


@lru_cache(maxsize=1)  # a batch of images reads the same file for every one
def _parse_coco(path: Path, modified: int, size: int) -> CocoMasks:
    """modified, size: of the file, so that a changed one is read again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not JSON ({first_line(error)}); expected COCO annotations with RLE masks"
        ) from error
    annotations = content.get("annotations") if isinstance(content, dict) else content
    rows = content.get("images") if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not isinstance(rows, (list, type(None))):
        raise InputError(f"{path} holds no list of annotations; expected COCO annotations with RLE masks")
    keys = [_image_key(annotation) for annotation in annotations]
    if not rows:
        named = [(key, row) for key, row in zip(keys, annotations, strict=True) if key is not None]
        rows = [{"id": key, "file_name": row.get("file_name")} for key, row in named]
    images = ListedImages(path, rows)
    sides = {id_key(row["id"]): _size([row.get("height"), row.get("width")]) for row in rows}
    sizes = {key: size for key, size in sides.items() if size is not None}
    entries: dict[str, list[tuple[str, object]]] = {key: [] for key in images.ids or [ANY]}
    only = next(iter(entries)) if len(entries) == 1 else None
    astray = 0
    for number, (key, annotation) in enumerate(zip(keys, annotations, strict=True)):
        own = annotation.get("id") if isinstance(annotation, dict) else None
        called = f"annotation {str(own)[:40]}" if isinstance(own, (int, float, str)) else f"entry {number}"
        key = only if key is None else key
        if key in entries:
            entries[key].append((called, annotation))
        else:
            astray += 1
    return CocoMasks(images, entries, sizes, len(annotations), astray)


def _image_key(annotation: object) -> str | None:
    """Which image an annotation names, as `ListedImages` has its key; None if it names none."""
    if not isinstance(annotation, dict):
        return None
    named = annotation.get("image_id")
    named = annotation.get("file_name") if named is None else named
    try:
        return None if named is None else id_key(named)
    except InputError:
        return None


def _read_coco(path: Path, image_size: Size, name: str | Path | None, own: bool = False) -> Bool[np.ndarray, "R H W"]:
    """The masks of one image of a file, at the image's size; see `read_masks`.

    own: the file is named after the image, so that a single image it lists is that one.
    """
    stamp = path.stat()
    coco = _parse_coco(path, stamp.st_mtime_ns, stamp.st_size)
    images, astray = coco.images, f"{coco.astray} of {coco.count} annotations name no image that the file lists"
    if 0 < coco.astray == coco.count:
        raise InputError(f"{path}: {astray}; expected the id of one of the images as image_id")
    if coco.astray:
        warnings.warn(f"{path}: {astray}; they are passed over", stacklevel=2)
    if len(coco.entries) == 1 and (own or name is None or not any(images.ids.values())):
        key = next(iter(coco.entries))
    elif name is None:
        raise InputError(f"{path} holds masks of {len(images.ids)} images; say of which one with its file name")
    else:
        key = images.find(name)
    entries = coco.entries[key]
    size = coco.sizes.get(key) or _size_of_runs(entries) or image_size
    of_image = f"{path}" if name is None else f"{path}, {Path(name).name}"
    if not same_aspect(size, image_size):
        raise InputError(
            f"{of_image}: has masks of an image of size {list(size)}, expected the image's {list(image_size)}"
        )
    check_bytes(len(entries), image_size, of_image)
    masks, broken = np.zeros((len(entries), *image_size), bool), []
    kept = 0
    for called, entry in entries:
        try:
            masks[kept], left_out = _coco_mask(entry, size, image_size)
        except InputError as error:
            raise InputError(f"{of_image}: {called} {error}") from error
        except BrokenMaskError as error:
            broken.append(f"{called} ({error})")
        else:
            broken += [f"{called} ({why})" for why in left_out]
            kept += 1
    told = ", ".join(broken[:MOST_TOLD]) + (f" and {len(broken) - MOST_TOLD} more" if len(broken) > MOST_TOLD else "")
    if broken and not kept:
        raise InputError(f"{of_image}: none of {len(entries)} annotations is a usable mask: {told}; export it again")
    if broken:
        warnings.warn(f"{of_image}: passed over {len(broken)} broken masks or polygons: {told}", stacklevel=2)
    return masks[:kept]


def _shape_of(entry: object) -> object:
    """What an annotation says of its mask, or the entry itself, which may be a mask."""
    return entry.get("segmentation", entry) if isinstance(entry, dict) else entry


def _size_of_runs(entries: Sequence[tuple[str, object]]) -> Size | None:
    """(H, W) of the first run-length coded mask."""
    shapes = [shape for _, entry in entries if isinstance(shape := _shape_of(entry), dict)]
    return next((size for shape in shapes if (size := _size(shape.get("size"))) is not None), None)


def _size(sides: object) -> Size | None:
    """[height, width] as JSON has it; None for anything else, and for more pixels than COCO's masks can have."""
    try:
        numbers = [float(side) for side in sides] if isinstance(sides, list) else []
    except (TypeError, ValueError, OverflowError):
        return None
    if len(numbers) != 2 or not all(number.is_integer() and number > 0 for number in numbers):
        return None
    height, width = map(int, numbers)
    return (height, width) if height * width <= MOST_PIXELS else None


def _coco_mask(entry: object, size: Size, image_size: Size) -> tuple[Bool[np.ndarray, "H W"], list[str]]:
    """One annotation at the image's size, and why some of its polygons were left out.

    size: for which the file was made. BrokenMaskError when nothing is left; InputError for runs of another image's
    aspect.
    """
    shape = _shape_of(entry)
    if isinstance(shape, dict) and "counts" in shape:
        return _mask_of_runs(shape, image_size), []
    if isinstance(shape, list):
        return _mask_of_polygons(shape, size, image_size)
    raise BrokenMaskError("no COCO mask; expected size and counts, or polygons")


def _mask_of_runs(rle: Mapping, image_size: Size) -> Bool[np.ndarray, "H W"]:
    """{"size": [H, W], "counts": compressed text or a list of run lengths}, column by column, first outside.

    One of another size is sampled at the centres of the image's pixels.
    """
    size, counts = _size(rle.get("size")), rle["counts"]
    if size is None:
        raise BrokenMaskError(f"the size {str(rle.get('size'))[:40]}; expected [height, width]")
    if not same_aspect(size, image_size):
        raise InputError(f"has a mask of size {list(size)}, expected the image's {list(image_size)} or its aspect")
    if not isinstance(counts, str) and not (isinstance(counts, list) and all(type(n) is int for n in counts)):
        raise BrokenMaskError("no COCO mask: counts that are neither text nor whole numbers")
    try:
        covered = pixels_covered(rle)
    except ValueError as error:
        raise BrokenMaskError(f"damaged: {error}") from error
    if covered != math.prod(size):
        raise BrokenMaskError("damaged: its runs do not add up to the image")
    (height, width), (h, w) = image_size, size
    if (h, w) == (height, width):
        checked = {"size": [h, w], "counts": counts}
        coded = checked if isinstance(counts, str) else coco_mask.frPyObjects(checked, h, w)
        return coco_mask.decode(coded).astype(bool)
    rows, columns = (np.arange(height) * 2 + 1) * h // (2 * height), (np.arange(width) * 2 + 1) * w // (2 * width)
    ends = np.cumsum(run_lengths(counts))
    return np.searchsorted(ends, columns[None] * h + rows[:, None], side="right") % 2 == 1


def pixels_covered(rle: Mapping) -> int:
    """Sum of the run lengths of a mask; ValueError as `run_lengths`."""
    return sum(run_lengths(rle["counts"]))


def run_lengths(counts: str | bytes | Sequence[int]) -> list[int]:
    """Lengths of runs outside and inside by turns, of plain numbers or of COCO's compressed text.

    The text has five bits a character; from the fourth number on it holds differences to the one before the last.
    ValueError for what is none. Takes time in proportion to the text.
    """
    if not isinstance(counts, (str, bytes)):
        if min(counts, default=0) < 0 or max(counts, default=0) > MOST_PIXELS:
            raise ValueError("its run lengths are negative or too long")
        return list(counts)
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        digit = character - 48
        if not 0 <= digit < 64:
            raise ValueError("its run lengths hold a foreign character")
        if shift == 5 * LONGEST_RUN:
            raise ValueError(f"a run length of more than {LONGEST_RUN} characters")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (1 << shift) if digit & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
            if not 0 <= runs[-1] <= MOST_PIXELS:
                raise ValueError("its run lengths are negative or too long")
    if shift:
        raise ValueError("its run lengths are cut off")
    return runs


def _mask_of_polygons(polygons: list, size: Size, image_size: Size) -> tuple[Bool[np.ndarray, "H W"], list[str]]:
    """[[x, y, x, y, x, y, …], …] in pixels of `size`, filled by pycocotools, which is given only what was checked."""
    scale = (image_size[1] / size[1], image_size[0] / size[0])
    good, left_out = [], []
    for polygon in polygons:
        why = fault_of_polygon(polygon, size, max(scale))
        if why:
            left_out.append(why)
        else:
            good.append([number * scale[i % 2] for i, number in enumerate(polygon)])
    if not good:
        raise BrokenMaskError(left_out[0] if left_out else "no mask: an empty segmentation")
    filled = coco_mask.frPyObjects(good, *image_size)
    while len(filled) > 1:  # in pairs: one after the other takes time with the square of their number
        filled = [coco_mask.merge(filled[i : i + 2]) for i in range(0, len(filled), 2)]
    return coco_mask.decode(filled[0]).astype(bool), left_out


def fault_of_polygon(polygon: object, size: Size, scale: float) -> str:
    """Why a polygon of an image of a size (H, W) cannot be filled, enlarged by `scale`; "" if it can be."""
    if not isinstance(polygon, list) or not all(type(number) in (int, float) for number in polygon):
        return "no COCO mask: a polygon that is no list of numbers"
    if len(polygon) % 2 or len(polygon) < 6:
        return f"a polygon of {len(polygon)} numbers; expected x, y of at least 3 corners"
    if not all(abs(number) <= FARTHEST * max(size) for number in polygon):
        return f"a polygon far outside the image of size {list(size)}; expected corners in pixels"
    corners = np.array(polygon, np.float64).reshape(-1, 2)
    outline = np.abs(np.diff(corners, axis=0, append=corners[:1])).max(1).sum() * scale
    if outline > LONGEST_OUTLINE:
        return f"a polygon whose outline is {outline:.0f} pixels long; expected at most {LONGEST_OUTLINE}"
    return ""


@register_mask_source("precomputed", needs="masks: array (R, h, w), RegionMasks, or the path of a file or folder")
@dataclass(eq=False)
class PrecomputedMasks(SourceWithoutModel):
    """Given masks as mask source.

    masks: an array (see `mask_arrays.mask_stack`), RegionMasks, a file, or a folder with one file per image (see
    `read_masks`). name: for a folder or a COCO file of several images, the path or file name of the image that comes
    next; may be set anew.
    """

    masks: np.ndarray | Tensor | RegionMasks | str | Path = field(repr=False)
    name: str | None = speed_option(None, "path or file name of the image")

    @classmethod
    def example(cls, sam2: nn.Module, image_size: Size) -> "PrecomputedMasks":
        """The whole image, and nothing."""
        return cls(np.stack([np.ones(image_size, bool), np.zeros(image_size, bool)]))

    def generate(self, image: Pixels, image_size: Size | None = None, mask_size: Size | None = None) -> RegionMasks:
        """The given masks, at their own resolution."""
        image_size = image_size or (image.shape[0], image.shape[1])
        if isinstance(self.masks, (str, Path)):
            return read_masks(self.masks, image_size, self.name).to(self.device)
        return RegionMasks.from_array(self.masks, image_size, self.device)
