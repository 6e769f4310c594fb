"""YOLO segmentation: labels/NAME.txt beside images/, and data.yaml, as Ultralytics and supervision read them."""

import yaml

from textregion.outputs.export.base import IMAGES, Dataset, DatasetImage, Files, register_exporter
from textregion.outputs.export.outlines import Ring, centre_rings

INTO_PIXEL = 0.25  # of a pixel: readers that round and readers that cut off then find the same pixel


@register_exporter("yolo")
def yolo(dataset: Dataset) -> Files:
    """A line per part of a mask: the label's place, then x y of its corners as shares of the width and height.

    A line is one closed path, so every part is an object of its own; a hole hangs on a seam within the part.
    """
    names = dict(enumerate(dataset.labels))
    content = {"train": IMAGES, "val": IMAGES, "names": names}
    yield "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()
    for image in dataset.images:
        yield f"labels/{image.stem}.txt", "".join(_lines(dataset, image)).encode()


def _lines(dataset: Dataset, image: DatasetImage) -> list[str]:
    lines = []
    for found in image.objects:
        for ring in centre_rings(found.mask):
            shares = (drawable(ring) + INTO_PIXEL) / (image.width, image.height)
            numbers = " ".join(f"{value:.7f}" for value in shares.ravel())
            lines.append(f"{dataset.label_id(found.label)} {numbers}\n")
    return lines


def drawable(ring: Ring) -> Ring:
    """The ring with at least the three corners that a polygon needs: of one pixel or a line the last is repeated."""
    return ring[[min(i, len(ring) - 1) for i in range(max(len(ring), 3))]]
