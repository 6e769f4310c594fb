"""python -m eval.bench fast: what the fast mode and its parts cost on the tiny world, and what they save."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from textregion.labeling import mean_iou
from textregion.presets import FAST_CLICKS, fast_dtype
from textregion.render import markdown_table, text_table
from textregion.segmenter import TextRegionSegmenter
from textregion.tiny.scenes import CLASS_NAMES, Scene, draw_scene

FIRST_SEED = 900_000  # scenes from here on were never trained on
MODES: dict[str, dict[str, Any]] = {
    "normal": {},
    "7 templates": {"templates": 7},
    "1 template": {"templates": 1},
    f"{FAST_CLICKS} x {FAST_CLICKS} clicks": {"points_per_side": FAST_CLICKS},
    "bfloat16": {"dtype": "bfloat16"},
    "--fast": {"fast": True},
}
COLUMNS = ("tiny world", "mean IoU, own labels", "17 classes", "pixels as in normal mode", "an image", "words, once")


@dataclass(frozen=True)
class Mode:
    """One way to label the same scenes. own, classes: mean IoU with a scene's own labels and with the world's 17, 0..1.

    agreement: share of pixels whose label, of the scene's own, is that of the normal mode. image, words: seconds.
    """

    name: str
    own: float
    classes: float
    agreement: float
    image: float
    words: float


def run(scenes: int, device: str = "cpu") -> list[Mode]:
    """Label fresh scenes of the easy world in every mode."""
    drawn = [draw_scene(FIRST_SEED + number) for number in range(scenes)]
    found, normal = [], []
    for name, options in MODES.items():
        mode, maps = label(name, TextRegionSegmenter.from_preset("tiny", device=device, **options), drawn, normal)
        normal = normal or maps
        found.append(mode)
    return found


def label(
    name: str, segmenter: TextRegionSegmenter, drawn: Sequence[Scene], normal: Sequence[np.ndarray]
) -> tuple[Mode, list[np.ndarray]]:
    """One mode's figures and its label maps. normal: those of the normal mode; none: this is it."""
    own, classes, maps, start = [], [], [], time.perf_counter()
    words = sorted({name for scene in drawn for name in scene.labels} | set(CLASS_NAMES))
    segmenter.encode_text(words)
    spent = time.perf_counter() - start
    start = time.perf_counter()
    for scene in drawn:
        tokens = segmenter.encode_image(scene.image)
        maps.append(segmenter.segment(tokens, scene.labels).label_map)
        own.append(mean_iou(maps[-1], scene.label_map, len(scene.labels)))
        known = segmenter.segment(tokens, CLASS_NAMES).label_map
        classes.append(mean_iou(known, scene.class_map, len(CLASS_NAMES)))
    seconds = (time.perf_counter() - start) / len(drawn)
    same = float(np.mean([(a == b).mean() for a, b in zip(maps, normal or maps, strict=True)]))
    return Mode(name, float(np.mean(own)), float(np.mean(classes)), same, seconds, spent), maps


def report(modes: Sequence[Mode], where: str, markdown: bool) -> str:
    """The table, and what it was measured on."""
    rows = [
        [m.name, f"{m.own:.4f}", f"{m.classes:.4f}", f"{m.agreement:.2%}", f"{m.image:.2f} s", f"{m.words:.1f} s"]
        for m in modes
    ]
    lines = markdown_table(COLUMNS, rows) if markdown else [text_table(COLUMNS, rows)]
    return "\n".join([*lines, "", f"--fast on this processor: dtype {fast_dtype()}; measured on {where}"])
