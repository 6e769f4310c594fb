"""PASCAL Context from `trainval_merged.json`, read with pycocotools: the Detail API is not needed (method 13)."""

import json
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from eval.prepare.converters import LabelMap, make_maps, require
from textregion.errors import InputError
from textregion.storage import write_atomically

IMAGES = "https://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar"
ANNOTATIONS = "https://codalabuser.blob.core.windows.net/public/trainval_merged.json"
# Categories of the file that are classes, in the order of their labels; 0 is background.
# fmt: off
CATEGORIES = (
    0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)
# fmt: on


def pascal_context(root: Path) -> str:
    """PNGs (0 background, 1..59) in SegmentationClassContext and the lists of ImageSets/SegmentationContext."""
    folder = root / "VOCdevkit" / "VOC2010"
    require(root, {"VOCdevkit/VOC2010/JPEGImages": IMAGES, "VOCdevkit/VOC2010/trainval_merged.json": ANNOTATIONS})
    content = _read(folder / "trainval_merged.json")
    check_order(content["categories"])
    annotations = defaultdict(list)
    for annotation in content["annos_segmentation"]:
        annotations[annotation["image_id"]].append(annotation)
    images = {Path(image["file_name"]).stem: image for image in content["images"] if image["phase"] in ("train", "val")}
    maps = folder / "SegmentationClassContext"
    makers = {maps / f"{name}.png": partial(label_map, i, annotations[i["image_id"]]) for name, i in images.items()}
    said = make_maps(makers, "PASCAL Context")
    for phase in ("train", "val"):
        text = "".join(f"{name}\n" for name in sorted(images) if images[name]["phase"] == phase)
        path = folder / "ImageSets" / "SegmentationContext" / f"{phase}.txt"
        if not path.exists() or path.read_text() != text:
            write_atomically(path, text.encode())
    return said


def label_map(image: dict, annotations: list[dict]) -> LabelMap:
    """Labels 0..59 of one image from its run-length encoded masks; later ones lie over earlier ones.

    InputError for a category that is no class or a mask of another size.
    """
    labels = {category: label for label, category in enumerate(CATEGORIES)}
    values = np.zeros((image["height"], image["width"]), np.uint8)
    for annotation in annotations:
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        if annotation["category_id"] not in labels or mask.shape != values.shape:
            raise InputError(
                f"{image['file_name']} has a mask of shape {mask.shape}, category {annotation['category_id']}; "
                f"expected {values.shape} and one of 59 categories: is trainval_merged.json the original?"
            )
        values[mask] = labels[annotation["category_id"]]
    return values


def check_order(categories: list[dict]) -> None:
    """InputError when a name that is one of mmseg's 60 classes belongs to another label than there."""
    from eval.mm import PascalContextDataset

    classes = [_plain(name) for name in PascalContextDataset.METAINFO["classes"]]
    names = {category.get("category_id", category.get("id")): _plain(category["name"]) for category in categories}
    for label, category in enumerate(CATEGORIES):
        name = names.get(category)
        if name in classes and classes.index(name) != label:
            raise InputError(
                f"category {category} of trainval_merged.json is {name!r}, expected {classes[label]!r}; "
                "is it the original file?"
            )


def _plain(name: str) -> str:
    return name.lower().replace(" ", "").replace("_", "")


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); fetch it again") from error
    missing = {"images", "categories", "annos_segmentation"} - set(content)
    if missing:
        raise InputError(f"{path} has no {', '.join(sorted(missing))}; is it the original file?")
    return content
