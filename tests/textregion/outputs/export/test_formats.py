"""Every format read back: by the tool's own reader (pycocotools, supervision, shapely), else by its documented rule."""

import json
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import shapely
import supervision
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from kills import KILLS
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from textregion.outputs.export import EXPORTERS, Dataset, DatasetImage, LabelledObject
from textregion.outputs.export.label_studio import SIZES, brush_code
from textregion.outputs.export.outlines import centre_rings, edge_polygons, edge_polygons_without_holes
from textregion.render import encode_mask
from textregion.tiny.scenes import draw_scene

NAMES = ("dog, red", 'a "b" <c> & d\'s', "狗", "🐶 emoji", "never: there")
HEIGHT, WIDTH = 37, 53
Found = dict[str, list[tuple[str, np.ndarray]]]  # by image: (label, mask)


def drawn() -> dict[str, np.ndarray]:
    """Masks of every awkward kind, by name."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    disc = (rows - 18) ** 2 + (columns - 26) ** 2
    one, corner = np.zeros((HEIGHT, WIDTH), bool), np.zeros((HEIGHT, WIDTH), bool)
    one[11, 7] = corner[-1, -1] = True
    holes = disc < 280
    holes[10:13, 20:22] = holes[20, 20] = holes[21, 21] = holes[15:25, 30:34] = False
    return {
        "hole": (disc < 250) & (disc > 60),
        "several holes": holes,
        "parts": (rows < 5) | ((rows > 20) & (columns % 9 < 3)),
        "touching corners": (rows // 4 + columns // 5) % 2 == 0,
        "one pixel": one,
        "corner pixel": corner,
        "line": rows == 30,
        "border": (rows == 0) | (columns == 0) | (rows == HEIGHT - 1) | (columns == WIDTH - 1),
        "island in a hole": ((disc < 300) & (disc > 150)) | (disc < 20),
        "everything": rows >= 0,
    }


def labelled(mask: np.ndarray, label: str, region: int | None = None) -> LabelledObject:
    code = encode_mask(mask)
    box = tuple(int(value) for value in code["bbox"])
    return LabelledObject(label, 0.75, code["segmentation"], code["area"], box, region)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Three images: all masks in turn, a single one, nothing."""
    objects = [labelled(mask, NAMES[n % 4], n) for n, mask in enumerate(drawn().values())]
    images = [("a b,ü.png", objects), ("0002.v2.jpg", objects[:1]), ("leer.png", [])]
    return Dataset(NAMES, [DatasetImage(n, name, WIDTH, HEIGHT, found) for n, (name, found) in enumerate(images, 3)])


@pytest.fixture
def folder(dataset, tmp_path) -> Path:
    return written(dataset, tmp_path)


def written(dataset: Dataset, folder: Path) -> Path:
    """All formats, as the program writes them."""
    (folder / "images").mkdir()
    for image in dataset.images:
        Image.new("RGB", (image.width, image.height)).save(folder / "images" / image.name)
    for form in EXPORTERS.values():
        for name, content in form(dataset):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    return folder


def wanted(dataset: Dataset) -> Found:
    return {image.name: [(found.label, found.mask) for found in image.objects] for image in dataset.images}


def by_label(found: Found) -> dict[tuple[str, str], np.ndarray]:
    """The union of every label's masks, for formats that tell parts apart as objects."""
    union: dict[tuple[str, str], np.ndarray] = {}
    for image, masks in found.items():
        for label, mask in masks:
            union[image, label] = union.get((image, label), False) | mask
    return union


def same(one: Found, other: Found) -> bool:
    """The same images, labels and masks, to the pixel and in order."""
    return one.keys() == other.keys() and all(
        [label for label, _ in one[name]] == [label for label, _ in other[name]]
        and all((a == b).all() for (_, a), (_, b) in zip(one[name], other[name], strict=True))
        for name in one
    )


def within_a_pixel(one: np.ndarray, other: np.ndarray) -> bool:
    wide = [cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for mask in (one, other)]
    return not (one & ~wide[1]).any() and not (other & ~wide[0]).any()


def of_pycocotools(path: Path) -> Found:
    coco = COCO(path)
    names = {row["id"]: row["name"] for row in coco.loadCats(coco.getCatIds())}
    return {
        image["file_name"]: [
            (names[row["category_id"]], coco.annToMask(row).astype(bool))
            for row in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        ]
        for image in coco.loadImgs(coco.getImgIds())
    }


def of_supervision(read: supervision.DetectionDataset) -> Found:
    return {
        Path(path).name: [
            (read.classes[label], mask)
            for label, mask in zip(found.class_id, found.mask if len(found) else [], strict=True)
        ]
        for path, _, found in read
    }


@pytest.mark.parametrize("name", ["coco.json", "coco_polygons.json"])
def test_pycocotools_reads_the_masks_exactly(dataset, folder, name):
    assert same(of_pycocotools(folder / name), wanted(dataset))
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    assert [image["id"] for image in content["images"]] == [3, 4, 5]
    assert [row["name"] for row in content["categories"]] == list(NAMES)
    for row, found in zip(content["annotations"], dataset.images[0].objects, strict=False):
        assert (row["area"], tuple(row["bbox"]), row["region"]) == (found.area, found.box, found.region)


@pytest.mark.parametrize("name", ["coco.json", "coco_polygons.json"])
def test_supervision_reads_coco(dataset, folder, name):
    check_supervision_reads_coco(dataset, folder, name)


def check_supervision_reads_coco(dataset: Dataset, folder: Path, name: str) -> None:
    read = supervision.DetectionDataset.from_coco(str(folder / "images"), str(folder / name))
    found, expected = of_supervision(read), wanted(dataset)
    assert found.keys() == expected.keys()
    for image, masks in expected.items():
        assert [label for label, _ in found[image]] == [label for label, _ in masks]
        assert all(within_a_pixel(a, b) for (_, a), (_, b) in zip(found[image], masks, strict=True))


def test_supervision_reads_yolo(dataset, folder):
    check_supervision_reads_yolo(dataset, folder)


def check_supervision_reads_yolo(dataset: Dataset, folder: Path) -> None:
    parts = [str(folder / name) for name in ("images", "labels", "data.yaml")]
    read = of_supervision(supervision.DetectionDataset.from_yolo(*parts, force_masks=True))
    assert read.keys() == wanted(dataset).keys()
    found, expected = by_label(read), by_label(wanted(dataset))
    assert found.keys() == expected.keys()
    assert all((found[key] == expected[key]).all() for key in expected)


def test_yolo_as_ultralytics_documents_it(dataset, folder):
    """A line: the class, then x y in 0..1 of a polygon, which is cut to whole pixels and filled, borders included."""
    names = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))["names"]
    assert names == dict(enumerate(NAMES))
    union = {}
    for line in (folder / "labels" / "a b,ü.txt").read_text(encoding="utf-8").splitlines():
        label, *numbers = line.split()
        assert len(numbers) >= 6
        assert all(0 <= float(number) <= 1 for number in numbers)
        polygon = np.array(numbers, np.float32).reshape(-1, 2) * np.array([WIDTH, HEIGHT], np.float32)
        mask = cv2.fillPoly(np.zeros((HEIGHT, WIDTH), np.uint8), [polygon.astype(np.int32)], 1) > 0
        union[names[int(label)]] = union.get(names[int(label)], False) | mask
    expected = {label: mask for (image, label), mask in by_label(wanted(dataset)).items() if image == "a b,ü.png"}
    assert union.keys() == expected.keys()
    assert all((union[label] == expected[label]).all() for label in expected)
    assert (folder / "labels" / "leer.txt").read_text(encoding="utf-8") == ""


def test_supervision_reads_labelme(dataset, folder):
    read = supervision.DetectionDataset.from_labelme(str(folder / "images"), str(folder / "labelme"))
    assert same(of_supervision(read), wanted(dataset))


def of_cvat(path: Path) -> Found:
    """By the documented rule, slowly: runs outside and inside by turns, row by row within the box."""
    found: Found = {}
    for image in ElementTree.parse(path).getroot().iter("image"):
        masks = found.setdefault(image.attrib["name"], [])
        for row in image.iter("mask"):
            mask = np.zeros((int(image.attrib["height"]), int(image.attrib["width"])), bool)
            left, top, width, height = (int(row.attrib[key]) for key in ("left", "top", "width", "height"))
            values = [i % 2 == 1 for i, run in enumerate(row.attrib["rle"].split(",")) for _ in range(int(run))]
            mask[top : top + height, left : left + width] = np.array(values).reshape(height, width)
            masks.append((row.attrib["label"], mask))
    return found


def test_cvat(dataset, folder):
    assert same(of_cvat(folder / "cvat.xml"), wanted(dataset))
    declared = ElementTree.parse(folder / "cvat.xml").getroot().findall("meta/task/labels/label")
    assert tuple(label.findtext("name") for label in declared) == NAMES


def of_brush(code: list[int], size: tuple[int, int]) -> np.ndarray:
    """By the documented rule of rle-pack, bit by bit: the alpha of every pixel."""
    bits = "".join(f"{byte:08b}" for byte in code)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    number, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < number:
        same, count = read(1), read(sizes[read(2)]) + 1
        out += [read(word)] * count if same else [read(word) for _ in range(count)]
    return np.array(out, np.uint8).reshape(*size, 4)[..., 3] == 255


def of_label_studio(dataset: Dataset, tasks: list[dict]) -> Found:
    found: Found = {}
    for task, image in zip(tasks, dataset.images, strict=True):
        results, size = task["predictions"][0]["result"], (image.height, image.width)
        found[image.name] = [(r["value"]["brushlabels"][0], of_brush(r["value"]["rle"], size)) for r in results]
    return found


def test_label_studio(dataset, folder):
    tasks = json.loads((folder / "label_studio.json").read_text(encoding="utf-8"))
    assert same(of_label_studio(dataset, tasks), wanted(dataset))
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=dataset/images/a%20b%2C%C3%BC.png"
    view = ElementTree.parse(folder / "label_studio.xml").getroot()
    assert tuple(label.attrib["value"] for label in view.iter("Label")) == NAMES


def test_label_studio_codes_long_runs():
    mask = np.ones((300, 299), bool)
    mask[200:, 1] = False
    assert (of_brush(brush_code(mask), mask.shape) == mask).all()
    assert max(SIZES) == 16


def of_geojson(folder: Path, image: DatasetImage) -> list[tuple[str, np.ndarray]]:
    """By shapely: which pixels' centres lie in the geometry; it must be valid and of exactly the mask's area."""
    y, x = np.mgrid[: image.height, : image.width] + 0.5
    masks = []
    content = json.loads((folder / "geojson" / f"{image.stem}.geojson").read_text(encoding="utf-8"))
    for feature in content["features"]:
        shape = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert shape.is_valid
        mask = shapely.contains_xy(shape, x, y)
        assert shape.area == mask.sum() == feature["properties"]["area"]
        for polygon in getattr(shape, "geoms", [shape]):
            assert polygon.exterior.is_ccw
            assert not any(hole.is_ccw for hole in polygon.interiors)
        masks.append((feature["properties"]["label"], mask))
    return masks


def test_shapely_reads_geojson(dataset, folder):
    assert same({image.name: of_geojson(folder, image) for image in dataset.images}, wanted(dataset))


def test_geojson_of_a_georeferenced_image():
    """North up, half a metre a pixel: 10 x 4 pixels from (100, 200) are 5 x 2 metres down to y = 198."""
    everything = labelled(np.ones((4, 10), bool), "dog, red")
    image = DatasetImage(1, "a.tif", 10, 4, [everything], (0.5, 0, 100, 0, -0.5, 200), "EPSG:32633")
    ((name, content),) = EXPORTERS["geojson"](Dataset(NAMES, [image]))
    content = json.loads(content)
    shape = shapely.from_geojson(json.dumps(content["features"][0]["geometry"]))
    assert (name, shape.bounds, shape.exterior.is_ccw) == ("geojson/a.geojson", (100, 198, 105, 200), True)
    assert content["crs"]["properties"]["name"] == "EPSG:32633"


def scene_objects(seed: int) -> list[LabelledObject]:
    """A drawn scene's regions with their names made awkward, and one pixel more, somewhere."""
    scene, random = draw_scene(seed, 68), np.random.default_rng(seed)
    ids = scene.region_ids[: 67 - seed % 5, seed % 7 :].astype(int)
    ids[random.integers(len(ids)), random.integers(ids.shape[1])] = len(scene.regions)
    names = [f'{region.name}, "{seed % 3}" 🐶' for region in scene.regions] + ["狗"]
    return [labelled(ids == i, name, i) for i, name in enumerate(names) if (ids == i).any()]


def test_scenes_come_back_from_every_format(tmp_path):
    """TEXTREGION_TEST_KILLS=1 makes it 200 scenes."""
    images = []
    for seed in range(200 if KILLS else 4):
        objects = scene_objects(seed)
        height, width = objects[0].rle["size"]
        images.append(DatasetImage(seed + 1, f"scene {seed}.png", width, height, objects))
    labels = dict.fromkeys(found.label for image in images for found in image.objects)
    dataset = Dataset(tuple(labels), images)
    folder, expected = written(dataset, tmp_path), wanted(dataset)
    for name in ("coco.json", "coco_polygons.json"):
        assert same(of_pycocotools(folder / name), expected)
        check_supervision_reads_coco(dataset, folder, name)
    check_supervision_reads_yolo(dataset, folder)
    read = supervision.DetectionDataset.from_labelme(str(folder / "images"), str(folder / "labelme"))
    assert same(of_supervision(read), expected)
    assert same(of_cvat(folder / "cvat.xml"), expected)
    tasks = json.loads((folder / "label_studio.json").read_text(encoding="utf-8"))
    assert same(of_label_studio(dataset, tasks), expected)
    assert same({image.name: of_geojson(folder, image) for image in images}, expected)
    print(f"{len(images)} scenes, {sum(len(image.objects) for image in images)} masks")


@settings(max_examples=40, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 13), st.integers(1, 11))))
def test_outlines_of_any_mask_are_exact(mask):
    """Filled by the even-odd rule of each reader they give the mask again, and edges are valid polygons."""
    height, width = mask.shape
    y, x = np.mgrid[:height, :width] + 0.5
    polygons = [shapely.Polygon(outer, holes) for outer, *holes in edge_polygons(mask)]
    whole = shapely.MultiPolygon(polygons)
    assert whole.is_valid
    assert whole.area == mask.sum()
    assert (shapely.contains_xy(whole, x, y) == mask).all()
    filled = np.zeros((height, width), np.uint8)
    for ring in centre_rings(mask):
        filled |= cv2.fillPoly(np.zeros_like(filled), [ring.astype(np.int32)], 1)
    assert (filled == mask).all()
    if rings := edge_polygons_without_holes(mask):
        codes = coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], height, width)
        assert (coco_mask.decode(coco_mask.merge(codes)) == mask).all()
        assert all(shapely.Polygon(ring).is_valid for ring in rings)


def test_the_formats_are_these():
    assert set(EXPORTERS) == {"coco", "coco-polygons", "yolo", "label-studio", "cvat", "labelme", "geojson"}


def test_repr_is_short(dataset):
    assert repr(dataset) == "Dataset(3 images, 5 labels)"
    assert repr(dataset.images[1]) == "DatasetImage(0002.v2.jpg, 53 x 37 pixels, 1 objects)"
