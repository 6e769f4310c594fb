"""One function per benchmark: check what is there, make the label maps that are not (method 13).

Every function takes the data root and returns one line about what it found and made. Nothing is ever deleted.
"""

import fcntl
import io
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePath

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from textregion.errors import InputError
from textregion.image_names import id_key, whole_id
from textregion.images import open_image
from textregion.storage import read_json, write_atomically
from textregion.tiny.scenes import Scene, SceneRegion, draw_scene

VOC_2012 = "https://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
COCO_IMAGES = "http://images.cocodataset.org/zips/val2017.zip"
COCO_STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip"
ADE20K = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
CITYSCAPES = "https://www.cityscapes-dataset.com/downloads (an account is needed)"
VOC_2010 = "https://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar"
CONTEXT = "https://codalabuser.blob.core.windows.net/public/trainval_merged.json"

STUFF_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
STUFF_RAW = tuple(raw for raw in range(182) if raw not in STUFF_GAPS)
LAST_THING = 90
CITYSCAPES_RAW = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# Categories of PASCAL Context that are classes, in the order of their labels; 0 is background.
# fmt: off
CONTEXT_CATEGORIES = (
    0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)
# fmt: on
SCENES = (40, 256)  # of the benchmark: how many, side in pixels
SHOWN = 3  # names that a message lists
FIRST_SEED = 900_000  # scenes of the tiny world no training has seen
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


def pascal_context(root: Path) -> str:
    """PASCAL Context from `trainval_merged.json`, read with pycocotools: the Detail API is not needed.

    PNGs (0 background, 1..59) in SegmentationClassContext and the lists of ImageSets/SegmentationContext.
    """
    folder = root / "VOCdevkit" / "VOC2010"
    require(root, {"VOCdevkit/VOC2010/JPEGImages": VOC_2010, "VOCdevkit/VOC2010/trainval_merged.json": CONTEXT})
    path = folder / "trainval_merged.json"
    content = read_json(path, f"the file of {CONTEXT}")
    keys = ("annos_segmentation", "categories", "images")
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)}; is it the original file?")
    check_order(content["categories"])
    try:
        listed = {id_key(image["image_id"]): image for image in content["images"]}
        images = {PurePath(one["file_name"]).stem: one for one in listed.values() if one["phase"] in ("train", "val")}
        annotations = defaultdict(list)
        for annotation in content["annos_segmentation"]:
            annotations[id_key(annotation["image_id"])].append(annotation)
    except (KeyError, TypeError, ValueError) as error:
        told = f"an image or annotation lacks or garbles a field ({type(error).__name__}: {error})"
        raise InputError(f"{path}: {told}; is it the original file?") from error
    asked = sum(image["phase"] in ("train", "val") for image in content["images"])
    if len(listed) < len(content["images"]) or len(images) < asked:
        raise InputError(f"{path} has two images of one id or of one name; is it the original file?")
    maps = folder / "SegmentationClassContext"
    makers = {
        maps / f"{name}.png": partial(label_map, image, annotations[id_key(image["image_id"])])
        for name, image in images.items()
    }
    said = make_maps(makers, "PASCAL Context")
    if unknown := sum(len(rows) for key, rows in annotations.items() if key not in listed):
        said += f", {unknown} masks of images that {path.name} does not list were left out"
    for phase in ("train", "val"):
        text = "".join(f"{name}\n" for name in sorted(images) if images[name]["phase"] == phase)
        path = folder / "ImageSets" / "SegmentationContext" / f"{phase}.txt"
        if not path.exists() or path.read_text() != text:
            write_atomically(path, text.encode())
    return said


def label_map(image: dict, annotations: list[dict]) -> LabelMap:
    """Labels 0..59 of one image from its run-length encoded masks; later ones lie over earlier ones.

    InputError for a category that is no class, a mask of another size, or what is no mask.
    """
    labels = {category: label for label, category in enumerate(CONTEXT_CATEGORIES)}
    try:
        values = np.zeros((int(image["height"]), int(image["width"])), np.uint8)
        masks = [coco_mask.decode(annotation["segmentation"]).astype(bool) for annotation in annotations]
    except (KeyError, TypeError, ValueError) as error:
        told = f"{image['file_name']} lacks a size or has no run-length encoded mask ({type(error).__name__}: {error})"
        raise InputError(f"{told}; is trainval_merged.json the original?") from error
    for annotation, mask in zip(annotations, masks, strict=True):
        category = whole_id(annotation.get("category_id"))
        if category not in labels or mask.shape != values.shape:
            raise InputError(
                f"{image['file_name']} has a mask of shape {mask.shape}, category {annotation.get('category_id')}; "
                f"expected {values.shape} and one of 59 categories: is trainval_merged.json the original?"
            )
        values[mask] = labels[category]
    return values


def check_order(categories: list[dict]) -> None:
    """InputError when a name that is one of mmseg's 60 classes belongs to another label than there."""
    from eval.mm import PascalContextDataset

    def plain(name: str) -> str:
        return name.lower().replace(" ", "").replace("_", "")

    classes = [plain(name) for name in PascalContextDataset.METAINFO["classes"]]
    names = {}
    for category in categories:
        number = whole_id(category.get("category_id", category.get("id"))) if isinstance(category, dict) else None
        if number is None or not isinstance(category.get("name"), str):
            raise InputError(f"trainval_merged.json has the category {category!r}, expected an id and a name")
        names[number] = plain(category["name"])
    for label, category in enumerate(CONTEXT_CATEGORIES):
        name = names.get(category)
        if name in classes and classes.index(name) != label:
            raise InputError(
                f"category {category} of trainval_merged.json is {name!r}, expected {classes[label]!r}; "
                "is it the original file?"
            )


def tiny(root: Path) -> str:
    """40 scenes of the tiny world of 256 x 256 pixels, in mmseg's on-disk layout: {images,annotations}/val/*.png."""
    return f"{draw_scenes(scenes_folder(root / 'tiny_world', *SCENES), *SCENES)} scenes drawn"


def scenes_folder(folder: Path, count: int, size: int, first_seed: int = FIRST_SEED) -> Path:
    """Where such scenes lie: the folder itself for the 40 of the benchmark, else its name with what decides them."""
    if (count, size, first_seed) == (*SCENES, FIRST_SEED):
        return folder
    ending = f"-{count}x{size}-from{first_seed}"
    return folder if folder.name.endswith(ending) else folder.with_name(f"{folder.name}{ending}")


def draw_scenes(folder: Path, count: int, size: int, first_seed: int = FIRST_SEED) -> int:
    """Draw what is not there yet; returns how many are new. Pixel value of a label map = index of CLASS_NAMES.

    InputError when there are other files than these scenes', which would be measured with them, or scenes of another
    size.
    """
    seeds = range(first_seed, first_seed + count)
    for kind in ("images", "annotations"):
        no_others(folder / kind / "val", {f"{seed}.png" for seed in seeds})
    there = [seed for seed in seeds if all(path.exists() for path in _scene_files(folder, seed))]
    for image_path in (_scene_files(folder, seed)[0] for seed in there):
        if (found := _image_size(image_path) or (size, size)) != (size, size):
            told = f"{image_path} is a scene of {found[0]} x {found[1]} pixels, expected {size} x {size}"
            raise InputError(f"{told}; move {folder} elsewhere, so that it is drawn anew")
    if len(there) == count:
        return 0
    new = 0
    with _drawing(folder):
        for seed in tqdm(seeds, "drawing scenes", disable=None, leave=False):
            image_path, map_path = _scene_files(folder, seed)
            if not (image_path.exists() and map_path.exists()):  # else another process has drawn it meanwhile
                scene = draw_scene(seed, size)
                write_image(map_path, scene.class_map.astype(np.uint8))
                write_image(image_path, scene.image)
                new += 1
    return new


def _scene_files(folder: Path, seed: int) -> tuple[Path, Path]:
    """Where a scene's image and label map lie."""
    return folder / "images" / "val" / f"{seed}.png", folder / "annotations" / "val" / f"{seed}.png"


@contextmanager
def _drawing(folder: Path) -> Iterator[None]:
    """Wait until no other process draws here, then be the one that does; on a drive without locks, both do the work."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".drawing").open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _image_size(path: Path) -> tuple[int, int] | None:
    """(width, height) by the file's header; None when that cannot be read, which is told where the image is used."""
    try:
        return open_image(path).size
    except InputError:
        return None


def no_others(folder: Path, names: set[str]) -> None:
    """InputError when a folder of drawn data holds a visible file or folder that is none of `names`."""
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
    if others := sorted(there - names):
        shown = ", ".join(others[:SHOWN]) + ", …" * (len(others) > SHOWN)
        told = f"{folder} holds {len(others)} files too many ({shown}), which were not drawn here"
        raise InputError(f"{told}; move them elsewhere")


def claim(folder: Path, drawn: Mapping[str, object], names: Collection[str]) -> None:
    """Write drawn.json, which says what decides the data drawn into a folder; names: of the files and folders there.

    InputError when it says something else, or is not there but some of them are: nothing is mixed or overwritten.
    """
    path, told = folder / "drawn.json", json.loads(json.dumps(drawn))
    if path.is_file():
        before = read_json(path, "what a folder of drawn data was drawn with")
        if before != told:
            changed = [name for name in told if not isinstance(before, dict) or before.get(name) != told[name]]
            was = before.get(changed[0]) if isinstance(before, dict) and changed else before
            now = f"{changed[0]} {was!r}, got {told[changed[0]]!r}" if changed else f"{was!r}"
            raise InputError(f"{folder} was drawn with {now}; give another --output, or the same options")
        return
    if there := sorted(name for name in names if (folder / name).exists()):
        raise InputError(f"{folder} holds {', '.join(there)}, which was not drawn here; give another --output")
    write_json(path, told)


# ---------------------------------------------------------------------- what the converters share


def require(root: Path, sources: Mapping[str, str]) -> None:
    """InputError in one line for what does not lie below the data root. sources: {path: where it is published}."""
    missing = [f"{root / path} (from {source})" for path, source in sources.items() if not (root / path).exists()]
    if missing:
        raise InputError(f"missing: {'; '.join(missing)}")


def maps_below(folder: Path, ending: str) -> list[Path]:
    """All label maps with an ending, sorted; InputError when there are none. Hidden ones (macOS's ._NAME) are none."""
    paths = folder.rglob(f"*{ending}")
    found = sorted(p for p in paths if not any(part.startswith(".") for part in p.relative_to(folder).parts))
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
        values = np.array(open_image(path))
    except InputError as error:
        raise InputError(f"{path} is not a readable label map ({error}); unpack it again") from error
    if values.ndim != 2 or values.dtype != np.uint8:
        raise InputError(f"{path} has shape {values.shape}, {values.dtype}; expected one 8-bit channel")
    return values


def write_image(path: Path, pixels: UInt8[np.ndarray, "H W *_"]) -> None:
    """Write a label map or an RGB image in one step, as PNG or (quality 95) as JPEG by the path's ending."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG" if path.suffix == ".jpg" else "PNG", quality=95)
    write_atomically(path, buffer.getvalue())


def write_json(path: Path, content: object) -> None:
    """Write JSON in one step."""
    write_atomically(path, json.dumps(content).encode())


def objects(scene: Scene) -> Iterator[tuple[SceneRegion, Bool[np.ndarray, "S S"]]]:
    """The objects of a scene, from back to front, each with its visible mask."""
    pairs = zip(scene.regions, scene.masks, strict=True)
    return ((region, mask) for region, mask in pairs if region.kind == "object")


def tight_box(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    """[x, y, width, height] in pixels around a mask, as COCO counts them."""
    return list(cv2.boundingRect(mask.astype(np.uint8)))
