"""What is trained on: boxes with names from files, and SAM's tokens of them on disk.

Boxes come from any COCO-format file; what cannot be used is counted, not raised: a file of millions of boxes has some
of everything. SAM is frozen, so its tokens are computed once instead of in every step (RegionSpot 2.4), a safetensors
file an image, which says what it was made from; what is damaged or was made from something else is made again, so an
interrupted or outdated cache completes itself. CLIP's maps can be kept too; without augmentation they never change.
"""

import hashlib
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from tqdm import tqdm

from textregion.errors import InputError
from textregion.image_names import id_key, whole_id
from textregion.images import load_image
from textregion.regionspot.model import RegionSpot
from textregion.storage import complete, file_hash, load_tensors, read_json, save_tensors

EXPECTED = "a COCO-format file with images, annotations and categories"
CROWD_FLAGS = ("iscrowd", "is_group_of")  # boxes around many things at once (COCO, Objects365; OpenImages)
NO_CROWD = (None, 0, "0", "", "false", "False")
KIND = "RegionSpotTokens"
COMPARED = ("boxes", "category_ids")  # of an image with its file
PROMPT = "box, single mask"  # the one way of prompting; another one would need another word here
Row = Mapping[str, Any]
Sizes = dict[str, tuple[str, float, float]]  # {image id (`id_key`): (file name, height, width)}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BoxImage:
    """One image's boxes. id: as in the file, a number if one. file: its name there, relative to the images' folder.

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
    """A data set: what its boxes can be called, its images, and how much of the file was passed over, and why.

    shared: endings that the names of several images have, a.jpg of day/a.jpg and night/a.jpg.
    """

    name: str
    folder: Path
    names: tuple[str, ...]
    images: tuple[BoxImage, ...]
    skipped: Counter[str]
    shared: frozenset[str] = frozenset()

    def path(self, image: BoxImage) -> Path:
        """Where an image lies: the longest ending of its name alone that exists in the folder. InputError for none."""
        for ending in endings(image.file):
            if (ending == image.file or ending not in self.shared) and (place := self.folder / ending).is_file():
                return place
        name = self.folder / image.file
        raise InputError(f"{self.name}: no image {name}, nor an ending of that name, and no other, in {self.folder}")

    def describe(self) -> str:
        """One line: how many images, boxes and names there are, and what was passed over."""
        boxes = sum(len(image.labels) for image in self.images)
        counted = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common())
        line = f"{self.name}: {boxes} boxes in {len(self.images)} images, {len(self.names)} names"
        return f"{line}; passed over: {counted}" if counted else line


def endings(name: str) -> list[str]:
    """["a/b/c.jpg", "b/c.jpg", "c.jpg"] of "a/b/c.jpg"."""
    parts = PurePosixPath(name).parts
    return [str(PurePosixPath(*parts[start:])) for start in range(len(parts))]


def parse_data(specs: Sequence[str]) -> dict[str, tuple[Path, Path]]:
    """{name: (annotations, images' folder)} of NAME=FILE:FOLDER; InputError for another form or a repeated name."""
    found: dict[str, tuple[Path, Path]] = {}
    for spec in specs:
        name, equals, rest = spec.partition("=")
        file, colon, folder = rest.rpartition(":")
        if not (name and equals and colon and file and folder) or "/" in name:
            raise InputError(f"got the data set {spec!r}, expected NAME=annotations.json:images_folder")
        if name in found:
            raise InputError(f"got two data sets named {name!r}; give each a name of its own")
        found[name] = (Path(file), Path(folder))
    return found


def read_dataset(name: str, annotations: str | Path, folder: str | Path, merge_names: bool = True) -> BoxDataset:
    """Read a COCO-format file. Names are the categories' own, in the order of their ids (RegionSpot 2.4).

    folder: where the images lie. merge_names: categories with the same name become one class; as published (False)
        each is a class of its own, and so a negative of its twin (RegionSpot 4, D8).
    Ids may be numbers or their text. Passed over and counted: crowds, boxes without numbers, without area or outside
    their image (those partly outside are cut to it), annotations of unknown images or categories or that are there
    twice, images without a box left, and those whose name another image with boxes has: which of them is it?
    InputError in one line: missing or other file, no categories, nameless ones or repeated ids, no usable box at all.
    """
    path, folder = Path(annotations), Path(folder)
    if not folder.is_dir():
        raise InputError(f"{name}: no folder {folder}; expected the one with the images of {path}")
    content = _read_json(path)
    classes, names = _classes(path, content["categories"], merge_names)
    sizes = _images(path, content["images"])
    skipped = +Counter({"categories merged into one of equal name": len(classes) - len(names)})
    skipped += Counter({"images listed twice": len(content["images"]) - len(sizes)})
    found: defaultdict[str, dict[tuple, None]] = defaultdict(dict)
    for place, row in enumerate(content["annotations"]):
        box = _box(row, sizes, classes)
        if isinstance(box, str):
            skipped[box] += 1
            continue
        number = whole_id(row.get("id"))
        told = (box, whole_id(row["category_id"]), f"row {place}" if number is None else number)
        boxes = found[id_key(row["image_id"])]
        if told in boxes:
            skipped["annotations there twice"] += 1
        boxes[told] = None
    skipped += Counter({"images without boxes": len(sizes) - len(found)})
    owners = Counter(sizes[key][0] for key in found)
    images = []
    for key, (file, *_) in sizes.items():
        if key in found and owners[file] > 1:
            skipped["images of a name that others have"] += 1
        elif key in found:
            boxes, ids, _ = zip(*found[key], strict=True)
            labels = np.array([classes[category] for category in ids], np.int64)
            number = whole_id(key)
            own = key if number is None else number
            images.append(BoxImage(own, file, np.array(boxes, np.float32), np.array(ids, np.int64), labels))
    named = Counter(ending for file in {file for file, *_ in sizes.values()} for ending in endings(file))
    shared = frozenset(ending for ending, count in named.items() if count > 1)
    dataset = BoxDataset(name, folder, names, tuple(images), skipped, shared)
    if not images:
        raise InputError(f"{path} has no usable box ({dataset.describe()}); expected {EXPECTED}")
    return dataset


def _read_json(path: Path) -> dict[str, Any]:
    content = read_json(path, EXPECTED)
    for key in ("images", "annotations", "categories"):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{path} has no list of {key}; expected {EXPECTED}")
    return content


def _classes(path: Path, rows: Sequence[Row], merge: bool) -> tuple[dict[int, int], tuple[str, ...]]:
    """({category id: class}, names of the classes)."""
    named: dict[int, str] = {}
    for row in rows:
        number = whole_id(row.get("id"))
        if number is None or not isinstance(row.get("name"), str) or not row["name"].strip():
            raise InputError(f"{path} has the category {row!r}, expected a whole number as id and a name")
        named[number] = row["name"].strip()
    if not rows or len(named) < len(rows):
        raise InputError(f"{path} has {len(rows)} categories, expected at least one, each with an id of its own")
    named = dict(sorted(named.items()))
    if not merge:
        return {number: place for place, number in enumerate(named)}, tuple(named.values())
    places = {name: place for place, name in enumerate(dict.fromkeys(named.values()))}
    return {number: places[name] for number, name in named.items()}, tuple(places)


def _images(path: Path, rows: Iterable[Row]) -> Sizes:
    """The name is the end of `coco_url` where there is no `file_name`; "/" stands between its folders."""
    found: Sizes = {}
    for row in rows:
        number, sides = row.get("id"), [row.get(side) for side in ("height", "width")]
        file = row.get("file_name") or "/".join(PurePosixPath(str(row.get("coco_url") or "")).parts[-2:])
        sized = all(isinstance(side, (int, float)) and side > 0 for side in sides)
        if not isinstance(number, (int, float, str)) or isinstance(number, bool) or not file or not sized:
            line = f"{path} has the image {row!r}, expected id, height, width and file_name or coco_url"
            raise InputError(line[:400])
        image = (str(PurePosixPath(str(file).replace("\\", "/"))), *sides)
        if found.setdefault(id_key(number), image) != image:
            raise InputError(f"{path} has two images of the id {number}; expected each to have an id of its own")
    return found


def _box(row: Row, sizes: Sizes, classes: Mapping[int, int]) -> tuple[float, ...] | str:
    """x1 y1 x2 y2 within the image, or why the annotation cannot be used."""
    image = row.get("image_id")
    if not isinstance(image, (int, float, str)) or image != image or id_key(image) not in sizes:  # NaN: unlike itself
        return "annotations of unknown images"
    if whole_id(row.get("category_id")) not in classes:
        return "boxes of unknown categories"
    if any(row.get(flag) not in NO_CROWD for flag in CROWD_FLAGS):
        return "crowds"
    try:
        x, y, width, height = map(float, row["bbox"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return "boxes without four numbers"
    if not all(map(math.isfinite, (x, y, width, height))):
        return "boxes without four numbers"
    if width <= 0 or height <= 0:
        return "boxes without area"
    _, tall, wide = sizes[id_key(image)]
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + width, wide), min(y + height, tall)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else "boxes outside their image"


@dataclass(frozen=True)
class CachedImage:
    """What training needs of one image. tokens: (n, T). labels: (n,). clip_map: (L, D) float16, or None if not kept."""

    tokens: Float32[Tensor, "n T"]
    labels: Int64[Tensor, " n"]
    clip_map: Float[Tensor, "L D"] | None


class TokenCache:
    """The files of one data set.

    folder: of all data sets' caches. model: its SAM makes the tokens, its CLIP the maps; the head is not used.
    keep_maps: keep CLIP's maps too (float16: 0.3 MB an image for ViT-B/16, 1.2 MB for ViT-L/14 at 336).
    """

    def __init__(self, folder: str | Path, dataset: BoxDataset, model: RegionSpot, keep_maps: bool = False) -> None:
        self.folder = Path(folder) / dataset.name
        self.dataset, self.model, self.keep_maps = dataset, model, keep_maps

    def path(self, image: BoxImage) -> Path:
        """The file of an image; spread over 256 folders, as there may be millions."""
        digest = hashlib.sha256(str(image.id).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[:32]}.safetensors"

    def read(self, image: BoxImage) -> CachedImage:
        """What `fill` wrote. InputError when it is not there or damaged."""
        tensors, _ = load_tensors(self.path(image), KIND)
        with complete(self.path(image), KIND):
            clip_map = tensors["clip_map"] if self.keep_maps else None
            return CachedImage(tensors["tokens"], torch.from_numpy(image.labels), clip_map)

    def fill(self, images: Sequence[BoxImage], quiet: bool = False) -> Counter[str]:
        """Make what is not there yet, image by image, and tell {"made", "kept", "unusable": how many}.

        Images that are missing, unreadable or smaller than the file says are told in the log and left out; `usable`
        gives the others. InputError when the folder cannot be written.
        """
        counts: Counter[str] = Counter()
        for image in tqdm(images, f"tokens of {self.dataset.name}", unit="image", disable=True if quiet else None):
            counts[self._ensure(image)] += 1
        return counts

    def _ensure(self, image: BoxImage) -> str:
        """Make one image's file unless it is there: "made", "kept" or "unusable"."""
        path = self.path(image)
        try:
            source = self.dataset.path(image)
            if self._is_current(image, source):
                return "kept"
            meta = {"kind": KIND, "source": file_hash(source), "stamp": _stamp(source), "models": self._models()}
            pixels = load_image(source)
            tensors = {name: torch.from_numpy(getattr(image, name)) for name in COMPARED}
            tensors["tokens"] = self.model.box_tokens.encode(pixels, image.boxes)[0].float()
            if self.keep_maps:
                tensors["clip_map"] = self.model.clip_map(pixels).half()
        except (InputError, OSError) as error:
            logger.warning("%s: image %s is left out: %s", self.dataset.name, image.id, error)
            path.unlink(missing_ok=True)  # an older one would be taken for good
            return "unusable"
        try:
            save_tensors(path, tensors, meta)
        except OSError as error:
            raise InputError(f"cannot write the token cache {self.folder} ({error}); free space") from error
        return "made"

    def usable(self) -> list[BoxImage]:
        """The images that have a file. InputError when none has."""
        images = self.dataset.images
        found = [image for image in images if self.path(image).is_file()]
        if not found:
            raise InputError(f"{self.dataset.name}: none of its {len(images)} images could be used; see the log")
        return found

    def _models(self) -> dict[str, str | int | bool]:
        model, sam = self.model, {"sam": self.model.box_tokens.name, "prompt": PROMPT}
        clip = {"clip": model.backbone.name, "side": model.side, "antialias": model.antialias}
        return {**sam, **clip} if self.keep_maps else sam

    def _is_current(self, image: BoxImage, source: Path) -> bool:
        """Whether the file was made from this image, these boxes and these models.

        The image is hashed only when its size or time of change is another than it was.
        """
        path = self.path(image)
        if not path.is_file():
            return False
        try:
            tensors, meta = load_tensors(path, KIND)
            with complete(path, KIND):
                same = all(np.array_equal(tensors[name], getattr(image, name)) for name in COMPARED)
                made_by, stamp, digest = meta["models"], meta["stamp"], meta["source"]
        except InputError as error:
            logger.warning("%s; made again", error)
            return False
        whole = "tokens" in tensors and ("clip_map" in tensors or not self.keep_maps)
        if not (whole and same and self._models().items() <= made_by.items()):
            return False
        return stamp == _stamp(source) or digest == file_hash(source)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
