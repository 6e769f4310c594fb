"""Boxes with names to train on: any COCO-format file (Objects365, V3Det, OpenImages, LVIS, COCO, the tiny world).

Only boxes and categories are read; masks stay unread. What cannot be used is counted, not raised: a file of millions
of boxes has some of everything.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from textregion.errors import InputError

EXPECTED = "a COCO-format file with images, annotations and categories"
CROWD_FLAGS = ("iscrowd", "is_group_of")  # boxes around many things at once (COCO, Objects365; OpenImages)


@dataclass(frozen=True)
class BoxImage:
    """One image's boxes. id: as in the file. file: its name there, relative to the images' folder.

    boxes: (n, 4) float32, x1 y1 x2 y2 in pixels, inside the image; n is at least 1. category_ids: (n,) as in the file.
    labels: (n,) places of the boxes' names in the data set's `names`.
    """

    id: int | str
    file: str
    boxes: Float32[np.ndarray, "n 4"]
    category_ids: Int64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class BoxDataset:
    """A data set: what its boxes can be called, its images, and how much of the file was passed over, and why."""

    name: str
    folder: Path
    names: tuple[str, ...]
    images: tuple[BoxImage, ...]
    skipped: Counter[str]

    def __len__(self) -> int:
        return len(self.images)

    def path(self, image: BoxImage) -> Path:
        """Where an image lies: the longest ending of its name that exists in the folder. InputError when none does.

        So "images/v1/patch8/7.jpg" (Objects365) is found in a folder that holds patch8/, or the image itself.
        """
        parts = PurePosixPath(image.file).parts
        places = [self.folder.joinpath(*parts[start:]) for start in range(len(parts))]
        for place in places:
            if place.is_file():
                return place
        raise InputError(f"{self.name}: no image {places[0]}, nor an ending of that name in {self.folder}")

    def describe(self) -> str:
        """One line: how many images, boxes and names there are, and what was passed over."""
        boxes = sum(len(image.labels) for image in self.images)
        counted = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common())
        line = f"{self.name}: {boxes} boxes in {len(self)} images, {len(self.names)} names"
        return f"{line}; passed over: {counted}" if counted else line


def read_dataset(name: str, annotations: str | Path, folder: str | Path, merge_names: bool = True) -> BoxDataset:
    """Read a COCO-format file. Names are the categories' own, in the order of their ids (RegionSpot 2.4).

    folder: where the images lie. merge_names: categories with the same name become one class; as published (False)
        each is a class of its own, and so a negative of its twin (RegionSpot 4, D8).
    Passed over and counted: crowds, boxes without numbers, without area or outside their image (those partly outside
    are cut to it), annotations of unknown images or categories, images without a box left.
    InputError in one line: missing or other file, no categories, nameless ones or repeated ids, no usable box at all.
    """
    path, folder = Path(annotations), Path(folder)
    if not folder.is_dir():
        raise InputError(f"{name}: no folder {folder}; expected the one with the images of {path}")
    content = _read_json(path)
    classes, names, skipped = _classes(path, content["categories"], merge_names)
    sizes = _images(path, content["images"])
    boxes: dict[Any, list[tuple[float, ...]]] = {}
    categories: dict[Any, list[int]] = {}
    for row in content["annotations"]:
        found = _box(row, sizes, classes)
        if isinstance(found, str):
            skipped[found] += 1
        else:
            boxes.setdefault(row["image_id"], []).append(found)
            categories.setdefault(row["image_id"], []).append(row["category_id"])
    images = tuple(
        BoxImage(
            number,
            sizes[number][0],
            np.array(boxes[number], np.float32),
            np.array(categories[number], np.int64),
            np.array([classes[category] for category in categories[number]], np.int64),
        )
        for number in sizes
        if number in boxes
    )
    if len(images) < len(sizes):
        skipped["images without boxes"] = len(sizes) - len(images)
    dataset = BoxDataset(name, folder, names, images, skipped)
    if not images:
        raise InputError(f"{path} has no usable box ({dataset.describe()}); expected {EXPECTED}")
    return dataset


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"no file {path}; expected {EXPECTED}")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); expected {EXPECTED}") from error
    for key in ("images", "annotations", "categories"):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{path} has no list of {key}; expected {EXPECTED}")
    return content


def _classes(
    path: Path, rows: Sequence[Mapping[str, Any]], merge: bool
) -> tuple[dict[Any, int], tuple[str, ...], Counter[str]]:
    """({category id: class}, names of the classes, {"categories of an equal name merged": how many})."""
    if not rows or len({row.get("id") for row in rows}) < len(rows):
        raise InputError(f"{path} has {len(rows)} categories, expected at least one, each with an id of its own")
    for row in rows:
        if not isinstance(row.get("id"), int) or not isinstance(row.get("name"), str) or not row["name"].strip():
            raise InputError(f"{path} has the category {row!r}, expected a whole number as id and a name")
    named = {row["id"]: row["name"].strip() for row in sorted(rows, key=lambda row: row["id"])}
    if not merge:
        return {number: place for place, number in enumerate(named)}, tuple(named.values()), Counter()
    names = tuple(dict.fromkeys(named.values()))
    places = {name: place for place, name in enumerate(names)}
    merged = {"categories merged into one of equal name": len(named) - len(names)}
    return {number: places[name] for number, name in named.items()}, names, +Counter(merged)


def _images(path: Path, rows: Iterable[Mapping[str, Any]]) -> dict[Any, tuple[str, float, float]]:
    """{image id: (file name, height, width)}; the name is the end of `coco_url` where there is no `file_name`."""
    found = {}
    for row in rows:
        file = row.get("file_name") or "/".join(PurePosixPath(str(row.get("coco_url", ""))).parts[-2:])
        size = [row.get(side) for side in ("height", "width")]
        if row.get("id") is None or not file or not all(isinstance(side, (int, float)) and side > 0 for side in size):
            raise InputError(
                f"{path} has the image {row!r}, expected id, height, width and file_name or coco_url"[:400]
            )
        found[row["id"]] = (str(file), *size)
    return found


def _box(
    row: Mapping[str, Any], sizes: Mapping[Any, tuple[str, float, float]], classes: Mapping[Any, int]
) -> tuple[float, ...] | str:
    """x1 y1 x2 y2 within the image, or why the annotation cannot be used."""
    if not _known(row.get("image_id"), sizes):
        return "annotations of unknown images"
    if not _known(row.get("category_id"), classes):
        return "boxes of unknown categories"
    if any(row.get(flag) for flag in CROWD_FLAGS):
        return "crowds"
    try:
        x, y, width, height = map(float, row["bbox"])
    except (KeyError, TypeError, ValueError):
        return "boxes without four numbers"
    if not all(map(math.isfinite, (x, y, width, height))):
        return "boxes without four numbers"
    if width <= 0 or height <= 0:
        return "boxes without area"
    _, tall, wide = sizes[row["image_id"]]
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + width, wide), min(y + height, tall)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else "boxes outside their image"


def _known(number: Any, numbers: Mapping[Any, Any]) -> bool:
    return isinstance(number, (int, str)) and number in numbers
