"""Folders, globs, box files, resumed runs and all that may be written besides."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.case import EARLIER, EITHER, FAST, OUTPUT, REFUSED, WORKS, Case
from tests.fuzz.images import encoded, plain_write
from textregion.boxes import read_boxes
from textregion.tiny.scenes import draw_scene

PROMPTED = ("--preset", "tiny", "--resize_method", "resize", "--device", "cpu")


def cases(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """All cases of whole runs."""
    picture = encoded(Image.fromarray(draw_scene(3, 64).image), "PNG")
    for name in ("a.png", "b.png", "[c].png", ".hidden.png", "notes.txt"):
        plain_write(folder / "mixed" / name, picture if name.endswith("png") else b"no image")
    plain_write(folder / "bad" / "a.png", b"no image")
    plain_write(folder / "bad" / "b.png", picture)
    plain_write(folder / "words" / "notes.txt", b"words")
    (folder / "empty").mkdir(exist_ok=True)
    yield from sources(folder)
    yield from extras(folder / "mixed" / "a.png")
    yield from box_files(folder / "boxes", folder / "mixed" / "a.png", random)


def sources(folder: Path) -> Iterator[Case]:
    """--image as a folder or a glob."""
    task = ("--labels", "sky", "grass", "--output", OUTPUT)
    right = {"mixed": 3, "mixed/*.png": 3, "mixed/[c].png": 1, "*/a.png": 0, "mixed/?.png": 2}
    for name, finished in right.items():
        command = (*FAST, "--image", str(folder / name), *task)
        expected = EITHER if finished == 0 else (WORKS,)
        yield Case("runs", f"--image {name}", command, None, expected, finished=finished)
    yield Case("runs", "--image bad", (*FAST, "--image", str(folder / "bad"), *task), None, (REFUSED,), finished=1)
    for name in ("empty", "words", "nothing/*", "[", "**/**/[!]", "mixed/*.txt", "x" * 300 + "*", "nul\0*"):
        command = (*FAST, "--image", str(folder / name), *task[:-1], EARLIER)
        yield Case("runs", f"--image {name[:30]!r}", command, None, (REFUSED,))


def extras(image: Path) -> Iterator[Case]:
    """What may be written or asked for besides, alone and together."""
    task = (*FAST, "--image", str(image), "--output", OUTPUT)
    right = [
        ("--resume",),
        ("--similarity_maps",),
        ("--save_tokens",),
        ("--resume", "--save_tokens", "--similarity_maps"),
    ]
    for words in right:
        yield Case("runs", " ".join(words), (*task, "--labels", "sky", "a/b", "..", "con", *words), None, (WORKS,))
    many = [f"thing {number % 30}" for number in range(120)]
    yield Case("runs", "maps of many labels", (*task, "--labels", *many, "--similarity_maps"))
    wrong = [("--resume", "x"), ("--similarity_maps", "3"), ("--method", "x"), ("--method", "regionspot")]
    wrong += [("--regionspot_checkpoint", "absent.pth"), ("--max_pixels", "x"), ("--port", "x"), ("--serve", "x")]
    for words in wrong:
        command = (*FAST, "--image", str(image), "--output", EARLIER, "--labels", "sky", *words)
        yield Case("runs", " ".join(words), command, None, (REFUSED,))
    both = (*task, "--labels", "sky", "--labels_file", str(image))
    yield Case("runs", "labels twice", both, None, (REFUSED,))


def box_files(folder: Path, image: Path, random: np.random.Generator) -> Iterator[Case]:
    """--boxes FILE, and `read_boxes`."""
    one = [5, 5, 40, 40]
    right = {"list.json": [one], "by_image.json": {"a": {"boxes": [one], "scores": [0.5]}}}
    right |= {"coco.json": {"annotations": [{"bbox": one, "image_id": 7}], "images": [{"id": 7, "file_name": "a.png"}]}}
    wrong = {"number.json": 3, "null.json": None, "words.json": ["a"], "dict.json": {}, "three.json": [[1, 2, 3]]}
    wrong |= {
        "text.json": [["a", "b", "c", "d"]],
        "nan.json": [[float("nan"), 1, 2, 3]],
        "outside.json": [[0, 0, 999, 999]],
    }
    wrong |= {"reversed.json": [[40, 40, 5, 5]], "huge.json": [[0, 0, 1e300, 1e300]], "nested.json": [[[one]]]}
    wrong |= {"other_image.json": {"zebra": {"boxes": [one]}}, "scores.json": {"a": {"boxes": [one], "scores": [1, 2]}}}
    wrong |= {"no_bbox.json": {"annotations": [{"image_id": 7}], "images": []}}
    contents = {name: json.dumps(content).encode() for name, content in (right | wrong).items()}
    contents |= {"right.csv": b"x1,y1,x2,y2\n5,5,40,40\n", "bare.csv": b"5,5,40,40\n"}
    contents |= {"empty.csv": b"", "commas.csv": b",,,\n"}
    raw = {
        "words.csv": b"a,b,c\n",
        "bytes.csv": b"\xff\xfe",
        "zeros.csv": bytes(99),
        "cut.json": b"[[1,2",
    }
    raw |= {
        "deep.json": b"[" * 100_000,
        "long.csv": b"1,2,3,4,5,6,7\n",
        "noise.json": random.bytes(99),
    }
    for name, content in (contents | raw).items():
        plain_write(folder / name, content)
        expected = (
            (WORKS,) if name in right or name in ("right.csv", "bare.csv", "empty.csv", "commas.csv") else (REFUSED,)
        )
        command = (
            *PROMPTED,
            "--image",
            str(image),
            "--labels",
            "sky",
            "--boxes",
            str(folder / name),
            "--output",
            OUTPUT,
        )
        yield Case("box files", f"--boxes {name}", command, None, expected)
        yield Case("box files", f"read_boxes {name}", None, lambda _, path=folder / name: read_boxes(path))
