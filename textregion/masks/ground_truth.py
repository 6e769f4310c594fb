"""Label maps as regions: one mask per class, or per connected component (the paper's upper bound)."""

from os.path import isfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer, UInt8
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from textregion.errors import InputError
from textregion.masks.registry import register
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

    ignored: a value that is nobody's (None: every value counts). part: "class" gives one mask per label,
    "component" one per 8-connected component of a label, in reading order of their first pixels.
    """
    labels = [value for value in np.unique(label_map).tolist() if value != ignored]
    masks: list[np.ndarray] = []
    owners: list[int] = []
    for label in labels:
        whole = label_map == label
        if part == "class":
            pieces = [whole]
        else:
            numbered = np.zeros(whole.shape, np.int32)
            ndimage.label(whole, EIGHT_NEIGHBOURS, output=numbered)
            pieces = [numbered == n for n in range(1, numbered.max() + 1)]
        masks += pieces
        owners += [label] * len(pieces)
    stacked = np.stack(masks) if masks else np.zeros((0, *label_map.shape), bool)
    return stacked, np.array(owners, dtype=np.int64)


@register("ground-truth", needs="a label map: array (H, W) of integers or the path of a PNG")
class GroundTruthMasks:
    """A known label map as mask source.

    label_map: (H, W) integers of the original image's size, or the path of such a PNG.
    part: "class" or "component". ignored: value that belongs to no region.
    """

    def __init__(self, label_map: np.ndarray | str | Path, part: str = "class", ignored: int | None = IGNORED) -> None:
        if part not in PARTS:
            raise InputError(f"got part {part!r}, expected one of {', '.join(PARTS)}")
        if isinstance(label_map, (str, Path)):
            label_map = read_label_map(label_map)
        label_map = np.asarray(label_map)
        if label_map.ndim != 2 or label_map.dtype.kind not in "iu":
            found = f"{label_map.dtype} of shape {label_map.shape}"
            raise InputError(f"got a label map of {found}, expected integers of shape (H, W)")
        self.label_map = label_map.astype(np.int64)
        self.part = part
        self.ignored = ignored
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> "GroundTruthMasks":
        """Where the masks shall be made; returns self."""
        self.device = torch.device(device)
        return self

    def generate(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        image_size: tuple[int, int] | None = None,
        mask_size: tuple[int, int] | None = None,
    ) -> RegionMasks:
        """The map's regions, at the original image's size (`mask_size` does not apply to given masks).

        InputError when the map has another size than the image.
        """
        image_size = image_size or (image.shape[0], image.shape[1])
        if self.label_map.shape != tuple(image_size):
            raise InputError(f"got a label map of size {self.label_map.shape}, expected the image's {image_size}")
        masks, _ = label_masks(self.label_map, self.ignored, self.part)
        return RegionMasks.from_array(masks, image_size, self.device)
