"""Labels, sentences and targets of every kind."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tests.fuzz.case import EITHER, FAST, OUTPUT, REFUSED, WORKS, Case
from textregion.tiny.scenes import draw_scene
from textregion.types import RegionTokens
from TextRegionSegmenter import TextRegionSegmenter

RIGHT = {
    "directional override": ["\u202esky"],
    "one": ["sky"],
    "twice the same": ["sky", "sky", "red shape"],
    "synonyms": ["red star; red shape;;", " sky ;"],
    "spaces around": ["  sky  ", "\tgrass\n"],
    "spaces inside": ["red \t  shape", "a\u00a0b\u3000c"],
    "capitals": ["SKY", "Red SHAPE"],
    "Arabic": ["سماء", "شكل أحمر"],
    "Chinese": ["天空", "红色的形状"],
    "Hebrew and Hindi": ["שמיים", "आकाश"],
    "emoji": ["🌞", "👩‍👩‍👧‍👦", "🏳️‍🌈"],
    "combining": ["e\u0301t\u0308e" + "\u0301" * 40, "Z͑ͫ̓ͪ̂ͫ̽a"],
    "full width": ["ｓｋｙ", "ﬁsh"],
    "numbers and signs": ["1", "-3.5", "%", "{}", "{0}", "\\n", "'", '"', "|", "$HOME", "../x", "<end_of_text>"],
    "special tokens": ["<start_of_text>", "<end_of_text> sky", "<|endoftext|>"],
    "HTML": ["<b>sky</b>", "&amp;", "<script>alert(1)</script>"],
    "long": ["a very " * 100 + "long sky"],
    "300 labels": [f"red shape {i % 20}" for i in range(300)],
    "10,000 labels": [f"sky {i % 40}" for i in range(10_000)],
}
WRONG = {
    "none": [],
    "empty": [""],
    "blank": ["sky", "   "],
    "line break": ["\n"],
    "separators": ["sky", ";"],
    "separators and spaces": [" ; ;\t; "],
    "invisible": ["\u200b"],
    "a word of 100,000 letters": ["x" * 100_000],
    "100,000 words": ["sky " * 100_000],
    "control characters": ["sky", "gr\x07ass\x1b[31m"],
    "NUL": ["sk\0y"],
    "half a surrogate": ["\ud83d"],
    "undecodable byte": ["caf\udce9"],
}
ODD_TYPES = {
    "a string": "sky",
    "None": None,
    "numbers": [1, 2],
    "None inside": ["sky", None],
    "bytes": [b"sky"],
    "nested": [["sky"]],
    "dict": {},
    "number": 3,
    "array": np.array([1.5, 2.5]),
}
ALPHABET = [
    *"ab z;,.\t\n'\"",
    *"éß犬سم",
    "\u0301",
    "\u200d",
    "🐕",
    "\0",
    "\x1b",
    "\ud800",
    "\u202e",
    "\ufeff",
    "\U0010ffff",
]


def cases(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """All label cases, on the command line and in Python."""
    path = folder / "scene.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    from PIL import Image

    Image.fromarray(draw_scene(3, 64).image).save(path)
    mixtures = {f"mixture {i}": mixture(random) for i in range(40)}
    for expected, group in (((WORKS,), RIGHT), ((REFUSED,), WRONG), (EITHER, mixtures)):
        for name, labels in group.items():
            yield Case("labels", f"segment {name}", None, segmenting(labels), expected)
            if len(labels) < 1000:
                command = (*FAST, "--image", str(path), "--labels", *labels, "--output", OUTPUT)
                leading_dash = any(label.startswith("-") for label in labels)
                yield Case("labels", f"--labels {name}", command, None, EITHER if leading_dash else expected)
    for name, labels in ODD_TYPES.items():
        yield Case("labels", f"segment {name}", None, segmenting(labels), (REFUSED,))
        yield Case("labels", f"encode_text {name}", None, lambda s, labels=labels: s.encode_text(labels), (REFUSED,))
    yield from sentences()


def mixture(random: np.random.Generator) -> list[str]:
    """One to four labels of up to twelve characters from all over Unicode."""
    return ["".join(random.choice(ALPHABET, random.integers(0, 13))) for _ in range(random.integers(1, 5))]


def tokens(segmenter: TextRegionSegmenter) -> RegionTokens:
    """Region tokens of a small image, the same every time."""
    return segmenter.encode_image(draw_scene(3, 64).image)


def segmenting(labels: Sequence[str]) -> Callable[[TextRegionSegmenter], object]:
    """`segment`, and that every label index exists."""

    def run(segmenter: TextRegionSegmenter) -> None:
        result = segmenter.segment(tokens(segmenter), labels)
        assert len(result.labels) == len(labels)
        assert np.isfinite(result.confidence).all()
        assert len(result.to_coco_rle()) >= 1

    return run


def sentences() -> Iterator[Case]:
    """Sentences for `refer`, targets for `reason`."""
    right = {"plain": "the red star", "long": "the thing " * 80, "Chinese": "红色的星星", "emoji": "🌟", "signs": "?!"}
    wrong = {"empty": "", "blank": " \t", "None": None, "number": 3, "list": ["a"], "NUL": "a\0", "bytes": b"star"}
    wrong |= {"surrogate": "\ud800", "endless": "x" * 100_000}
    for expected, group in ((WORKS, right), (REFUSED, wrong)):
        for name, text in group.items():
            refer = lambda segmenter, text=text: segmenter.refer(tokens(segmenter), text)  # noqa: E731
            reason = lambda segmenter, text=text: segmenter.reason(tokens(segmenter), text)  # noqa: E731
            yield Case("sentences", f"refer {name}", None, refer, (expected,))
            yield Case("sentences", f"reason {name}", None, reason, (expected,))
    for name, others in {"blank": " ", "number": 3, "NUL": ["a", "b\0"]}.items():
        run = lambda segmenter, others=others: segmenter.reason(tokens(segmenter), "star", others)  # noqa: E731
        yield Case("sentences", f"reason others {name}", None, run, (REFUSED,))
