"""Annotations of LVIS v1 (or COCO), the boxes to be named (method 3.1, 3.5), and average precision as LVIS counts it.

The boxes are the annotations' or a detector's. The counting is done by the `lvis` package (0.5.3), on a numpy that it
does not know yet.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import ModuleType
from unittest.mock import patch

import numpy as np

from eval.results import SCORED, Skipped
from textregion.boxes import ANY_IMAGE
from textregion.boxes import read_boxes as read_boxes_file
from textregion.errors import InputError, needs
from textregion.image_names import ListedImages, id_key, whole_id
from textregion.masks.coco_masks import MOST_PIXELS, fault_of_polygon, run_lengths
from textregion.storage import file_hash, read_json

Box = tuple[float, float, float, float]
ANNOTATED = "gt"
EXPECTED = "LVIS or COCO annotations, say lvis_v1_val.json"
COUNTED_ONCE = "counted once"
TOLERANCE = 1.0  # pixels over the image's edge that are rounding, and not told
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
KINDS = {"box": "bbox", "mask": "segm"}


@dataclass(frozen=True)
class Category:
    """A name. frequency: "r", "c" or "f", by training images; None where the file does not say (COCO)."""

    id: int
    name: str
    frequency: str | None


@dataclass(frozen=True)
class ImageEntry:
    """An image, as LVIS tells of it. paths: where it may lie below the image root. height, width: in pixels.

    neg_category_ids: known to be absent. not_exhaustive_category_ids: not every object of these is annotated.
    """

    id: int
    paths: tuple[str, ...]
    height: int
    width: int
    neg_category_ids: Collection[int]
    not_exhaustive_category_ids: Collection[int]

    def find(self, root: Path) -> Path:
        """The first of the paths that is there; else the first, for the message that it is not."""
        return next((root / path for path in self.paths if (root / path).is_file()), root / self.paths[0])


@dataclass
class Annotations:
    """What was read. categories: sorted by id, a name's index is its place here. objects: those that count.

    digest: short hash of the file. skipped: annotations that could not be used.
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
        found = defaultdict(list)
        for thing in self.objects:
            found[thing["image_id"]].append(thing)
        return dict(found)


def read_annotations(path: Path) -> Annotations:
    """Annotations from disk. InputError when the file is missing or no LVIS or COCO json, or a name is missing.

    Ids may be numbers or their text. Odd annotations (unknown image or category, no box, there twice) are `skipped`.
    Images of COCO, which do not tell what is absent, count as annotated exhaustively; its crowds are neither asked
    about nor counted.
    """
    content = read_json(path, EXPECTED)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path} is not an LVIS or COCO json: it has no list {key!r}")
    categories = _categories(path, content["categories"])
    images, skipped = _images(path, content["images"], [category.id for category in categories])
    annotations = Annotations(categories, images, [], file_hash(path)[:16], skipped)
    rows: dict[int, object] = {}
    for place, row in enumerate(content["annotations"], start=1):
        number = whole_id(row.get("id")) if isinstance(row, dict) else None
        if number is not None and rows.setdefault(number, row) is not row and rows[number] == row:
            skipped.append(Skipped(f"annotation {number}", "annotation there twice", "the same again", COUNTED_ONCE))
        else:
            _add_object(annotations, place, row)
    owner: dict[str, int] = {}
    for number in annotations.objects_of:
        if (first := owner.setdefault(images[number].paths[0], number)) != number:
            told = f"images {first} and {number} of {path} are both {images[number].paths[0]}"
            raise InputError(f"{told}; expected an image's annotations under one id")
    without = sum("segmentation" not in thing for thing in annotations.objects)
    if 0 < without < len(annotations.objects):
        reason = f"of {len(annotations.objects)}, so mask AP is not told"
        skipped.append(Skipped(f"{without} annotations", "no mask that can be read", reason, SCORED))
    return annotations


def _categories(path: Path, rows: Sequence[Mapping]) -> tuple[Category, ...]:
    categories = []
    for row in rows:
        number = whole_id(row.get("id")) if isinstance(row, dict) else None
        if number is None:
            raise InputError(f"{path} is not an LVIS or COCO json: got the category {row!r}, expected one with an id")
        if not isinstance(row.get("name"), str) or not row["name"].strip():
            raise InputError(f"category {number} of {path} has no name; boxes can only be told apart by names")
        if row.get("frequency") not in (None, *FREQUENCIES):
            raise InputError(f"category {number} of {path} has frequency {row['frequency']!r}, expected r, c or f")
        categories.append(Category(number, row["name"], row.get("frequency")))
    if not categories or len({one.id for one in categories}) < len(categories):
        raise InputError(f"{path} has {len(rows)} categories, expected at least one, each with an id of its own")
    return tuple(sorted(categories, key=lambda one: one.id))


def _images(
    path: Path, rows: Sequence[Mapping], every_category: Sequence[int]
) -> tuple[dict[int, ImageEntry], list[Skipped]]:
    """The images by id, and those that are listed twice. InputError for two images of one id, and for none."""
    images: dict[int, ImageEntry] = {}
    skipped: list[Skipped] = []
    for row in rows:
        try:
            image = _image(row, every_category)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            told = f"an image lacks or garbles a field ({type(error).__name__}: {error})"
            raise InputError(f"{path} is not an LVIS or COCO json: {told}") from error
        if images.setdefault(image.id, image) != image:
            raise InputError(f"{path} has two images of the id {image.id}; expected each to have an id of its own")
        if images[image.id] is not image:
            skipped.append(Skipped(f"image {image.id}", "image listed twice", image.paths[0], COUNTED_ONCE))
    if not images:
        raise InputError(f"{path} has no images; expected LVIS or COCO annotations of some")
    named = defaultdict(set)  # place -> names of the images that may lie there
    for image in images.values():
        for place in image.paths:
            named[place].add(image.paths[0])
    for image in images.values():  # a.jpg is not where the a.jpg of two folders lies
        own = tuple(place for place in image.paths[1:] if len(named[place]) == 1)
        images[image.id] = replace(image, paths=(image.paths[0], *own))
    return images, skipped


def _image(row: Mapping, every_category: Sequence[int]) -> ImageEntry:
    absent, unfinished = row.get("neg_category_ids"), row.get("not_exhaustive_category_ids")
    if absent is None:  # COCO has none: what is not annotated is absent
        absent = every_category
    number, size = whole_id(row["id"]), (int(row["height"]), int(row["width"]))
    if number is None:
        raise ValueError(f"got the id {row['id']!r}, expected a whole number")
    if min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"got the height and width {str(size)[:60]}, expected those of an image")
    lists = [[int(id_key(one)) for one in ids] for ids in (absent, unfinished or ())]
    return ImageEntry(number, image_paths(row), *size, *lists)


def image_paths(row: Mapping) -> tuple[str, ...]:
    """Where an image may lie: its file_name, then the last two parts of its coco_url (train2017/000….jpg), then
    its bare name; "/" between folders, also where the file has Windows' separator. KeyError when it has neither.
    """
    named = [str(row["file_name"]).replace("\\", "/")] if row.get("file_name") else []
    if not named or row.get("coco_url"):
        named.append("/".join(PurePosixPath(row["coco_url"]).parts[-2:]))
    return tuple(dict.fromkeys([*named, PurePosixPath(named[-1]).name]))


def _add_object(annotations: Annotations, place: int, row: Mapping) -> None:
    """Keep one annotation in the form the `lvis` package reads (ids from 1 on: its 0 means "none")."""
    row = row if isinstance(row, dict) else {}
    name, box = f"annotation {row.get('id', f'number {place}')}", four_numbers(row.get("bbox"))
    image, category = whole_id(row.get("image_id")), whole_id(row.get("category_id"))
    if image not in annotations.images:
        told = f"image {row.get('image_id')!r} is not among the images"
        annotations.skipped.append(Skipped(name, "unknown image id", told))
    elif category not in annotations.index:
        told = f"{row.get('category_id')!r} is not among the categories"
        annotations.skipped.append(Skipped(name, "unknown category id", told))
    elif box is None:
        annotations.skipped.append(Skipped(name, "no box", f"got {row.get('bbox')!r}, expected x, y, width, height"))
    else:
        kept = {"id": place, "image_id": image, "category_id": category, "bbox": list(box)}
        shape = row.get("segmentation")
        mask = _mask(shape, annotations.images[image])
        if isinstance(mask, list) and len(mask) < len(shape):
            told = f"{len(shape) - len(mask)} of {len(shape)} polygons, left out of its mask"
            annotations.skipped.append(Skipped(name, "polygon that cannot be filled", told, SCORED))
        if mask:
            kept["segmentation"] = mask
        kept |= {"area": _area(row.get("area"), box), "ignore": int(whole_id(row.get("iscrowd")) == 1)}
        annotations.objects.append(kept)


def _area(value: object, box: Box) -> float:
    """The annotation's own area in pixels, that of its box where it has none."""
    try:
        area = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        area = math.nan
    return area if math.isfinite(area) else box[2] * box[3]


def _mask(shape: object, image: ImageEntry) -> dict | list | None:
    """RLE of the image's size, or the polygons that can be filled; None for what is no mask.

    pycocotools may crash, or take all memory, with what is neither.
    """
    size = image.height, image.width
    if isinstance(shape, dict):
        return shape if shape.get("size") == [*size] and _fills(shape.get("counts"), size) else None
    if not isinstance(shape, list):
        return None
    return [polygon for polygon in shape if not fault_of_polygon(polygon, size, 1)]


def _fills(counts: object, size: tuple[int, int]) -> bool:
    """Whether run lengths, plain or COCO's text, add up to an image of (H, W)."""
    if not isinstance(counts, str) and not (isinstance(counts, list) and all(type(n) is int for n in counts)):
        return False
    try:
        return sum(run_lengths(counts)) == size[0] * size[1]
    except ValueError:
        return False


def four_numbers(value: object) -> Box | None:
    """Four finite numbers as floats, or None for anything else."""
    try:
        a, b, c, d = (float(number) for number in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError):
        return None
    return (a, b, c, d) if all(map(math.isfinite, (a, b, c, d))) else None


# ---------------------------------------------------------------------- the boxes to be named


@dataclass
class Boxes:
    """The boxes of one image: xyxy in pixels, inside the image.

    scores: the detector's, for its boxes. names: index of the category, for the annotations' own.
    """

    xyxy: list[Box] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    names: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.xyxy)


@dataclass
class BoxSet:
    """All boxes by image id. source: "gt", or the hash of the detector's file."""

    source: str
    of_image: dict[int, Boxes] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def are_ground_truth(self) -> bool:
        """Whether these are the annotations' own, so that each has a right answer."""
        return self.source == ANNOTATED

    def add(self, name: str, image: ImageEntry, box: Box, score: float | None = None, label: int | None = None) -> None:
        """Keep the part of a box that lies in its image, with its score or its name's index.

        name: how reports call the box; they tell where anything is lost.
        """
        where = f"{[round(side, 1) for side in box]} in {image.width} x {image.height} pixels"
        clipped, has_area = clip(box, (image.height, image.width)), box[0] < box[2] and box[1] < box[3]
        if clipped is None or not has_area:
            self.skipped.append(Skipped(name, "box outside the image" if has_area else "box without area", where))
            return
        if max(abs(a - b) for a, b in zip(box, clipped, strict=True)) > TOLERANCE:
            self.skipped.append(Skipped(name, "box cut at the image's edge", where, SCORED))
        boxes = self.of_image.setdefault(image.id, Boxes())
        boxes.xyxy.append(clipped)
        boxes.scores += [] if score is None else [score]
        boxes.names += [] if label is None else [label]


def read_boxes(source: str, annotations: Annotations) -> BoxSet:
    """The annotations' own boxes ("gt", crowds left out) or a detector's file.

    InputError: missing, without boxes or scores, or of other images.
    """
    if source != ANNOTATED:
        return _detected(Path(source), annotations)
    found = BoxSet(ANNOTATED)
    for thing in annotations.objects:
        if not thing["ignore"]:
            image, (x, y, width, height) = annotations.images[thing["image_id"]], thing["bbox"]
            label = annotations.index[thing["category_id"]]
            found.add(f"annotation {thing['id']}", image, (x, y, x + width, y + height), label=label)
    return found


def _detected(path: Path, annotations: Annotations) -> BoxSet:
    """A detector's boxes by image with scores from 0 to 1, in a layout of `textregion.boxes`; labels are ignored.

    Where the file names its images, these are matched by name: its ids may be others than the annotations'.
    """
    file = read_boxes_file(path)
    if file.images is None:
        if len(file.entries[ANY_IMAGE]):
            raise InputError(f"{path} does not say which image its boxes belong to; expected image ids (see --help)")
        return BoxSet(file_hash(path)[:16])
    known, unknown = _matched(file.images, annotations)
    if file.entries and not known:
        told = f"none of the {len(unknown)} images of {path} is in the annotations ({next(iter(unknown.values()))})"
        raise InputError(f"{told}; do they belong together?")
    found = BoxSet(file_hash(path)[:16])
    found.skipped += [Skipped(f"image {key}", "unknown image id", reason) for key, reason in unknown.items()]
    if file.unlisted:
        found.skipped.append(Skipped(f"{file.unlisted} boxes", "unlisted image", f"{path} does not list their image"))
    for key, image in ((key, image) for key, image in known.items() if len(file.entries[key])):
        boxes, scores = file.entries[key].boxes, file.entries[key].scores
        if scores is None or not (0 <= scores.min() <= scores.max() <= 1):
            got = "no scores" if scores is None else f"scores from {scores.min():g} to {scores.max():g}"
            raise InputError(f"{path} has {got} for image {key}; expected the detector's scores, from 0 to 1")
        for place, (box, score) in enumerate(zip(boxes.tolist(), scores.tolist(), strict=True), start=1):
            found.add(f"image {key} box {place}", image, tuple(box), score=score)
    return found


def _matched(detected: ListedImages, annotations: Annotations) -> tuple[dict[str, ImageEntry], dict[str, str]]:
    """({id in the detector's file: image}, {id there: why it is none of the annotations'}).

    InputError for two of the detector's images that are one of the annotations'.
    """
    rows = [{"id": number, "file_name": image.paths[0]} for number, image in annotations.images.items()]
    listed = ListedImages("the annotations", rows)
    matched, unknown, taken = {}, {}, set()
    for key, names in detected.ids.items():
        try:
            number = whole_id(listed.find("/".join(min(names))) if names else key)
        except InputError as error:
            unknown[key] = str(error)
            continue
        if number not in annotations.images:
            unknown[key] = f"{detected.source} has boxes of it"
        elif number in taken:
            raise InputError(f"{detected.source} has two images that are the annotations' image {number}, {key} last")
        else:
            matched[key] = number
            taken.add(number)
    return {key: annotations.images[number] for key, number in matched.items()}, unknown


def clip(box: Box, size: tuple[int, int]) -> Box | None:
    """The part of an xyxy box within (H, W) pixels; None when there is none."""
    height, width = size
    x1, y1, x2, y2 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))
    some = np.float32(x1) < np.float32(x2) and np.float32(y1) < np.float32(y2)  # as the models will read them
    return (x1, y1, x2, y2) if some else None


# ---------------------------------------------------------------------- average precision


def average_precision(
    annotations: Annotations, detections: Sequence[dict], image_ids: Collection[int], kind: str = "box"
) -> dict[str, float]:
    """{"AP": …, "AP50": …, …, "APf": …} in percent; NaN where nothing of that size or frequency is annotated.

    detections: LVIS results, {"image_id", "category_id", "score", and "bbox" (xywh), "segmentation" (RLE)}; none
    is a normal result, and gives 0. kind: "box" or "mask". image_ids: the images that count. At most 300 detections
    of an image count. Time and memory grow with images * categories, every pair of which the package holds, and with
    the detections: with 1203 names and 300 detections an image, 24 ms and 1.1 MB an image and kind (1000 and 2000
    images, 2 cores of an AMD EPYC), so about 8 minutes and 22 GB a kind for LVIS val, most of it given back after.
    """
    if not image_ids:
        return dict.fromkeys(METRICS, math.nan)
    with lvis_package() as package:
        dataset = {  # a fresh one: the package writes into what it is given
            "images": [dict(vars(annotations.images[number])) for number in image_ids],
            "annotations": [dict(thing) for number in image_ids for thing in annotations.objects_of.get(number, ())],
            # the package knows no category without a frequency; groups without categories are left out of its metrics
            "categories": [{"id": one.id, "frequency": one.frequency or "f"} for one in annotations.categories],
        }
        images_only = _as_lvis(package, {**dataset, "annotations": []})  # all that results are checked against
        wanted = set(image_ids)
        unused = "segmentation" if kind == "box" else "bbox"  # the package takes a box where there is one
        counted = [{k: v for k, v in one.items() if k != unused} for one in detections if one["image_id"] in wanted]
        if not counted:  # the package cannot read an empty list; this one is of no known category, so it does not count
            first = dataset["images"][0]["id"]
            counted = [{"image_id": first, "category_id": -1, "bbox": [0, 0, 1, 1], "score": 0.0}]
        results = package.LVISResults(images_only, counted)
        evaluation = package.LVISEval(_as_lvis(package, dataset), results, KINDS[kind])
        evaluation.run()
    percent = {name: 100 * float(evaluation.results[name]) for name in METRICS}
    groups = {category.frequency for category in annotations.categories}
    absent = {f"AP{letter}" for letter in FREQUENCIES if letter not in groups}  # else -1 where there is nothing
    return {name: math.nan if name in absent or value < 0 else value for name, value in percent.items()}


@contextmanager
def lvis_package() -> Iterator[ModuleType]:
    """The module `lvis`, for as long as the body runs with `np.float`, which numpy 1.24 removed and it still uses.

    Its import sets up the root logger; that is undone. InputError when it is not installed.
    """
    handlers = list(logging.root.handlers)
    with patch.object(np, "float", float, create=True):
        with needs("AP by LVIS", layer="eval"):
            import lvis

        logging.root.handlers[:] = handlers
        logging.getLogger("lvis").setLevel(logging.ERROR)  # it warns of every list of results that is no file
        yield lvis


def _as_lvis(package: ModuleType, dataset: Mapping):
    """An `LVIS` object around a data set that is already in memory (its own constructor reads a file)."""
    made = package.LVIS.__new__(package.LVIS)
    made.logger = logging.getLogger("lvis")
    made.dataset = dict(dataset)
    made._create_index()
    return made
