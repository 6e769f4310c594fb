"""One function per benchmark: check what is there, make the label maps that are not (method 13).

Every function takes the data root and returns one line about what it found and made. Nothing is ever deleted.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from textregion.errors import InputError
from textregion.storage import write_atomically

VOC_2012 = "https://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
COCO_IMAGES = "http://images.cocodataset.org/zips/val2017.zip"
COCO_STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip"
ADE20K = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
CITYSCAPES = "https://www.cityscapes-dataset.com/downloads (an account is needed)"

STUFF_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
STUFF_RAW = tuple(raw for raw in range(182) if raw not in STUFF_GAPS)
LAST_THING = 90
CITYSCAPES_RAW = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
LabelMap = UInt8[np.ndarray, "H W"]


def voc(root: Path) -> str:
    """PASCAL VOC 2012 (voc20, voc21) needs no conversion."""
    parts = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/val.txt")
    require(root, {f"VOCdevkit/VOC2012/{part}": VOC_2012 for part in parts})
    return "as it should be"


def ade20k(root: Path) -> str:
    """ADE20K needs no conversion."""
    require(root, {f"ade/ADEChallengeData2016/{part}/validation": ADE20K for part in ("images", "annotations")})
    return "as it should be"


def city_scapes(root: Path) -> str:
    """Cityscapes: *_gtFine_labelIds.png to *_gtFine_labelTrainIds.png (19 classes, 255 ignored)."""
    folders = {"leftImg8bit": "cityscapes/leftImg8bit/val", "gtFine": "cityscapes/gtFine/val"}
    require(root, {path: f"{name}_trainvaltest.zip, {CITYSCAPES}" for name, path in folders.items()})
    sources = maps_below(root / folders["gtFine"], "_labelIds.png")
    labels = {raw: train for train, raw in enumerate(CITYSCAPES_RAW)}
    return convert(sources, ("_labelIds.png", "_labelTrainIds.png"), labels, "Cityscapes", others=255)


def coco_stuff164k(root: Path) -> str:
    """COCO-Stuff: raw ids to train ids 0..170, 255 stays."""
    labels = {raw: train for train, raw in enumerate(STUFF_RAW)} | {255: 255}
    return convert(_stuff_maps(root), (".png", "_labelTrainIds.png"), labels, "COCO-Stuff")


def coco_object(root: Path) -> str:
    """COCO-Object from COCO-Stuff's maps: things to 1..80, everything else to 0 (background)."""
    labels = {raw: train + 1 if raw <= LAST_THING else 0 for train, raw in enumerate(STUFF_RAW)} | {255: 0}
    return convert(_stuff_maps(root), (".png", "_instanceTrainIds.png"), labels, "COCO-Object")


def _stuff_maps(root: Path) -> list[Path]:
    maps = "coco_stuff164k/annotations/val2017"
    require(root, {"coco_stuff164k/images/val2017": COCO_IMAGES, maps: COCO_STUFF})
    return [path for path in maps_below(root / maps, ".png") if not path.stem.endswith("TrainIds")]


# ---------------------------------------------------------------------- what the converters share


def require(root: Path, sources: Mapping[str, str]) -> None:
    """InputError in one line for what does not lie below the data root. sources: {path: where it is published}."""
    missing = [f"{root / path} (from {source})" for path, source in sources.items() if not (root / path).exists()]
    if missing:
        raise InputError(f"missing: {'; '.join(missing)}")


def maps_below(folder: Path, ending: str) -> list[Path]:
    """All label maps with an ending, sorted; InputError when there are none."""
    found = sorted(folder.rglob(f"*{ending}"))
    if not found:
        raise InputError(f"{folder} has no label maps (*{ending}); unpack them there")
    return found


def convert(
    sources: Sequence[Path], endings: tuple[str, str], labels: Mapping[int, int], title: str, others: int | None = None
) -> str:
    """Translate label maps into files beside them with the second of two endings; says how many are new.

    labels: {raw: new}. others: the new label of all other raw values; InputError names them when None.
    """
    table = np.full(256, -1 if others is None else others, np.int16)
    table[list(labels)] = list(labels.values())
    targets = [path.with_name(path.name.removesuffix(endings[0]) + endings[1]) for path in sources]
    return make_maps({t: partial(_translated, s, table) for s, t in zip(sources, targets, strict=True)}, title)


def _translated(source: Path, table: np.ndarray) -> LabelMap:
    values = read_map(source)
    new = table[values]
    if (new < 0).any():
        unknown = np.unique(values[new < 0]).tolist()
        raise InputError(f"{source} has unknown labels {unknown}; is it the original file?")
    return new.astype(np.uint8)


def make_maps(makers: Mapping[Path, Callable[[], LabelMap]], title: str) -> str:
    """Make and write the label maps that are not there yet, with a progress bar; says how many are new.

    Each is written in one step, so an interrupted conversion just goes on.
    """
    new = 0
    for path, make in tqdm(makers.items(), title, unit="map"):
        if not path.exists():
            write_image(path, make())
            new += 1
    return f"{new} label maps made, {len(makers) - new} were there"


def read_map(path: Path) -> LabelMap:
    """A label map as stored (palette indices, not colours); InputError when damaged or not 8 bits, one channel."""
    try:
        with Image.open(path) as image:
            values = np.array(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} is not a readable label map ({error}); unpack it again") from error
    if values.ndim != 2 or values.dtype != np.uint8:
        raise InputError(f"{path} has shape {values.shape}, {values.dtype}; expected one 8-bit channel")
    return values


def write_image(path: Path, pixels: UInt8[np.ndarray, "H W *_"]) -> None:
    """Write a label map or an RGB image in one step, as PNG or (quality 95) as JPEG by the path's ending."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG" if path.suffix == ".jpg" else "PNG", quality=95)
    write_atomically(path, buffer.getvalue())
