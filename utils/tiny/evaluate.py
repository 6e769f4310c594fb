"""Scores of the tiny models on fresh scenes, from the segmenter users get: python -m utils.tiny.evaluate --scenes 40

It is that of preset `tiny`. Evaluation scenes have seeds that training never draws.
"""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("python -m utils.tiny.evaluate", "utils.tiny.evaluate"))

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from tqdm import tqdm

from eval.prepare.converters import tight_box
from eval.prepare.tiny_lvis import write_tiny_lvis
from textregion.backbones import ClipBackbone
from textregion.cli.command_line import Parser, positive, run_program
from textregion.labeling import mean_iou
from textregion.masks.prompts import masks_from_boxes, masks_from_points
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.presets import find_preset
from textregion.regionspot.loading import SHIPPED_HEAD, load_regionspot
from textregion.regionspot.model import encode_names
from textregion.segmenter import TextRegionSegmenter
from textregion.tiny.models import CLIP_WEIGHTS, SAM2_WEIGHTS, load_clip, load_sam2
from textregion.tiny.painting import COLOURS, GROUNDS, SHAPES, TEXTURES
from textregion.tiny.scenes import CLASS_NAMES, Scene, SceneRegion, draw_scene
from textregion.types import RegionMasks, RegionTokens
from utils.regionspot.compare import score, textregion_accuracy
from utils.regionspot.data import BoxDataset, TokenCache, read_dataset
from utils.tiny.data import EVALUATION_SEED, THINGS

COVERED = 0.7  # a region counts as covered when some mask has a larger IoU with it
MIN_PIXELS = 120  # smaller regions are not scored
TOLERANCE = 2  # pixels that an outline may be off
WORLDS = ("easy", "standard")
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


def tiny_segmenter(clip: Path = CLIP_WEIGHTS, sam2: Path = SAM2_WEIGHTS, **options: Any) -> TextRegionSegmenter:
    """The segmenter of preset `tiny` around these weights, on the CPU. options: other ones of SegmenterConfig."""
    preset = find_preset("tiny")
    masks = Sam2MaskGenerator(load_sam2(sam2), **preset.masks)
    backbone = ClipBackbone.from_model(*load_clip(clip), name="tiny")
    return TextRegionSegmenter(backbone, masks, device="cpu", **{**preset.options, **options})


def encode_scenes(segmenter: TextRegionSegmenter, count: int, easy: bool = True) -> list[EncodedScene]:
    """Scenes that no training has seen."""
    scenes = (draw_scene(EVALUATION_SEED + index, easy=easy) for index in range(count))
    return [
        EncodedScene(scene, segmenter.encode_image(scene.image), segmenter.encode_image(scene.image, scene.masks))
        for scene in tqdm(scenes, "encoding scenes", count, disable=None, leave=False)
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


def boundary_f(found: Bool[np.ndarray, "H W"], true: Bool[np.ndarray, "H W"], tolerance: float = TOLERANCE) -> float:
    """F-measure of a mask's outline: shares of both outlines within `tolerance` pixels of the other; 0 without one.

    An outline is a mask's own pixels next to others; the picture's border is none.
    """
    outlines = [mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0) for mask in (found, true)]
    if not all(outline.any() for outline in outlines):
        return 0.0
    near = [cv2.distanceTransform((~o).astype(np.uint8), cv2.DIST_L2, 5) <= tolerance for o in outlines]
    precision, recall = near[1][outlines[0]].mean(), near[0][outlines[1]].mean()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def inner_point(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int]:
    """The pixel (x, y) of a mask that is farthest from all others and the picture's border."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def three_clicks(
    mask: Bool[np.ndarray, "H W"], box: Sequence[float], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """The inner point, another pixel of the mask, and one of its box that is not (the inner point where all are)."""
    x, y, width, height = (int(value) for value in box)
    inside, part = np.argwhere(mask), mask[y : y + height, x : x + width]
    outside = np.argwhere(~part) + np.array([y, x])
    chosen = [rng.choice(inside), rng.choice(outside) if len(outside) else rng.choice(inside)]
    return [inner_point(mask), *((int(column), int(row)) for row, column in chosen)]


def score_prompts(sam2: Sam2MaskGenerator, scenes: Sequence[Scene]) -> dict[str, float]:
    """Mean IoU and boundary F of the masks that SAM 2 makes of prompts about each region.

    Of objects: their box, a click inside, and three clicks, the last of them outside; of grounds a click.
    """
    found = defaultdict(list)
    rng = np.random.default_rng(0)

    def add(name: str, masks: RegionMasks, true: Sequence[np.ndarray]) -> None:
        for mask, wanted in zip(masks.binary().numpy(), true, strict=True):
            found[f"{name} IoU"].append((mask & wanted).sum() / (mask | wanted).sum())
            found[f"{name} boundary F"].append(boundary_f(mask, wanted))

    for scene in scenes:
        kinds = [region.kind for region in scene.regions]
        objects, grounds = (
            [mask for kind, mask in zip(kinds, scene.masks, strict=True) if kind == wanted and mask.sum() >= MIN_PIXELS]
            for wanted in ("object", "ground")
        )
        add("ground click", masks_from_points(sam2, scene.image, [inner_point(mask) for mask in grounds]), grounds)
        boxes = [tight_box(mask) for mask in objects]
        corners = [(x, y, x + width, y + height) for x, y, width, height in boxes]
        clicks = [three_clicks(mask, box, rng) for mask, box in zip(objects, boxes, strict=True)]
        labels = [[1, 1, int(mask[y, x])] for mask, (*_, (x, y)) in zip(objects, clicks, strict=True)]
        if objects:
            add("box", masks_from_boxes(sam2, scene.image, corners), objects)
            add("click", masks_from_points(sam2, scene.image, [points[0] for points in clicks]), objects)
            add("three clicks", masks_from_points(sam2, scene.image, clicks, labels, False), objects)
    return {name: float(np.mean(values)) for name, values in found.items()}


def right_answer(region: SceneRegion, question: str) -> str | None:
    """The entry of a question's list in QUESTIONS that is right for a region; None where it does not apply."""
    if question == "ground":
        return region.name if region.kind == "ground" else None
    word = getattr(region, question)
    return word if word is None or question == "shape" else f"{word} shape"


def score_names(segmenter: TextRegionSegmenter, encoded: Sequence[tuple[Scene, RegionTokens]]) -> dict[str, float]:
    """How often regions with exact masks are named rightly, for each of QUESTIONS and for shapes of their own colour.

    encoded: scenes and the tokens of their exact masks.
    """
    hits = defaultdict(list)
    of_colours = {colour: [f"{colour} {shape}" for shape in SHAPES] for colour in COLOURS}
    text = {name: segmenter.encode_text(names) for name, names in {**QUESTIONS, **of_colours}.items()}
    for scene, tokens in encoded:
        guesses = {name: tokens.similarity(vectors).argmax(1).tolist() for name, vectors in text.items()}
        for row, index in enumerate(tokens.source_index.tolist()):
            region = scene.regions[index]
            if scene.masks[index].sum() < MIN_PIXELS:
                continue
            for question, names in QUESTIONS.items():
                if (answer := right_answer(region, question)) is not None:
                    hits[f"{question} accuracy"].append(names[guesses[question][row]] == answer)
            if region.colour is not None:
                guess = of_colours[region.colour][guesses[region.colour][row]]
                hits["shape accuracy, equal colours"].append(guess == region.name)
    return {name: float(np.mean(right)) for name, right in hits.items()}


def exact_tokens(encoded: Sequence[EncodedScene]) -> list[tuple[Scene, RegionTokens]]:
    """What `score_names` takes."""
    return [(scene, exact) for scene, _, exact in encoded]


def score_maps(segmenter: TextRegionSegmenter, encoded: Sequence[EncodedScene]) -> dict[str, float]:
    """Mean IoU from picture to names, pixels counted over all scenes.

    "own labels": each scene is asked for the names it holds ("red star", "grass"). "17 classes": every scene
    is asked for CLASS_NAMES. "true masks" are the scene's own, without it those that SAM 2 makes.
    """
    maps = defaultdict(list)
    for scene, generated, exact in tqdm(encoded, "naming pixels", disable=None, leave=False):
        tasks = ("own labels", scene.labels, scene.label_map), ("17 classes", list(CLASS_NAMES), scene.class_map)
        for task, labels, label_map in tasks:
            places = np.array([NAMES.index(label) for label in labels])
            for masks, tokens in (("", generated), (", true masks", exact)):
                predicted = segmenter.segment(tokens, labels).label_map
                maps[f"mean IoU, {task}{masks}"].append((places[predicted], places[label_map]))
    return {name: mean_iou(*np.concatenate(pairs, axis=1), len(NAMES)) for name, pairs in maps.items()}


def score_boxes(segmenter: TextRegionSegmenter, head: Path, dataset: BoxDataset) -> dict[str, float]:
    """Share of boxes whose colour is recognised by TextRegion's tokens, of SAM 2's masks and of whole boxes, and by a
    trained head's.
    """
    models = segmenter.backbone, segmenter.mask_generator
    shares = {}
    for name, box_masks in (("SAM 2's masks", "sam"), ("whole boxes", "box")):
        other = TextRegionSegmenter(*models, replace(segmenter.config, box_masks=box_masks), device="cpu")
        shares[f"TextRegion, {name}"] = textregion_accuracy(other, dataset)
    regionspot = load_regionspot(*models, head)
    with tempfile.TemporaryDirectory() as folder:
        cache = TokenCache(folder, dataset, regionspot)
        cache.fill(dataset.images)
        found = score(regionspot, cache, encode_names(regionspot.backbone, dataset.names))
    return shares | {"RegionSpot's head": found.accuracy, "RegionSpot's head, tokens shuffled": found.shuffled}


def all_scores(clip: Path, sam2: Path, head: Path, scenes: int, worlds: Sequence[str], boxes: BoxDataset) -> str:
    """Every score of three weight files, one a line."""
    segmenter, lines = tiny_segmenter(clip, sam2), []
    for world in worlds:
        encoded = encode_scenes(segmenter, scenes, world == "easy")
        scores = score_masks(encoded) | score_prompts(segmenter.mask_generator, [one.scene for one in encoded])
        scores |= score_names(segmenter, exact_tokens(encoded)) | score_maps(segmenter, encoded)
        lines += [f"{world} world, {scenes} scenes", *(f"  {name:<36}{value:.3f}" for name, value in scores.items())]
    lines.append(boxes.describe())
    lines += [f"  {name:<36}{value:.3f}" for name, value in score_boxes(segmenter, head, boxes).items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints all scores of the shipped models, or of others; returns the exit code."""
    parser = Parser(prog="python -m utils.tiny.evaluate", description=__doc__)
    parser.add_argument(
        "--scenes", type=positive, default=40, help="fresh scenes per world, and with boxes (default: 40)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--clip", type=Path, default=CLIP_WEIGHTS, help="CLIP weights (default: the shipped)")
    parser.add_argument("--sam2", type=Path, default=SAM2_WEIGHTS, help="SAM 2 weights (default: the shipped)")
    parser.add_argument("--head", type=Path, default=SHIPPED_HEAD, help="RegionSpot head (default: the shipped)")
    parser.add_argument("--world", choices=WORLDS, help="one of the two worlds (default: both)")
    options = parser.parse_args(arguments)
    return run_program(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    worlds = [options.world] if options.world else WORLDS
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_lvis(Path(folder), options.scenes, train_scenes=1)
        boxes = read_dataset("boxes", Path(folder) / "lvis_tiny_val.json", Path(folder) / "images")
        print(all_scores(options.clip, options.sam2, options.head, options.scenes, worlds, boxes))
