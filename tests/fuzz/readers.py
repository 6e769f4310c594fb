"""Every place where a file from elsewhere is read, with whole files of its kinds: what the hostile ones are made of."""

import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import rasterio
import torch
from PIL import Image
from torch import nn

from eval.journal import Journal
from eval.lvis_data import ANNOTATED, average_precision, read_annotations
from eval.lvis_data import read_boxes as read_lvis_boxes
from eval.mask_cache import load_masks, save_masks
from eval.prepare.converters import read_map
from eval.reasoning import paint, read_answer, read_question
from eval.referring import read_detections, read_splits
from tests.fuzz import mutations
from tests.fuzz.mutations import Mutation
from textregion.backbones.loading import FileTokenizer
from textregion.boxes import boxes_inside, read_boxes
from textregion.checkpoints import read_state
from textregion.cli.jobs import read_labels_file, read_query_cfg
from textregion.errors import InputError
from textregion.images import load_image
from textregion.labels import LabelPrompts
from textregion.masks.given import read_label_map, read_masks
from textregion.masks.hub import load_model
from textregion.masks.sam2_model import build_sam2
from textregion.outputs.folder import RUN_FILE, read_run
from textregion.outputs.georeference import georeference
from textregion.regionspot.loading import SHIPPED_HEAD, load_head, load_published, save_head
from textregion.regionspot.model import RegionSpotHead
from textregion.text import read_class_file
from textregion.tiny.models import SAM2_CONFIG
from textregion.types import RegionMasks, RegionTokens
from textregion.weights import CHECKSUMS, verify
from TextRegionSegmenter import TextRegionSegmenter

SIZE = HEIGHT, WIDTH = (23, 31)  # of the images that masks and boxes belong to
IMAGE = "cam1/0007.jpg"
Seed = tuple[str, bytes, Mutation]  # file name, content of a whole file, how hostile ones are made of it


@dataclass(frozen=True)
class Reader:
    """name: the row of the table. seeds: whole files, made when asked for. read: what is to end well with any file."""

    name: str
    seeds: Callable[[], list[Seed]]
    read: Callable[[Path], object]


def random() -> np.random.Generator:
    """Of the whole files: the same every time."""
    return np.random.default_rng(0)


def hard_masks() -> np.ndarray:
    """(3, H, W) booleans."""
    return random().random((3, *SIZE)) > 0.5


def label_map() -> np.ndarray:
    """(H, W) of four labels."""
    return random().integers(0, 4, SIZE, dtype=np.uint8)


def saved(save: Callable[[Path], object], name: str) -> bytes:
    """What a function writes to a path of that name."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def encoded(image: Image.Image, form: str, **options) -> bytes:
    """An image file in memory."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def as_json(content: object) -> bytes:
    """JSON in UTF-8."""
    return json.dumps(content).encode()


# ---------------------------------------------------------------------- images, masks, boxes


def images() -> list[Seed]:
    """All formats in several codings."""
    picture = Image.fromarray(random().integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    grey, palette = picture.convert("L"), picture.quantize(9)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[274] = 6
    animated = {"save_all": True, "append_images": [picture.rotate(180)], "duration": 50}
    modes = (picture, grey, palette, deep, grey.convert("1"))
    files = [(f"{image.mode}.png", encoded(image, "PNG")) for image in modes]
    files += [("alpha.png", encoded(picture.convert("RGBA"), "PNG", exif=exif))]
    files += [("clear.png", encoded(palette, "PNG", transparency=3)), ("a.apng", encoded(picture, "PNG", **animated))]
    files += [("a.jpg", encoded(picture, "JPEG", exif=exif)), ("b.jpg", encoded(picture, "JPEG", progressive=True))]
    files += [("cmyk.jpg", encoded(picture.convert("CMYK"), "JPEG")), ("a.gif", encoded(picture, "GIF", **animated))]
    files += [("a.webp", encoded(picture, "WEBP")), ("b.webp", encoded(picture, "WEBP", lossless=True, **animated))]
    for coding in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "tiff_adobe_deflate"):
        files.append((f"{coding}.tiff", encoded(picture, "TIFF", compression=coding)))
    files += [
        ("fax.tiff", encoded(grey.convert("1"), "TIFF", compression="group4")),
        ("big.tiff", encoded(picture, "TIFF", big_tiff=True)),
    ]
    files += [("float.tiff", encoded(grey.convert("F"), "TIFF")), ("deep.tiff", encoded(deep, "TIFF"))]
    files += [("a.bmp", encoded(picture, "BMP")), ("b.bmp", encoded(palette, "BMP"))]
    files += [("a.ppm", encoded(picture, "PPM")), ("d.pgm", encoded(deep, "PPM"))]
    files += [("b.pgm", b"P2 3 2 255\n1 2 3 4 5 6\n"), ("c.pbm", b"P1 3 2\n1 0 1 0 1 1\n")]
    seeds = [(name, data, change) for name, data in files for change in (mutations.damage, mutations.sizes(SIZE))]
    return seeds + [(name, data, mutations.png) for name, data in files if name.endswith("png")]


def geotiffs() -> list[Seed]:
    """With a coordinate system by number and by text."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for crs in ("EPSG:32633", "+proj=laea +lat_0=50 +lon_0=11"):
            path = Path(folder, "a.tif")
            form = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": 1, "dtype": "uint8", "crs": crs}
            with rasterio.open(path, "w", **form, transform=(0.5, 0, 100, 0, -0.5, 200)) as file:
                file.write(label_map(), 1)
            files.append(path.read_bytes())
    return [("a.tif", data, change) for data in files for change in (mutations.damage, mutations.sizes(SIZE))]


def label_maps() -> list[Seed]:
    """PNG of 1, 8 and 16 bits, grey or with a palette."""
    grey = Image.fromarray(label_map())
    coloured = grey.copy()
    coloured.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    pictures = (grey, coloured, grey.convert("1"), Image.fromarray(label_map().astype(np.uint16) * 300))
    files = [(f"{image.mode.replace(';', '')}.png", encoded(image, "PNG")) for image in pictures]
    return [(name, data, way) for name, data in files for way in (mutations.png, mutations.damage)]


def npy_of(array: np.ndarray) -> bytes:
    """In numpy's format."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz_of(pack: Callable, **arrays: np.ndarray) -> bytes:
    """In numpy's archive."""
    buffer = io.BytesIO()
    pack(buffer, **arrays)
    return buffer.getvalue()


def arrays() -> list[np.ndarray]:
    """Masks and label maps of several types, rows or columns first."""
    hard = hard_masks()
    return [hard, hard.astype(np.float32), label_map(), np.asfortranarray(hard), hard[:0], hard.astype(np.uint16)]


def npy_files() -> list[Seed]:
    """.npy"""
    return [("a.npy", npy_of(array), mutations.npy) for array in arrays()]


def npz_files() -> list[Seed]:
    """.npz"""
    change = mutations.archive(mutations.npy)
    return [("a.npz", npz_of(pack, masks=a), change) for a in arrays() for pack in (np.savez, np.savez_compressed)]


def reading_masks(path: Path) -> RegionMasks:
    """Masks of an image of SIZE, which must be finite."""
    masks = read_masks(path, SIZE, IMAGE)
    assert bool(masks.soft.isfinite().all()), "masks are not finite"
    return masks


def saved_masks() -> list[Seed]:
    """What `RegionMasks.save` writes."""
    masks = RegionMasks.from_array(hard_masks(), SIZE)
    soft = RegionMasks.from_array(random().random((2, *SIZE), dtype=np.float32), SIZE)
    return [("a.safetensors", saved(one.save, "a.safetensors"), mutations.safetensors) for one in (masks, soft)]


@cache
def segmenter() -> TextRegionSegmenter:
    """The tiny one, without SAM 2's masks."""
    return TextRegionSegmenter.from_preset("tiny", mask_generator="slic", resize_method="resize", device="cpu")


def tokens() -> list[Seed]:
    """What `RegionTokens.save` writes."""
    image = random().integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    regions = segmenter().encode_image(image, masks=hard_masks())
    return [("a.safetensors", saved(regions.save, "a.safetensors"), mutations.safetensors)]


def reading_tokens(path: Path) -> None:
    """Tokens that can be used."""
    result = segmenter().segment(RegionTokens.load(path), ["sky", "grass"])
    assert np.isfinite(result.confidence).all(), "confidence is not finite"


def cached_masks() -> list[Seed]:
    """What the evaluations' cache of masks writes."""
    masks = RegionMasks.from_array(hard_masks(), SIZE)
    data = saved(lambda path: save_masks(path, masks, "key"), "a.safetensors")
    return [("a.safetensors", data, mutations.safetensors)]


POLYGON = [3.0, 2.0, 20.0, 2.0, 20.5, 15.0, 4.0, 18.0]


def coco(masks: bool = True) -> dict:
    """Annotations of three images, the second of which is IMAGE."""
    names = ("cam1/0006.jpg", IMAGE, "cam2/0007.jpg")
    runs = {"size": [HEIGHT, WIDTH], "counts": [50, 100, 30, HEIGHT * WIDTH - 180]}
    shapes = (runs, [POLYGON], [POLYGON, [1, 1, 5, 1, 5, 5]], {"size": [HEIGHT, WIDTH], "counts": "b1P1`01O"})
    rows = []
    for number in range(8):
        row = {"id": number + 1, "image_id": 6 + number % 3, "category_id": 1 + number % 2, "iscrowd": 0}
        row |= {"bbox": [1.0 + number, 2.0, 10.5, 8.0], "area": 84.0, "score": 0.5}
        rows.append({**row, "segmentation": shapes[number % 4]} if masks else row)
    listed = [{"id": 6 + n, "file_name": name, "height": HEIGHT, "width": WIDTH} for n, name in enumerate(names)]
    listed = [{**row, "neg_category_ids": [2], "not_exhaustive_category_ids": []} for row in listed]
    categories = [{"id": 1, "name": "star", "frequency": "f"}, {"id": 2, "name": "ring", "frequency": "r"}]
    return {"images": listed, "annotations": rows, "categories": categories}


def coco_masks() -> list[Seed]:
    """With a list of images, without one, bare shapes."""
    whole = coco()
    bare = [row["segmentation"] for row in whole["annotations"]]
    named = [{**row, "file_name": IMAGE} for row in whole["annotations"][:2]]
    return [("a.json", as_json(content), mutations.json_text) for content in (whole, whole, bare, named)]


def box_files() -> list[Seed]:
    """All layouts, JSON and CSV."""
    whole = coco(masks=False)
    by_image = {"7": {"boxes": [[1, 2, 9, 12]], "scores": [0.9], "labels": [3]}, "8": {"boxes": []}}
    layouts = (whole, whole["annotations"], by_image, [[1, 2, 9, 12], [0, 0, 5, 5]])
    seeds = [("a.json", as_json(content), mutations.json_text) for content in layouts]
    lines = b"x1,y1,x2,y2,score\n1,2,9,12,0.5\n# a\n0 0 5 5 0.25\n"
    return [*seeds, ("a.csv", lines, mutations.text), ("a.txt", b"1;2;9;12\n", mutations.text)]


def reading_boxes(path: Path) -> None:
    """Boxes of an image, checked as they are before use."""
    boxes_inside(read_boxes(path).of(IMAGE).boxes, SIZE)


# ---------------------------------------------------------------------- text


def queries() -> list[Seed]:
    """YAML of images and labels."""
    content = b"a.png: [sky, grass]\ncam1/b.png: sky, grass\nc.png:\n- red star\n- sky; blue\n"
    return [("a.yaml", content, mutations.yaml_text)]


def label_lists() -> list[Seed]:
    """One label a line."""
    return [("a.txt", "sky\r\nred star; star\n# no\nŝ\n".encode(), mutations.text)]


def reading_labels(path: Path) -> None:
    """As the program and as the benchmarks read them; what was read are labels."""
    LabelPrompts.parse(read_labels_file(path))
    read_class_file(path)


def sam2_files() -> list[Seed]:
    """sam2's YAML form."""
    return [("a.yaml", SAM2_CONFIG.read_bytes(), mutations.yaml_text)]


TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {"id": n, "content": word, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for n, word in enumerate(("<pad>", "</s>", "<unk>"))
    ],
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "Unigram",
        "unk_id": 2,
        "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁sky", -2.0], ["▁", -3.0], ["s", -4.0]],
        "byte_fallback": False,
    },
}


def tokenizers() -> list[Seed]:
    """Small ones of SigLIP's kind."""
    words = TOKENIZER | {"model": {"type": "WordLevel", "vocab": {"<pad>": 0, "sky": 1}, "unk_token": "<pad>"}}
    return [("tokenizer.json", as_json(content), mutations.json_text) for content in (TOKENIZER, TOKENIZER, words)]


def reading_tokenizer(path: Path) -> None:
    """A tokenizer that can be used."""
    ids = FileTokenizer(path, 16, "canonicalize")(["sky", "a red star " * 9])
    assert ids.shape == (2, 16)


# ---------------------------------------------------------------------- weights


class Model(nn.Module):
    """What the archives hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Sequential(nn.Linear(5, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two layers."""
        return self.second(self.first(x))


def checkpoints() -> list[Seed]:
    """PyTorch's two formats under several endings, wrapped and not."""
    state = Model().state_dict()
    seeds = []
    for ending, content in (("pt", state), ("pth", {"model": state}), ("bin", {"state_dict": state, "epoch": 3})):
        for is_zip in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
            change = mutations.archive(mutations.pickled) if is_zip else mutations.pickled
            seeds.append((f"a.{ending}", buffer.getvalue(), change))
    return seeds


def safetensors() -> list[Seed]:
    """Plain and wrapped names."""
    from safetensors.torch import save

    state = Model().state_dict()
    wrapped = {f"model.{name}": value for name, value in state.items()}
    return [("a.safetensors", save(one), mutations.safetensors) for one in (state, wrapped)]


PART = "model-00001-of-00001.safetensors"


def indices() -> list[Seed]:
    """The index of weights in parts."""
    places = {"metadata": {"total_size": 9}, "weight_map": dict.fromkeys(Model().state_dict(), PART)}
    return [("model.safetensors.index.json", as_json(places), mutations.json_text)]


def reading_parts(path: Path) -> None:
    """An index beside its only part."""
    from safetensors.torch import save_file

    save_file(Model().state_dict(), path.with_name(PART))
    read_state(path)


def configurations() -> list[Seed]:
    """`config.json` of models of transformers that make masks."""
    from transformers import Sam2Config

    return [("config.json", as_json(Sam2Config().to_dict()), mutations.json_text)]


def reading_configuration(path: Path) -> None:
    """A folder in the hub's layout with the weights of another model: in the end it is always refused."""
    from safetensors.torch import save_file

    save_file(Model().state_dict(), path.with_name("model.safetensors"))
    load_model("Sam2Model", path.parent, "masks")


def scripted() -> list[Seed]:
    """TorchScript."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Model()), buffer)
    return [("a.pt", buffer.getvalue(), mutations.archive(mutations.pickled))]


def head() -> RegionSpotHead:
    """The smallest that fits the tiny CLIP."""
    shipped, _ = load_head(SHIPPED_HEAD)
    return RegionSpotHead(shipped.to_clip.out_features, shipped.projector.out_features, 16, 8)


def own_heads() -> list[Seed]:
    """What `save_head` writes."""
    origin = {"clip": "tiny", "side": 224, "sam": "sam2:tiny"}
    data = saved(lambda path: save_head(path, head(), origin), "a.safetensors")
    return [("a.safetensors", data, mutations.safetensors)]


def published_heads() -> list[Seed]:
    """The form of the authors' checkpoints."""
    state = {f"model.{name}": value for name, value in head().state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"model": state}, buffer)
    return [("a.pth", buffer.getvalue(), mutations.archive(mutations.pickled))]


def checksums() -> list[Seed]:
    """The list of a weights folder that holds only itself."""
    return [(CHECKSUMS, b"0" * 64 + b"  a/model.safetensors\n" + b"1" * 64 + b"  b.pt\n", mutations.text)]


# ---------------------------------------------------------------------- what evaluations read


def journals() -> list[Seed]:
    """The lines of one process."""
    with tempfile.TemporaryDirectory() as folder:
        with Journal.start(folder, {"scale": [3, 2]}) as journal:
            for number in range(3):
                journal.add(f"image {number}", {"intersection": number, "notes": []})
        data = next(Path(folder).glob("*.jsonl")).read_bytes()
    return [("run000-process000.jsonl", data, mutations.json_lines)]


def runs() -> list[Seed]:
    """What says that a folder of results is finished."""
    return [(RUN_FILE, as_json({"fingerprint": {"a": [1]}, "folder": "a", "files": [RUN_FILE]}), mutations.json_text)]


def lvis_files() -> list[Seed]:
    """Annotations of LVIS and COCO."""
    return [("a.json", as_json(coco(masks)), mutations.json_text) for masks in (True, False)]


def reading_lvis(path: Path) -> None:
    """Annotations, their boxes, and their masks as the `lvis` package counts them."""
    annotations = read_annotations(path)
    read_lvis_boxes(ANNOTATED, annotations)
    if annotations.has_masks:
        average_precision(annotations, [], list(annotations.images), "mask")


def lvis_detections() -> list[Seed]:
    """A detector's boxes of the same images."""
    rows = [{key: row[key] for key in ("image_id", "bbox", "score")} for row in coco()["annotations"]]
    by_image = {"7": {"boxes": [[1, 2, 9, 12]], "scores": [0.9]}, "8": {"boxes": []}}
    return [("a.json", as_json(content), mutations.json_text) for content in (rows, by_image)]


def reading_detections(path: Path) -> None:
    """Boxes for the images of `coco`."""
    annotations = path.with_name("annotations.json.kept")
    annotations.write_bytes(as_json(coco()))
    read_lvis_boxes(str(path), read_annotations(annotations))


def expressions() -> list[Seed]:
    """Lines of RefCOCO."""
    line = {"anns": [{"id": 5, "bbox": [1, 2, 9, 9]}], "ann_id": 5, "file_name": "COCO_train2014_000000000007_0.jpg"}
    line |= {"image_id": 7, "sentences": [{"raw": "the red star"}, {"raw": None}]}
    lines = [line, {**line, "ann_id": [5], "image_id": "8"}]
    return [("refcoco_val.jsonl", b"\n".join(map(as_json, lines)) + b"\n", mutations.json_lines)]


def reading_expressions(path: Path) -> None:
    """Lines, which `read_splits` passes over one by one when they are broken."""
    read_splits(path.parent, ["refcoco_val"], "gt")


def proposals() -> list[Seed]:
    """RefCOCO's detected boxes in both forms."""
    forms = {"7": [[1, 2, 9, 9]], "8": []}, [{"image_id": 7, "box": [1, 2, 9, 9]}]
    return [("refcoco_dets_dict.json", as_json(content), mutations.json_text) for content in forms]


def questions() -> list[Seed]:
    """ReasonSeg's annotations and interpreted answers."""
    shapes = [{"label": "target", "points": [[1, 1], [20, 2], [9.5, 20]]}, {"label": "ignore", "points": [[1, 1]]}]
    content = {"text": ["what shines", "the star"], "is_sentence": True, "shapes": shapes, "answers": ["a star", "x"]}
    return [("a.json", as_json(content), mutations.json_text)]


def reading_question(path: Path) -> None:
    """The question, painted, and the answer; either may be refused."""
    try:
        paint(read_question(path).shapes, SIZE)
    except InputError:
        read_answer(path.parent, "val", path.stem)
        raise
    read_answer(path.parent, "val", path.stem)


READERS = (
    Reader("images", images, load_image),
    Reader("GeoTIFF", geotiffs, georeference),
    Reader("label maps", label_maps, read_label_map),
    Reader("label maps to convert", label_maps, read_map),
    Reader("masks: png", label_maps, reading_masks),
    Reader("masks: npy", npy_files, reading_masks),
    Reader("masks: npz", npz_files, reading_masks),
    Reader("masks: safetensors", saved_masks, reading_masks),
    Reader("masks: COCO", coco_masks, reading_masks),
    Reader("masks: cache", cached_masks, lambda path: load_masks(path, "key")),
    Reader("tokens", tokens, reading_tokens),
    Reader("boxes", box_files, reading_boxes),
    Reader("queries (YAML)", queries, read_query_cfg),
    Reader("labels", label_lists, reading_labels),
    Reader("SAM 2 YAML", sam2_files, build_sam2),
    Reader("tokenizer", tokenizers, reading_tokenizer),
    Reader("weights: pt, pth, bin", checkpoints, read_state),
    Reader("weights: safetensors", safetensors, read_state),
    Reader("weights: TorchScript", scripted, read_state),
    Reader("weights: index of parts", indices, reading_parts),
    Reader("models of transformers", configurations, reading_configuration),
    Reader("RegionSpot: own", own_heads, load_head),
    Reader("RegionSpot: published", published_heads, lambda path: load_published(path, segmenter().backbone)),
    Reader("checksums", checksums, lambda path: verify(path.parent)),
    Reader("journal", journals, lambda path: Journal(path.parent, {"scale": [3, 2]}).read()),
    Reader("run.json", runs, lambda path: read_run(path.parent)),
    Reader("LVIS, COCO", lvis_files, reading_lvis),
    Reader("LVIS detections", lvis_detections, reading_detections),
    Reader("RefCOCO lines", expressions, reading_expressions),
    Reader("RefCOCO detections", proposals, lambda path: read_detections(path)),
    Reader("ReasonSeg", questions, reading_question),
)
