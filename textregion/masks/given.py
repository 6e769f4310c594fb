"""Masks that are known before: label maps (the paper's upper bound), arrays, files with one of `SUFFIXES`."""

import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, field
from os.path import isdir, isfile
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Integer, Shaped
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from textregion.config import option
from textregion.errors import InputError, one_of
from textregion.images import open_image
from textregion.mask_arrays import MOST_BYTES, same_aspect
from textregion.masks.base import Pixels, Size, SourceWithoutModel, register_mask_source, speed_option
from textregion.masks.coco_masks import read_coco
from textregion.storage import reading
from textregion.types import RegionMasks

GROUND_TRUTH = "ground-truth"
IGNORED = 255  # the value of "no class" in benchmark label maps; in masks that users give it is white, or a label
PARTS = ("class", "component")
SUFFIXES = (".safetensors", ".npz", ".npy", ".json", ".png")


def _open_png(path: str | Path) -> Image.Image:
    """The PNG at a path, decoded within the bounds of images; InputError when it is none."""
    image = open_image(path)
    if image.format != "PNG":
        raise InputError(f"{path} is not a PNG but {image.format}; expected one whose pixel values are labels")
    return image


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
    return _plane(_open_png(path), path).astype(np.int64)


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


@register_mask_source(GROUND_TRUTH, needs="a label map: array (H, W) of integers or the path of a PNG")
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
            return RegionMasks.from_array(read_coco(path, image_size, name, in_folder), image_size)
        array = _read_png(path, image_size) if path.suffix == ".png" else _read_numpy(path)
        try:
            return RegionMasks.from_array(array, image_size)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _read_png(path: Path, image_size: Size) -> Shaped[np.ndarray, "H W"]:
    """Booleans of a picture in black and white, else the integers it holds."""
    image = _open_png(path)
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
