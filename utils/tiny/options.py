"""What each option beyond the paper does to the tiny world: python -m utils.tiny.options --scenes 40 --bank 500

Mean IoU of fresh scenes by the segmenter of preset `tiny`, one row an option (docs/methods.md). The region memory
is of other scenes, unlabelled. It says nothing about photographs.
"""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("python -m utils.tiny.options", "utils.tiny.options"))

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from textregion.cli.command_line import Parser, positive, run_program
from textregion.index.memory import RegionMemory
from textregion.labeling import mean_iou
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.pooling import RECIPES
from textregion.presets import find_preset
from textregion.render import markdown_table, text_table
from textregion.segmenter import TextRegionSegmenter
from textregion.tiny.models import load_sam2
from textregion.tiny.scenes import CLASS_NAMES, Scene, draw_scene
from textregion.types import RegionMasks, RegionTokens
from utils.tiny.data import EVALUATION_SEED
from utils.tiny.evaluate import NAMES, tiny_segmenter

BANK_SEED = EVALUATION_SEED + 50_000  # far from the scenes that are scored, and from those that training draws
MEMORY: list[tuple[str, dict[str, Any]]] = [
    ("memory, alpha 0.5, K 20", {"memory_alpha": 0.5, "memory_neighbours": 20}),
    ("memory, alpha 0.5, K 5", {"memory_alpha": 0.5, "memory_neighbours": 5}),
    ("memory, alpha 1, K 20", {"memory_alpha": 1.0, "memory_neighbours": 20}),
]
LABELLING: list[tuple[str, dict[str, Any]]] = [
    ("mode_per_mask", {"mode_per_mask": True}),
    ("no dense fallback", {"dense_fallback": False}),
]
TASKS = ("own labels", "17 classes")
COLUMNS = ("option", *(f"mean IoU, {task}" for task in TASKS))


def masks_of(segmenter: TextRegionSegmenter, scene: Scene) -> RegionMasks:
    """The masks that SAM 2 makes of a scene: once, for all recipes."""
    assert segmenter.mask_generator is not None
    resized, size = segmenter.resize(scene.image), scene.image.shape[:2]
    return segmenter.mask_generator.generate(resized, size, segmenter.mask_full_size(size, resized.shape[:2]))


def with_options(segmenter: TextRegionSegmenter, **options: Any) -> TextRegionSegmenter:
    """The same models with other options."""
    config = replace(segmenter.config, **options)
    return TextRegionSegmenter(segmenter.backbone, segmenter.mask_generator, config, device="cpu")


def encoded(segmenter: TextRegionSegmenter, scenes: Sequence[tuple[Scene, RegionMasks]]) -> list[RegionTokens]:
    """Region tokens of scenes, by the segmenter's recipe."""
    return [segmenter.encode_image(scene.image, masks) for scene, masks in scenes]


def draw_bank(segmenter: TextRegionSegmenter, scenes: int, outlines: bool = False) -> RegionMemory:
    """A memory of scenes that are not scored. outlines: of the drawn regions, which takes no SAM 2, not its masks."""
    images = {}
    for index in tqdm(range(scenes), "encoding the bank", leave=False):
        scene = draw_scene(BANK_SEED + index)
        masks = scene.masks if outlines else masks_of(segmenter, scene)
        images[str(index)] = segmenter.encode_image(scene.image, masks)
    return RegionMemory.from_tokens(images)


def score(
    segmenter: TextRegionSegmenter,
    scenes: Sequence[Scene],
    tokens: Sequence[RegionTokens],
    memory: RegionMemory | None = None,
    tasks: Sequence[str] = TASKS,
) -> dict[str, float]:
    """Mean IoU over all pixels of all scenes: each asked for the names it holds ("own labels"), for the 17 classes."""
    found: dict[str, list] = {task: [] for task in tasks}
    for scene, regions in zip(scenes, tokens, strict=True):
        asked = dict(zip(TASKS, ((scene.labels, scene.label_map), (list(CLASS_NAMES), scene.class_map)), strict=True))
        for task in tasks:
            labels, label_map = asked[task]
            places = np.array([NAMES.index(label) for label in labels])
            # no file is empty, so no scene of the bank is taken for this one
            predicted = segmenter.segment(regions, labels, memory=memory, source=b"").label_map
            found[task].append((places[predicted], places[label_map]))
    return {task: mean_iou(*np.concatenate(pairs, axis=1), len(NAMES)) for task, pairs in found.items()}


def table(
    segmenter: TextRegionSegmenter, scenes: int, bank: int, recipes: Sequence[str], outlines: bool = False
) -> list[tuple[str, dict[str, float]]]:
    """(option, its scores by task). scenes: that are scored. bank: those of the memory, whose
    regions are SAM 2's, or with `outlines` the drawn ones.
    """
    drawn = [draw_scene(EVALUATION_SEED + index) for index in range(scenes)]
    given = [(scene, masks_of(segmenter, scene)) for scene in tqdm(drawn, "masks", leave=False)]
    tokens = encoded(segmenter, given)
    rows = [("as the preset is", score(segmenter, drawn, tokens))]
    for name, options in LABELLING:
        rows.append((name, score(with_options(segmenter, **options), drawn, tokens)))
    if bank:
        memory = draw_bank(segmenter, bank, outlines)
        for name, options in MEMORY:
            rows.append((name, score(with_options(segmenter, **options), drawn, tokens, memory)))
    for recipe in recipes:
        if recipe != segmenter.config.recipe.name:
            other = with_options(segmenter, recipe=recipe)
            rows.append((f"recipe {recipe}", score(other, drawn, encoded(other, given))))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = Parser(prog="python -m utils.tiny.options", description=__doc__)
    parser.add_argument("--scenes", type=positive, default=40, help="scenes that are scored (default: 40)")
    parser.add_argument("--bank", type=int, default=500, help="other scenes, of the memory; 0: none (default: 500)")
    parser.add_argument("--recipes", nargs="*", choices=(*RECIPES,), default=[*RECIPES], help="(default: all)")
    outlines = "the memory's regions are the drawn ones, without labels: a twentieth of the time"
    parser.add_argument("--outlines", action="store_true", help=outlines)
    clicks = "clicks a side, of SAM 2 (default: the preset's)"
    parser.add_argument("--points_per_side", type=positive, help=clicks)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--markdown", action="store_true", help="print the table as it stands in docs/methods.md")
    options = parser.parse_args(arguments)
    return run_program(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    segmenter = tiny_segmenter()
    if options.points_per_side:
        masks = {**find_preset("tiny").masks, "points_per_side": options.points_per_side}
        segmenter.mask_generator = Sam2MaskGenerator(load_sam2(), **masks)
    scored = table(segmenter, options.scenes, options.bank, options.recipes, options.outlines)
    rows = [(name, *(f"{scores[task]:.3f}" for task in TASKS)) for name, scores in scored]
    lines = markdown_table(COLUMNS, rows) if options.markdown else [text_table(COLUMNS, rows)]
    print("\n".join(lines))
    kind = "drawn outlines" if options.outlines else "SAM 2's masks"
    print(f"{options.scenes} scenes, a memory of {options.bank} others ({kind}); it says nothing about photographs")
