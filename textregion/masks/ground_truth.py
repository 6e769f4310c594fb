"""Label maps as regions: one mask per class, or per connected component (the paper's upper bound)."""

from dataclasses import dataclass, field
from os.path import isfile
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Integer
from PIL import Image, UnidentifiedImageError
from scipy import ndimage
from torch import nn

from textregion.config import option
from textregion.errors import InputError, one_of
from textregion.masks.base import Pixels, Size, SourceWithoutModel, register_mask_source
from textregion.types import RegionMasks

IGNORED = 255
PARTS = ("class", "component")
EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)


def read_label_map(path: str | Path) -> Int[np.ndarray, "H W"]:
    """A single-channel PNG (8 or 16 bits, or palette) as integers; InputError for anything else."""
    path = Path(path)
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
    masks: list[np.ndarray] = []
    owners: list[int] = []
    for label in (value for value in np.unique(label_map).tolist() if value != ignored):
        pieces = [label_map == label]
        if part == "component":
            numbered = np.zeros(label_map.shape, np.int32)
            ndimage.label(pieces[0], EIGHT_NEIGHBOURS, output=numbered)
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
            found = f"{labels.dtype} of shape {labels.shape}"
            raise InputError(f"got a label map of {found}, expected integers of shape (H, W)")
        self.label_map = labels.astype(np.int64)

    @classmethod
    def example(cls, sam2: nn.Module, image_size: Size) -> "GroundTruthMasks":
        """Two classes in bands of five rows."""
        return cls(np.arange(image_size[0] * image_size[1]).reshape(image_size) // (image_size[1] * 5) % 2)

    def generate(self, image: Pixels, image_size: Size | None = None, mask_size: Size | None = None) -> RegionMasks:
        """The map's regions, at the original image's size (`mask_size` does not apply to given masks).

        InputError when the map has another size than the image.
        """
        image_size = image_size or (image.shape[0], image.shape[1])
        if self.label_map.shape != tuple(image_size):
            raise InputError(f"got a label map of size {self.label_map.shape}, expected the image's {image_size}")
        masks, _ = label_masks(self.label_map, self.ignored, self.part)
        return RegionMasks.from_array(masks, image_size, self.device)
