"""One function per benchmark: check what is there, make the label maps that are not (method 13).

Every function takes the data root and returns one line about what it found and made. Nothing is ever deleted.
"""

from collections.abc import Callable
from pathlib import Path

from eval.prepare.common import Need, convert, files_below, lookup_table, replace_end, require
from eval.prepare.pascal_context import pascal_context
from eval.prepare.tiny import tiny

VOC_2012 = "https://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
COCO_IMAGES = "http://images.cocodataset.org/zips/val2017.zip"
COCO_STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip"
ADE20K = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
CITYSCAPES = "https://www.cityscapes-dataset.com/downloads (an account is needed)"

STUFF_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
STUFF_RAW = tuple(raw for raw in range(182) if raw not in STUFF_GAPS)
LAST_THING = 90
CITYSCAPES_RAW = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def voc(root: Path) -> str:
    """PASCAL VOC 2012 (voc20, voc21) needs no conversion."""
    folder = "VOCdevkit/VOC2012"
    parts = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/val.txt")
    require(root, [Need(f"{folder}/{part}", VOC_2012) for part in parts])
    return "as it should be"


def ade20k(root: Path) -> str:
    """ADE20K needs no conversion."""
    folder = "ade/ADEChallengeData2016"
    parts = ("images/validation", "annotations/validation")
    require(root, [Need(f"{folder}/{part}", ADE20K) for part in parts])
    return "as it should be"


def city_scapes(root: Path) -> str:
    """Cityscapes: *_gtFine_labelIds.png to *_gtFine_labelTrainIds.png (19 classes, 255 ignored)."""
    images = Need("cityscapes/leftImg8bit/val", f"leftImg8bit_trainvaltest.zip, {CITYSCAPES}")
    maps = Need("cityscapes/gtFine/val", f"gtFine_trainvaltest.zip, {CITYSCAPES}")
    require(root, [images, maps])
    sources = files_below(root / maps.path, "_labelIds.png", "label maps")
    table = lookup_table(((raw, train) for train, raw in enumerate(CITYSCAPES_RAW)), others=255)
    return _said(convert(sources, replace_end("_labelIds.png", "_labelTrainIds.png"), table, "Cityscapes"), sources)


def coco_stuff164k(root: Path) -> str:
    """COCO-Stuff: raw ids to train ids 0..170, 255 stays."""
    sources = _stuff_maps(root)
    table = lookup_table([*((raw, train) for train, raw in enumerate(STUFF_RAW)), (255, 255)])
    return _said(convert(sources, replace_end(".png", "_labelTrainIds.png"), table, "COCO-Stuff"), sources)


def coco_object(root: Path) -> str:
    """COCO-Object from COCO-Stuff's maps: things to 1..80, everything else to 0 (background)."""
    sources = _stuff_maps(root)
    things = [(raw, train + 1) for train, raw in enumerate(STUFF_RAW) if raw <= LAST_THING]
    others = [(raw, 0) for raw in (*STUFF_RAW, 255) if raw > LAST_THING]
    table = lookup_table([*things, *others])
    return _said(convert(sources, replace_end(".png", "_instanceTrainIds.png"), table, "COCO-Object"), sources)


def _stuff_maps(root: Path) -> list[Path]:
    images = Need("coco_stuff164k/images/val2017", COCO_IMAGES)
    maps = Need("coco_stuff164k/annotations/val2017", COCO_STUFF)
    require(root, [images, maps])
    found = files_below(root / maps.path, ".png", "label maps")
    return [path for path in found if not path.stem.endswith("TrainIds")]


def _said(new: int, sources: list[Path]) -> str:
    return f"{new} label maps made, {len(sources) - new} were there"


CONVERTERS: dict[str, Callable[[Path], str]] = {
    "voc": voc,
    "ade20k": ade20k,
    "city_scapes": city_scapes,
    "coco_stuff164k": coco_stuff164k,
    "coco_object": coco_object,
    "pascal_context": pascal_context,
    "tiny": tiny,
}
