"""The annotations of LVIS v1 (or of COCO): names, images, objects, and what is known to be absent (method 3.5)."""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from eval.skipped import Skipped
from textregion.errors import InputError

FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}


@dataclass(frozen=True)
class Category:
    """A name. frequency: "r", "c" or "f", by training images; None where the file does not say (COCO)."""

    id: int
    name: str
    frequency: str | None


@dataclass(frozen=True)
class ImageEntry:
    """An image. paths: where it may lie below the image root. size: (H, W) in pixels, the frame of its boxes.

    negative, not_exhaustive: ids of the categories known to be absent, and of those not annotated exhaustively.
    """

    id: int
    paths: tuple[str, ...]
    size: tuple[int, int]
    negative: Collection[int]
    not_exhaustive: Collection[int]

    def find(self, root: Path) -> Path:
        """The first of the paths that is there; else the first, for the message that it is not."""
        return next((root / path for path in self.paths if (root / path).is_file()), root / self.paths[0])


@dataclass
class Truth:
    """What was read. categories: sorted by id, a name's index is its place here. objects: annotations that count.

    digest: hash of the file. skipped: annotations that could not be used.
    """

    categories: tuple[Category, ...]
    images: dict[int, ImageEntry]
    objects: list[dict]
    digest: str
    skipped: list[Skipped] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.index = {category.id: index for index, category in enumerate(self.categories)}

    @cached_property
    def has_masks(self) -> bool:
        """Whether every object has a mask, so that mask AP can be told."""
        return all(thing.get("segmentation") for thing in self.objects)

    @cached_property
    def objects_of(self) -> dict[int, list[dict]]:
        """The objects by image id; images without any have no entry."""
        found: dict[int, list[dict]] = {}
        for thing in self.objects:
            found.setdefault(thing["image_id"], []).append(thing)
        return found

    def dataset(self, image_ids: Collection[int]) -> dict:
        """A fresh LVIS data set of some of the images, for the `lvis` package, which writes into what it is given."""
        return {
            "images": [_lvis_image(self.images[number]) for number in image_ids],
            "annotations": [dict(thing) for number in image_ids for thing in self.objects_of.get(number, ())],
            # the package knows no category without a frequency; groups without categories are left out of its figures
            "categories": [{"id": one.id, "frequency": one.frequency or "f"} for one in self.categories],
        }


def _lvis_image(image: ImageEntry) -> dict:
    height, width = image.size
    federated = {"neg_category_ids": image.negative, "not_exhaustive_category_ids": image.not_exhaustive}
    return {"id": image.id, "height": height, "width": width, **federated}


def file_digest(path: Path) -> str:
    """Short hash of a file's bytes, by which settings know it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_truth(path: Path) -> Truth:
    """Annotations from disk. InputError when the file is missing or no LVIS or COCO json, or a name is missing.

    Odd annotations (unknown image or category, no box) are `skipped`. Images of COCO, which do not tell what is
    absent, count as annotated exhaustively; its crowds are neither asked about nor held against anybody.
    """
    if not path.is_file():
        raise InputError(f"no annotations at {path}; give LVIS's json, say lvis_v1_val.json")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # of which UnicodeDecodeError and JSONDecodeError are kinds
        raise InputError(f"{path} is not a JSON file ({error}); give LVIS's json, say lvis_v1_val.json") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path} is not an LVIS or COCO json: it has no list {key!r}")
    categories = _categories(path, content["categories"])
    numbers = [category.id for category in categories]
    try:
        images = [_image(row, numbers) for row in content["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not an LVIS or COCO json: an image lacks or garbles a field ({type(error).__name__}: {error})"
        ) from error
    if not images:
        raise InputError(f"{path} has no images; expected LVIS or COCO annotations of some")
    truth = Truth(categories, {image.id: image for image in images}, [], file_digest(path))
    for place, row in enumerate(content["annotations"], start=1):
        _add_object(truth, place, row)
    return truth


def _categories(path: Path, rows: Sequence[Mapping]) -> tuple[Category, ...]:
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("id"), int):
            raise InputError(f"{path} is not an LVIS or COCO json: got the category {row!r}, expected one with an id")
        if not isinstance(row.get("name"), str) or not row["name"].strip():
            raise InputError(f"category {row['id']} of {path} has no name; boxes can only be told apart by names")
        if row.get("frequency") not in (None, *FREQUENCIES):
            raise InputError(f"category {row['id']} of {path} has frequency {row['frequency']!r}, expected r, c or f")
    if not rows or len({row["id"] for row in rows}) < len(rows):
        raise InputError(f"{path} has {len(rows)} categories, expected at least one, each with an id of its own")
    return tuple(Category(row["id"], row["name"], row.get("frequency")) for row in sorted(rows, key=lambda r: r["id"]))


def _image(row: Mapping, every_category: Sequence[int]) -> ImageEntry:
    present_only = "neg_category_ids" not in row  # COCO
    return ImageEntry(
        int(row["id"]),
        image_paths(row),
        (int(row["height"]), int(row["width"])),
        every_category if present_only else [int(number) for number in row["neg_category_ids"]],
        [int(number) for number in row.get("not_exhaustive_category_ids", ())],
    )


def image_paths(row: Mapping) -> tuple[str, ...]:
    """Where an image may lie: its file_name, then the last two parts of its coco_url (train2017/000….jpg), then
    its bare name. KeyError when it has neither.
    """
    named = [row["file_name"]] if row.get("file_name") else []
    if not named or row.get("coco_url"):
        named.append("/".join(PurePosixPath(row["coco_url"]).parts[-2:]))
    return tuple(dict.fromkeys([*named, PurePosixPath(named[-1]).name]))


def _add_object(truth: Truth, place: int, row: Mapping) -> None:
    """Keep one annotation in the form the `lvis` package reads (ids from 1 on: its 0 means "none")."""
    row = row if isinstance(row, dict) else {}
    name = f"annotation {row.get('id', f'number {place}')}"
    image, category = row.get("image_id"), row.get("category_id")
    if not isinstance(image, int) or image not in truth.images:
        truth.skipped.append(Skipped(name, "unknown image id", f"image {image!r} is not among the images"))
    elif not isinstance(category, int) or category not in truth.index:
        truth.skipped.append(Skipped(name, "unknown category id", f"{category!r} is not among the categories"))
    elif (box := four_numbers(row.get("bbox"))) is None:
        truth.skipped.append(Skipped(name, "no box", f"got {row.get('bbox')!r}, expected x, y, width, height"))
    else:
        kept = {key: row[key] for key in ("image_id", "category_id", "segmentation") if key in row}
        kept |= {"id": place, "bbox": list(box), "area": row.get("area", box[2] * box[3])}
        truth.objects.append({**kept, "ignore": int(row.get("iscrowd", 0))})


def four_numbers(value: object) -> tuple[float, float, float, float] | None:
    """Four finite numbers as floats, or None for anything else."""
    try:
        a, b, c, d = (float(number) for number in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return None
    return (a, b, c, d) if all(map(math.isfinite, (a, b, c, d))) else None
