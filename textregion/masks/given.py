"""Masks that are known before: label maps (the paper's upper bound), arrays, files with one of `SUFFIXES`."""

import json
import zipfile
from dataclasses import dataclass, field
from os.path import isdir, isfile
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Integer
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask
from scipy import ndimage
from torch import Tensor, nn

from textregion.config import option
from textregion.errors import InputError, first_line, one_of
from textregion.masks.base import Pixels, Size, SourceWithoutModel, register_mask_source, speed_option
from textregion.storage import reading
from textregion.types import RegionMasks

IGNORED = 255
PARTS = ("class", "component")
FARTHEST = 4  # times the image's longer side: corners beyond are no pixels, and drawing their outline takes for ever
SUFFIXES = (".safetensors", ".npz", ".npy", ".json", ".png")


def read_label_map(path: str | Path) -> Int[np.ndarray, "H W"]:
    """A single-channel PNG (8 or 16 bits, or palette) as integers; InputError for anything else."""
    if not isfile(path):
        raise InputError(f"no label map at {path}; give the path of a PNG whose pixel values are labels")
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a readable PNG; expected one whose pixel values are labels") from error
    if values.ndim != 2:
        raise InputError(f"{path} has {values.shape[-1]} channels, expected one channel whose values are labels")
    return values.astype(np.int64)


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
    """A known label map as mask source: (H, W) integers of the original image's size, or the path of such a PNG."""

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


def read_masks(path: str | Path, image_size: Size, name: str | None = None) -> RegionMasks:
    """Masks of one image from a file, or from a folder that has one file per image.

    path: a file, or a folder with `<name>.png` and so on. name: the image's file name without its ending.
    image_size: (H, W) of the image. Label maps and RLE must have this size; arrays (R, h, w) any.
    `.npz` files hold `masks`; `.json` files a list of COCO annotations or RLEs, or {"annotations": […]}.
    Raises InputError: missing, unreadable, damaged, of another size.
    """
    path, endings = Path(path), ", ".join(SUFFIXES)
    if isdir(path):
        if name is None:
            raise InputError(f"{path} is a folder of masks; the image needs a file name to find its own in it")
        found = [candidate for suffix in SUFFIXES if isfile(candidate := path / f"{name}{suffix}")]
        if not found:
            raise InputError(f"no masks for {name} in {path}; expected {name} with one of {endings}")
        path = found[0]
    if not isfile(path):
        raise InputError(f"no mask file at {path}; expected {endings} or a folder of such files")
    if path.suffix not in SUFFIXES:
        raise InputError(f"got the mask file {path}, expected one of {endings}")
    image_size = (image_size[0], image_size[1])
    if path.suffix == ".safetensors":
        masks = RegionMasks.load(path)
        if masks.image_size != image_size:
            raise InputError(f"{path} holds masks of an image of size {masks.image_size}, expected {image_size}")
        return masks
    with reading(path):
        if path.suffix == ".json":
            return RegionMasks.from_array(_read_json(path, image_size), image_size)
        if path.suffix != ".png":
            return RegionMasks.from_array(_read_numpy(path), image_size)
        label_map = read_label_map(path)
        if label_map.shape != image_size:
            raise InputError(f"{path} has size {label_map.shape}, expected the image's {image_size}")
        return RegionMasks.from_array(label_masks(label_map)[0], image_size)


def _read_numpy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            return content if path.suffix == ".npy" else content["masks"]
    except KeyError as error:
        raise InputError(f"{path} has no array named masks; save it with np.savez(path, masks=…)") from error
    except (ValueError, IndexError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a readable array file; save it again with np.save or np.savez") from error


def _read_json(path: Path, image_size: Size) -> Bool[np.ndarray, "R H W"]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); expected COCO annotations with RLE masks") from error
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise InputError(f"{path} holds no list of annotations; expected COCO annotations with RLE masks")
    masks = [_decode(entry, image_size, path) for entry in entries]
    return np.stack(masks) if masks else np.zeros((0, *image_size), bool)


def _decode(entry: object, image_size: Size, path: Path) -> Bool[np.ndarray, "H W"]:
    """One annotation: RLE with compressed or plain counts, or polygons."""
    shape = entry.get("segmentation", entry) if isinstance(entry, dict) else entry
    size = list(image_size)
    if not _is_rle(shape) and not _is_polygons(shape):
        raise InputError(f"{path} has an entry that is no COCO mask; expected size and counts, or polygons")
    if isinstance(shape, list) and not all(abs(n) <= FARTHEST * max(size) for polygon in shape for n in polygon):
        raise InputError(f"{path} has a polygon far outside the image of {size}, expected corners in pixels")
    if isinstance(shape, dict) and shape["size"] != size:
        raise InputError(f"{path} has a mask of size {shape['size']}, expected the image's {size}")
    try:
        compressed = isinstance(shape, dict) and isinstance(shape["counts"], str)
        rle = shape if compressed else coco_mask.frPyObjects(shape, *image_size)
        rle = coco_mask.merge(rle) if isinstance(rle, list) else rle
        if pixels_covered(rle) != image_size[0] * image_size[1]:
            raise ValueError("its runs do not add up to the image")
        return coco_mask.decode(rle).astype(bool)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path} has a damaged COCO mask ({first_line(error)}); export it again") from error


def pixels_covered(rle: dict) -> int:
    """Sum of the run lengths, in COCO's compressed text: five bits a character, from the second on differences."""
    text = rle["counts"].encode() if isinstance(rle["counts"], str) else rle["counts"]
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = character - 48
        value |= (digit & 31) << shift
        shift += 5
        if not 0 <= digit < 64:
            raise ValueError("its run lengths hold a foreign character")
        if not digit & 32:
            value -= (1 << shift) if digit & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift or min(runs, default=0) < 0:
        raise ValueError("its run lengths are cut off or negative")
    return sum(runs)


def _is_rle(shape: object) -> bool:
    """{"size": [H, W], "counts": compressed text or a list of run lengths}."""
    if not isinstance(shape, dict) or not isinstance(shape.get("size"), list):
        return False
    counts = shape.get("counts")
    return isinstance(counts, str) or (isinstance(counts, list) and all(type(n) is int for n in counts))


def _is_polygons(shape: object) -> bool:
    """[[x, y, x, y, x, y, …], …] of at least three corners each."""
    return (isinstance(shape, list) and len(shape) > 0) and all(
        isinstance(polygon, list) and len(polygon) >= 6 and all(isinstance(n, (int, float)) for n in polygon)
        for polygon in shape
    )


@register_mask_source("precomputed", needs="masks: array (R, h, w), RegionMasks, or the path of a file or folder")
@dataclass(eq=False)
class PrecomputedMasks(SourceWithoutModel):
    """Given masks as mask source.

    masks: array (R, h, w), RegionMasks, a file, or a folder with one file per image; see `read_masks`.
    name: for a folder, the file name (without ending) of the image that comes next; may be set anew.
    """

    masks: np.ndarray | Tensor | RegionMasks | str | Path = field(repr=False)
    name: str | None = speed_option(None, "of the image, without its ending")

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
