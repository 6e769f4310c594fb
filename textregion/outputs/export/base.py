"""What a data set is before it is written: images with labelled masks; and the registry of the formats.

A format is a function from a `Dataset` to (path below the data set's folder, content of the file), registered under its
name. Images lie in `images/` and are there already.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from textregion.render import from_rle

Files = Iterator[tuple[str, bytes]]
IMAGES = "images"


@dataclass(frozen=True)
class LabelledObject:
    """One mask with its label.

    rle: COCO's compressed run lengths at the image's size. area: pixels. box: x, y, width, height in pixels. score:
    probability of the label, a mean where the mask is all of a label's pixels. region: its index, None for a label's
    pixels.
    """

    label: str
    score: float
    rle: dict
    area: int
    box: tuple[int, int, int, int]
    region: int | None = None

    @property
    def mask(self) -> Bool[np.ndarray, "H W"]:
        """Where it is."""
        return from_rle(self.rle)


@dataclass(frozen=True)
class DatasetImage:
    """One image and what is on it.

    id: its place in the run, from 1 on, also where others failed. name: of its file in `images/`; its stem is no other
    image's. width, height: pixels. objects: in a fixed order. transform: of a georeferenced image (a, b, c, d, e, f),
    X = a x + b y + c and Y = d x + e y + f at the pixel's corner (x, y). crs: what its coordinates are, as EPSG:32633.
    """

    id: int
    name: str
    width: int
    height: int
    objects: Sequence[LabelledObject]
    transform: tuple[float, float, float, float, float, float] | None = None
    crs: str = ""

    def __repr__(self) -> str:
        return f"DatasetImage({self.name}, {self.width} x {self.height} pixels, {len(self.objects)} objects)"

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Dataset:
    """labels: all names in the order asked for; their places are the ids. note: what is to be said of all results."""

    labels: tuple[str, ...]
    images: Sequence[DatasetImage]
    note: str = ""

    def __repr__(self) -> str:
        return f"Dataset({len(self.images)} images, {len(self.labels)} labels)"

    def label_id(self, name: str) -> int:
        """Its place among the labels, from 0 on."""
        return self.labels.index(name)


EXPORTERS: dict[str, Callable[[Dataset], Files]] = {}


def register_exporter(name: str) -> Callable:
    """Decorator: the function writes the format of this name."""

    def register(function: Callable[[Dataset], Files]) -> Callable[[Dataset], Files]:
        EXPORTERS[name] = function
        return function

    return register
