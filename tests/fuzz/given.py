"""Masks and boxes that somebody else made: arrays, files, command lines."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.fuzz.case import EITHER, OUTPUT, REFUSED, WORKS, Case
from textregion.masks import masks_from_boxes, read_masks
from textregion.storage import write_atomically
from textregion.tiny.scenes import draw_scene
from textregion.types import RegionMasks
from TextRegionSegmenter import TextRegionSegmenter

HEIGHT, WIDTH = SIZE = (47, 61)
PROMPTED = ("--preset", "tiny", "--resize_method", "resize", "--device", "cpu")


def cases(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """All cases of given masks and boxes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scene.png"
    Image.fromarray(picture()).save(path)
    yield from mask_arrays(random)
    yield from mask_files(folder, path, random)
    yield from boxes(path)


@cache
def picture() -> np.ndarray:
    """A drawn scene of an odd size."""
    return draw_scene(3, 64).image[:HEIGHT, :WIDTH].copy()


def encoding(masks: object) -> Callable[[TextRegionSegmenter], object]:
    """`encode_image` with given masks, then labels: nothing may become NaN on the way."""

    def run(segmenter: TextRegionSegmenter) -> None:
        regions = segmenter.encode_image(picture(), masks=masks)
        assert bool(regions.tokens.isfinite().all()), "tokens are not finite"
        result = segmenter.segment(regions, ["sky", "red shape"])
        assert np.isfinite(result.confidence).all(), "confidence is not finite"

    return run


def mask_arrays(random: np.random.Generator) -> Iterator[Case]:
    """(R, h, w) of all sorts."""
    soft = random.random((3, *SIZE)).astype(np.float32)
    hard = soft > 0.5
    right = {"bool": hard, "soft": soft, "uint8": hard.astype(np.uint8), "int64": hard.astype(np.int64)}
    right |= {
        "float64": soft.astype(np.float64),
        "float16": soft.astype(np.float16),
        "one": hard[0],
        "tensor": torch.tensor(hard),
    }
    right |= {"uint16": hard.astype(np.uint16), "uint32": hard.astype(np.uint32), "uint64": hard.astype(np.uint64)}
    right |= {
        "bfloat16": torch.tensor(soft).bfloat16(),
        "none at all": hard[:0],
        "all empty": np.zeros((4, *SIZE), bool),
    }
    right |= {
        "1 x 1": np.ones((2, 1, 1), bool),
        "other size": random.random((2, 94, 122)),
        "regions last": np.moveaxis(hard, 0, 2),
        "labels": random.integers(-2, 4, SIZE),
        "negative": -soft,
        "huge": soft * 1e30,
    }
    right |= {"full": np.ones((2, *SIZE), bool), "one pixel": np.eye(47, 61, dtype=bool)[None], "list": hard.tolist()}
    right |= {
        "reversed": hard[:, ::-1, ::-1],
        "denormal": soft * np.float32(1e-41),
        "many": random.random((300, 9, 9)) > 0.5,
    }
    right |= {
        "big endian": soft.astype(">f4"),
        "huge float64": soft.astype(np.float64) * 1e300,
        "requires grad": torch.tensor(soft, requires_grad=True),
    }
    nan, infinite = soft.copy(), soft.copy()
    nan[1, 5, 5], infinite[2, 0, 0] = np.nan, np.inf
    wrong = {
        "NaN": nan,
        "all NaN": soft * np.nan,
        "infinite": infinite,
        "-infinite": -infinite,
        "NaN float16": nan.astype(np.float16),
    }
    wrong |= {
        "line": soft[0, 0],
        "4 axes": soft[None],
        "number": np.float32(1),
        "no height": hard[:, :0],
        "no width": hard[:, :, :0],
        "other aspect": random.random((2, 301, 7)),
        "transposed": hard.transpose(0, 2, 1),
        "rows first": hard.transpose(1, 0, 2),
        "float labels": random.integers(0, 9, SIZE) * 1.0,
        "long floats": soft.astype(np.longdouble),
    }
    wrong |= {"text": np.array([["a"]]), "objects": np.array([[None]]), "complex": soft * 1j, "ragged": [[[1, 2], [3]]]}
    wrong |= {
        "dates": np.zeros((1, 3, 3), "M8[s]"),
        "a word": "masks.png",
        "dict": {},
        "infinite int tensor": torch.full((1, 2, 2), torch.inf),
    }
    wrong |= {"complex tensor": torch.zeros(1, 3, 3, dtype=torch.complex64), "sparse": torch.eye(3).to_sparse()[None]}
    for expected, group in (((WORKS,), right), ((REFUSED,), wrong)):
        for name, masks in group.items():
            array = lambda segmenter, masks=masks: RegionMasks.from_array(masks, SIZE)  # noqa: E731
            yield Case("masks: arrays", f"from_array {name}", None, array, expected)
            yield Case("masks: arrays", f"encode_image {name}", None, encoding(masks), expected)
    sizes = {"zero": (0, 5), "negative": (-3, 5), "three": (3, 4, 5), "floats": (2.5, 3.5), "None": None, "text": "ab"}
    for name, size in sizes.items():
        array = lambda segmenter, size=size: RegionMasks.from_array(hard, size)  # noqa: E731
        yield Case("masks: arrays", f"image_size {name}", None, array, (REFUSED,))
    for name, given in {"too few": [], "too many": [hard] * 3, "number": 3}.items():
        several = lambda segmenter, given=given: segmenter.encode_images([picture(), picture()], given)  # noqa: E731
        yield Case("masks: arrays", f"encode_images {name}", None, several, (REFUSED,))


def mask_files(folder: Path, image: Path, random: np.random.Generator) -> Iterator[Case]:
    """--masks FILE, and `read_masks`."""
    hard = random.random((3, *SIZE)) > 0.5
    np.save(folder / "right.npy", hard)
    np.savez(folder / "right.npz", masks=hard)
    np.savez(folder / "other_name.npz", a=hard)
    np.save(folder / "nan.npy", np.full((2, *SIZE), np.nan))
    np.save(folder / "pickle.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save(folder / "four_axes.npy", hard[None])
    RegionMasks.from_array(hard, SIZE).save(folder / "right.safetensors")
    RegionMasks.from_array(hard[:, :9, :9], (9, 9)).save(folder / "other_image.safetensors")
    Image.fromarray(hard[0].astype(np.uint8)).save(folder / "right.png")
    Image.fromarray(picture()).save(folder / "colour.png")
    Image.new("L", (9, 9)).save(folder / "other_size.png")
    Image.new("L", (12_000, 9_000)).save(folder / "large.png")
    annotation = RegionMasks.from_array(hard, SIZE)
    rle = [{"size": [*SIZE], "counts": [5, 10, HEIGHT * WIDTH - 15]}]
    texts = {
        "right.json": rle,
        "polygon.json": [[[1, 1, 30, 1, 30, 30]]],
        "none.json": [],
        "annotations.json": {"annotations": rle},
    }
    wrong = {
        "number.json": 3,
        "words.json": ["a"],
        "deep.json": [[[[[1]]]]],
        "null.json": [None],
        "no_list.json": {"a": 1},
    }
    wrong |= {
        "long_counts.json": [{"size": [*SIZE], "counts": [5, 10**9]}],
        "bad_counts.json": [{"size": [*SIZE], "counts": "~~~é"}],
    }
    wrong |= {
        "short_counts.json": [{"size": [*SIZE], "counts": [5]}],
        "negative.json": [{"size": [*SIZE], "counts": [-5, 2872]}],
    }
    wrong |= {"other.json": [{"size": [9, 9], "counts": [81]}], "huge.json": [{"size": [10**9, 10**9], "counts": [1]}]}
    wrong |= {
        "text_size.json": [{"size": ["a", 1], "counts": "a"}],
        "true_counts.json": [{"size": [*SIZE], "counts": [True]}],
    }
    wrong |= {
        "nan_polygon.json": [[[float("nan"), 1, 30, 1, 30, 30]]],
        "far_polygon.json": [[[1e30, -1e30, 30, 1, 30, 30]]],
    }
    for name, content in (texts | wrong).items():
        write_atomically(folder / name, json.dumps(content).encode())
    raw = {
        "broken.json": b"[{",
        "bytes.json": b"\xff\xfe",
        "nested.json": b"[" * 100_000,
        "empty.json": b"",
        "empty.npy": b"",
    }
    raw |= {
        "empty.npz": b"",
        "empty.safetensors": b"",
        "empty_.png": b"",
        "text.npy": b"hello",
        "text.safetensors": b"hello" * 9,
    }
    raw |= {"cut.npy": (folder / "right.npy").read_bytes()[:150], "cut.npz": (folder / "right.npz").read_bytes()[:300]}
    raw |= {
        "cut.safetensors": (folder / "right.safetensors").read_bytes()[:-9],
        "masks.tar": b"x",
        "text.png": b"x" * 99,
    }
    raw |= {
        "claims.npy": b"\x93NUMPY\x01\0v\0"
        + b"{'descr': '|b1', 'fortran_order': False, 'shape': (99999, 99999, 99999), }".ljust(117)
        + b"\n"
    }
    for name, content in raw.items():
        write_atomically(folder / name, content)
    refused = [*wrong, *raw, "other_name.npz", "nan.npy", "pickle.npy", "four_axes.npy", "other_image.safetensors"]
    refused += [
        "colour.png",
        "other_size.png",
        "large.png",
        "absent.npy",
        "",
        "/dev/zero",
        "x" * 300 + ".npy",
        "nul\0.npy",
    ]
    right = [*texts, "right.npy", "right.npz", "right.safetensors", "right.png"]
    for expected, names in ((WORKS, right), (REFUSED, refused)):
        for name in names:
            path = name if name.startswith("/") or not name else str(folder / name)
            read = lambda segmenter, path=path: read_masks(path, SIZE, "scene")  # noqa: E731
            yield Case("masks: files", f"read_masks {name}", None, read, (expected,))
            command = (*PROMPTED, "--image", str(image), "--masks", path, "--labels", "sky", "--output", OUTPUT)
            yield Case("masks: files", f"--masks {name}", command, None, (expected,))
    del annotation


def boxes(image: Path) -> Iterator[Case]:
    """--boxes, and `masks_from_boxes`; the program on few, as SAM 2 has to look first."""
    right = {
        "one": [[5, 5, 40, 40]],
        "two": [[0, 0, 61, 47], [1, 2, 3, 4]],
        "none": [],
        "fractions": [[0.25, 0.5, 0.75, 1.5]],
    }
    wrong = {
        "outside": [[5, 5, 99, 40]],
        "negative": [[-5, 5, 9, 40]],
        "no area": [[5, 5, 5, 9]],
        "reversed": [[40, 40, 5, 5]],
    }
    wrong |= {
        "NaN": [[5, 5, np.nan, 9]],
        "infinite": [[0, 0, np.inf, 9]],
        "three": [[1, 2, 3]],
        "five": [[1, 2, 3, 4, 5]],
    }
    wrong |= {
        "flat": [1, 2, 3, 4],
        "text": [["a", "b", "c", "d"]],
        "ragged": [[1, 2, 3, 4], [1]],
        "None": None,
        "dict": {},
    }
    wrong |= {"huge": [[0, 0, 1e39, 1e39]], "complex": [[1j, 0, 3, 4]], "deep": [[[[1, 2, 3, 4]]]], "word": "1,2,3,4"}
    for expected, group in ((WORKS, right), (REFUSED, wrong)):
        for name, given in group.items():

            def ask(segmenter: TextRegionSegmenter, given: object = given) -> None:
                masks_from_boxes(prompted(), picture(), given)

            yield Case("boxes", f"masks_from_boxes {name}", None, ask, (expected,))
    lines = {"5,5,40,40": WORKS, "0,0,61,47": WORKS, "5,5,99,40": REFUSED, "5,5,5,9": REFUSED, "40,40,5,5": REFUSED}
    lines |= {
        "nan,5,6,7": REFUSED,
        "inf,5,6,7": REFUSED,
        "a,b,c,d": REFUSED,
        "1,2,3": REFUSED,
        ",,,": REFUSED,
        "": REFUSED,
    }
    lines |= {
        "5 5 40 40": REFUSED,
        "1e400,0,3,4": REFUSED,
        "５,5,40,40": EITHER,
        "-1,-1,5,5": WORKS,
        "-2,-1,5,5": REFUSED,
        "1_0,5,40,40": EITHER,
    }
    lines |= {"absent.json": REFUSED, "x" * 300: REFUSED, "/dev/zero": REFUSED, "..": REFUSED}
    for text, expected in lines.items():
        command = (*PROMPTED, "--image", str(image), "--boxes", text, "--labels", "sky", "--output", OUTPUT)
        yield Case("boxes", f"--boxes {text}", command, None, (expected,) if isinstance(expected, str) else expected)


@cache
def prompted() -> TextRegionSegmenter:
    """A segmenter whose SAM 2 answers boxes."""
    return TextRegionSegmenter.from_preset("tiny", resize_method="resize", device="cpu")
