"""COCO masks: the annotations of one image of a file, as run lengths or polygons, at the image's size.

Nothing reaches pycocotools that was not checked: it crashes on runs and outlines that do not fit.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

from textregion.errors import InputError
from textregion.image_names import ListedImages, id_key
from textregion.mask_arrays import check_bytes, same_aspect
from textregion.masks.base import Size
from textregion.storage import read_json

FARTHEST = 4  # times the image's longer side: corners beyond are no pixels, and drawing their outline takes for ever
LONGEST_OUTLINE = 4_000_000  # pixels of a polygon: pycocotools keeps all of them in memory
MOST_PIXELS = 2**32  # of a run-length coded mask: COCO's run lengths have 32 bits
LONGEST_RUN = 7  # characters of five bits each
MOST_TOLD = 5  # broken annotations that a warning names


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
    content = read_json(path, "COCO annotations with RLE masks")
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


def read_coco(path: Path, image_size: Size, name: str | Path | None, own: bool = False) -> Bool[np.ndarray, "R H W"]:
    """The masks of one image of a COCO file, at the image's size (H, W); `given.read_masks` says which and when scaled.

    own: the file is named after the image, so that a single image it lists is that one. InputError: unreadable, of
    other images or another aspect, no annotation usable; some broken ones are a warning. Memory: R H W bytes, bounded.
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
