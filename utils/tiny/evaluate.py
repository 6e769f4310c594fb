"""Scores of the tiny models on fresh scenes, from the segmenter users get: python -m utils.tiny.evaluate --scenes 40

It is that of preset `tiny`. Evaluation scenes have seeds that training never draws.
"""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("python -m utils.tiny.evaluate", "utils.tiny.evaluate"))

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from tqdm import tqdm

from textregion.backbones import ClipBackbone
from textregion.cli.command_line import Parser, run_program
from textregion.labeling import mean_iou
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.presets import find_preset
from textregion.segmenter import TextRegionSegmenter
from textregion.tiny.models import CLIP_WEIGHTS, SAM2_WEIGHTS, load_clip, load_sam2
from textregion.tiny.painting import COLOURS, GROUNDS, SHAPES, TEXTURES
from textregion.tiny.scenes import CLASS_NAMES, Scene, SceneRegion, draw_scene
from textregion.types import RegionTokens
from utils.tiny.data import EVALUATION_SEED, THINGS

COVERED = 0.7  # a region counts as covered when some mask has a larger IoU with it
MIN_PIXELS = 120  # smaller regions are not scored
QUESTIONS: dict[str, list[str]] = {
    "colour": [f"{colour} shape" for colour in COLOURS],
    "ground": list(GROUNDS),
    "shape": list(SHAPES),
    "texture": [f"{texture} shape" for texture in TEXTURES],
}
NAMES = [*dict.fromkeys([*CLASS_NAMES, *(thing.name for thing in THINGS)])]


class EncodedScene(NamedTuple):
    """A scene and its region tokens: of the masks that SAM 2 makes, and of the exact ones."""

    scene: Scene
    generated: RegionTokens
    exact: RegionTokens


def tiny_segmenter(clip: Path = CLIP_WEIGHTS, sam2: Path = SAM2_WEIGHTS) -> TextRegionSegmenter:
    """The segmenter of preset `tiny` around these weights, on the CPU."""
    preset = find_preset("tiny")
    masks = Sam2MaskGenerator(load_sam2(sam2), **preset.masks)
    backbone = ClipBackbone.from_model(*load_clip(clip), name="tiny")
    return TextRegionSegmenter(backbone, masks, device="cpu", **preset.options)


def encode_scenes(segmenter: TextRegionSegmenter, count: int, easy: bool = True) -> list[EncodedScene]:
    """Scenes that no training has seen."""
    scenes = (draw_scene(EVALUATION_SEED + index, easy=easy) for index in range(count))
    return [
        EncodedScene(scene, segmenter.encode_image(scene.image), segmenter.encode_image(scene.image, scene.masks))
        for scene in tqdm(scenes, "encoding scenes", count, leave=False)
    ]


def mask_ious(first: Bool[Tensor, "A H W"], second: Bool[Tensor, "B H W"]) -> Float32[Tensor, "A B"]:
    """Intersection over union of every mask with every other; 0 for two empty ones."""
    first, second = first.flatten(1).float(), second.flatten(1).float()
    shared = first @ second.T
    return shared / (first.sum(1)[:, None] + second.sum(1) - shared).clamp(min=1)


def score_masks(encoded: Sequence[EncodedScene]) -> dict[str, float]:
    """Shares of grounds and objects that some generated mask covers, and the mean best IoU."""
    found = defaultdict(list)
    for scene, generated, _ in encoded:
        ious = mask_ious(torch.from_numpy(scene.masks), generated.masks.binary())
        for region, mask, overlaps in zip(scene.regions, scene.masks, ious.tolist(), strict=True):
            if mask.sum() >= MIN_PIXELS:
                found[region.kind].append(max(overlaps, default=0.0))
    covered = {f"{kind}s covered": float(np.mean(np.array(best) > COVERED)) for kind, best in found.items()}
    return covered | {f"{kind} best IoU": float(np.mean(best)) for kind, best in found.items()}


def right_answer(region: SceneRegion, question: str) -> str | None:
    """The entry of a question's list in QUESTIONS that is right for a region; None where it does not apply."""
    if question == "ground":
        return region.name if region.kind == "ground" else None
    word = getattr(region, question)
    return word if word is None or question == "shape" else f"{word} shape"


def score_names(segmenter: TextRegionSegmenter, encoded: Sequence[EncodedScene]) -> dict[str, float]:
    """How often regions with exact masks are named rightly, for each of QUESTIONS."""
    hits = defaultdict(list)
    for question, names in QUESTIONS.items():
        text = segmenter.encode_text(names)
        for scene, _, tokens in encoded:
            guesses = tokens.similarity(text).argmax(1).tolist()
            for index, guess in zip(tokens.source_index.tolist(), guesses, strict=True):
                answer = right_answer(scene.regions[index], question)
                if answer is not None and scene.masks[index].sum() >= MIN_PIXELS:
                    hits[f"{question} accuracy"].append(names[guess] == answer)
    return {name: float(np.mean(right)) for name, right in hits.items()}


def score_maps(segmenter: TextRegionSegmenter, encoded: Sequence[EncodedScene]) -> dict[str, float]:
    """Mean IoU from picture to names, pixels counted over all scenes.

    "own labels": each scene is asked for the names it holds ("red star", "grass"). "17 classes": every scene
    is asked for CLASS_NAMES. "true masks" are the scene's own, without it those that SAM 2 makes.
    """
    maps = defaultdict(list)
    for scene, generated, exact in tqdm(encoded, "naming pixels", leave=False):
        tasks = ("own labels", scene.labels, scene.label_map), ("17 classes", list(CLASS_NAMES), scene.class_map)
        for task, labels, label_map in tasks:
            places = np.array([NAMES.index(label) for label in labels])
            for masks, tokens in (("", generated), (", true masks", exact)):
                predicted = segmenter.segment(tokens, labels).label_map
                maps[f"mean IoU, {task}{masks}"].append((places[predicted], places[label_map]))
    return {name: mean_iou(*np.concatenate(pairs, axis=1), len(NAMES)) for name, pairs in maps.items()}


def main(arguments: list[str] | None = None) -> int:
    """Prints all scores of the shipped models, or of others; returns the exit code."""
    parser = Parser(prog="python -m utils.tiny.evaluate", description=__doc__)
    parser.add_argument("--scenes", type=int, default=40, help="fresh scenes per world (default: 40)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--clip", type=Path, default=CLIP_WEIGHTS, help="CLIP weights (default: the shipped)")
    parser.add_argument("--sam2", type=Path, default=SAM2_WEIGHTS, help="SAM 2 weights (default: the shipped)")
    parser.add_argument("--world", choices=("easy", "standard", "both"), default="both")
    options = parser.parse_args(arguments)
    return run_program(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    segmenter = tiny_segmenter(options.clip, options.sam2)
    for world in ("easy", "standard") if options.world == "both" else (options.world,):
        encoded = encode_scenes(segmenter, options.scenes, world == "easy")
        scores = score_masks(encoded) | score_names(segmenter, encoded) | score_maps(segmenter, encoded)
        print(f"{world} world, {options.scenes} scenes")
        print("\n".join(f"  {name:<36}{value:.3f}" for name, value in scores.items()))
