"""Scores of the tiny models on fresh scenes: python -m utils.tiny.evaluate --scenes 40

Evaluation scenes have seeds that training never draws. Masks come from sam2's own automatic generator.
"""

import argparse
import functools
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor
from tqdm import tqdm

from textregion.tiny.captions import TEMPLATES
from textregion.tiny.models import CLIP_WEIGHTS, SAM2_WEIGHTS, load_clip, load_sam2
from textregion.tiny.scenes import CLASS_NAMES, Scene, draw_scene
from textregion.tiny.shapes import SHAPES
from textregion.tiny.textures import COLOURS, GROUNDS, TEXTURES
from utils.tiny.clip_features import embed_values, normalise, vision_features
from utils.tiny.scene_cache import EVALUATION_SEED

COVERED = 0.7  # a region counts as covered when some mask has a larger IoU with it
MIN_PIXELS = 120  # smaller regions are not scored
CLIP_NAMES = {
    "colour": [f"{colour} shape" for colour in COLOURS],
    "ground": list(GROUNDS),
    "shape": list(SHAPES),
    "texture": [f"{texture} shape" for texture in TEXTURES],
}


def evaluation_scenes(count: int, easy: bool = True) -> list[Scene]:
    """Scenes that no training has seen."""
    return [draw_scene(EVALUATION_SEED + index, easy=easy) for index in range(count)]


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boolean masks; 0 for two empty ones."""
    return float((first & second).sum() / max(1, (first | second).sum()))


def mean_iou(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean IoU over classes of (true, predicted) maps of class names; pixels are counted over all maps.

    Classes that are never true do not enter the mean, but their pixels count against the others.
    """
    shared, true, predicted = Counter(), Counter(), Counter()
    for truth, guess in pairs:
        for counter, pixels in ((shared, truth[truth == guess]), (true, truth), (predicted, guess)):
            names, counts = np.unique(pixels, return_counts=True)
            counter.update(dict(zip(names.tolist(), counts.tolist(), strict=True)))
    return float(np.mean([shared[name] / (true[name] + predicted[name] - shared[name]) for name in true]))


def mask_generator(model: SAM2Base) -> SAM2AutomaticMaskGenerator:
    """sam2's automatic mask generator on a 16 x 16 grid, with feature sizes set for a small image size."""
    generator = SAM2AutomaticMaskGenerator(
        model,
        points_per_side=16,
        points_per_batch=256,
        pred_iou_thresh=0.6,
        stability_score_thresh=0.6,
        box_nms_thresh=0.9,
    )
    side = model.image_size  # the predictor's own list is fixed for 1024 pixels
    generator.predictor._bb_feat_sizes = [(side // step, side // step) for step in (4, 8, 16)]
    return generator


def generate_masks(generator: SAM2AutomaticMaskGenerator, image: np.ndarray) -> np.ndarray:
    """All masks of an image (S, S, 3), large ones first: (N, S, S) bool."""
    found = sorted(generator.generate(image), key=lambda entry: -entry["area"])
    masks = [entry["segmentation"] for entry in found]
    return np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), bool)


def best_overlaps(scene: Scene, masks: np.ndarray) -> dict[str, list[float]]:
    """For each region of fair size, the IoU of the mask that fits it best, by kind of region."""
    overlaps = defaultdict(list)
    for region, true in zip(scene.regions, scene.masks, strict=True):
        if true.sum() >= MIN_PIXELS:
            overlaps[region.kind].append(max((mask_iou(true, mask) for mask in masks), default=0.0))
    return overlaps


@torch.no_grad()
def stitched_values(clip: CLIP, image: np.ndarray) -> Tensor:
    """Value map of an image (S, S, 3): the whole view plus four tiles, (C, 2g, 2g)."""
    size, half = clip.visual.image_size[0], image.shape[0] // 2
    tiles = [image[y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    views = [cv2.resize(view, (size, size), interpolation=cv2.INTER_AREA) for view in (image, *tiles)]
    values = vision_features(clip.visual, normalise(np.stack(views), size)).values
    grid = clip.visual.grid_size[0]
    maps = values.transpose(1, 2).unflatten(2, (grid, grid))
    rows = [torch.cat([maps[1 + row], maps[2 + row]], dim=2) for row in (0, 2)]
    whole = F.interpolate(maps[:1], scale_factor=2, mode="bilinear", align_corners=False)[0]
    return torch.cat(rows, dim=1) + whole


@torch.no_grad()
def pool_values(clip: CLIP, values: Tensor, masks: np.ndarray) -> Tensor:
    """Unit vectors (N, D) of masks (N, S, S), by summing the value map (C, h, w) under each mask."""
    soft = torch.from_numpy(masks)[:, None].float()
    weights = F.interpolate(soft, size=values.shape[1:], mode="bilinear", align_corners=False, antialias=True)
    return embed_values(clip.visual, torch.einsum("nhw,chw->nc", weights[:, 0], values))


class Vocabulary:
    """Encodes names through all 80 templates, each name once."""

    def __init__(self, clip: CLIP, tokenizer: SimpleTokenizer) -> None:
        self.clip, self.tokenizer = clip, tokenizer
        self._one = functools.cache(self._encode_one)

    @torch.no_grad()
    def _encode_one(self, name: str) -> Tensor:
        tokens = self.tokenizer([template(name) for template in TEMPLATES])
        return F.normalize(F.normalize(self.clip.encode_text(tokens), dim=-1).mean(0), dim=0)

    def encode(self, names: Sequence[str]) -> Tensor:
        """Unit vectors (L, D) of names."""
        return torch.stack([self._one(name) for name in names])


def _truths(scene: Scene, kind: str) -> list[str | None]:
    """The right name of each region for a question of CLIP_NAMES; None where it does not apply."""
    if kind == "ground":
        return [region.name if region.kind == "ground" else None for region in scene.regions]
    said = [getattr(region, kind) for region in scene.regions]
    return [word and (word if kind == "shape" else f"{word} shape") for word in said]


def score_clip(
    vocabulary: Vocabulary, count: int, easy: bool = True, kinds: Sequence[str] = tuple(CLIP_NAMES)
) -> dict[str, float]:
    """Accuracy of value pooling with true masks on fresh scenes, for questions of CLIP_NAMES."""
    clip, hits = vocabulary.clip, {kind: [] for kind in kinds}
    for scene in evaluation_scenes(count, easy):
        features, large = (
            pool_values(clip, stitched_values(clip, scene.image), scene.masks),
            scene.masks.sum((1, 2)),
        )
        for kind in kinds:
            names = CLIP_NAMES[kind]
            guesses = (features @ vocabulary.encode(names).T).argmax(1).tolist()
            truths = zip(_truths(scene, kind), guesses, large >= MIN_PIXELS, strict=True)
            hits[kind] += [names[guess] == truth for truth, guess, scored in truths if truth and scored]
    return {f"{kind} accuracy": float(np.mean(found)) for kind, found in hits.items() if found}


class Case(NamedTuple):
    """A fresh scene and the masks (N, S, S) bool that SAM 2 generates for it, large ones first."""

    scene: Scene
    masks: np.ndarray


def evaluation_cases(model: SAM2Base, count: int, easy: bool = True) -> list[Case]:
    """Evaluation scenes with generated masks."""
    generator = mask_generator(model)
    scenes = tqdm(evaluation_scenes(count, easy), "generating masks", leave=False)
    return [Case(scene, generate_masks(generator, scene.image)) for scene in scenes]


def score_masks(cases: Sequence[Case]) -> dict[str, float]:
    """Shares of objects and grounds that some generated mask covers, and the mean best IoU."""
    overlaps = defaultdict(list)
    for case in cases:
        for kind, found in best_overlaps(case.scene, case.masks).items():
            overlaps[kind] += found
    covered = {f"{kind}s covered": float(np.mean(np.array(found) > COVERED)) for kind, found in overlaps.items()}
    return covered | {f"{kind} best IoU": float(np.mean(found)) for kind, found in overlaps.items()}


def segment(vocabulary: Vocabulary, image: np.ndarray, masks: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Names every pixel (S, S): single patches first, then masks over them in the given order."""
    clip = vocabulary.clip
    values, text = stitched_values(clip, image), vocabulary.encode(names)
    with torch.no_grad():
        scores = text @ embed_values(clip.visual, values.flatten(1).T).T
    scores = scores.view(1, len(names), *values.shape[1:])
    picture = F.interpolate(scores, size=image.shape[:2], mode="bilinear")[0].argmax(0).numpy()
    chosen = (pool_values(clip, values, masks) @ text.T).argmax(1).tolist() if len(masks) else []
    for mask, name in zip(masks, chosen, strict=True):
        picture[mask] = name
    return np.array(names)[picture]


def score_maps(vocabulary: Vocabulary, cases: Sequence[Case]) -> dict[str, float]:
    """Mean IoU from picture to names.

    "own labels": each scene is asked for the names it holds ("red star", "grass"). "17 classes": every scene
    is asked for CLASS_NAMES. "true masks" replaces the generated masks.
    """
    pairs = defaultdict(list)
    for scene, generated in tqdm(cases, "naming pixels", leave=False):
        truths = {"own labels": (scene.labels, scene.label_map), "17 classes": (CLASS_NAMES, scene.class_map)}
        for task, (names, truth) in truths.items():
            for source, masks in (("", generated), (", true masks", scene.masks)):
                guess = segment(vocabulary, scene.image, masks, names)
                pairs[f"mean IoU, {task}{source}"].append((np.array(names)[truth], guess))
    return {name: mean_iou(found) for name, found in pairs.items()}


def main(arguments: list[str] | None = None) -> None:
    """Prints all scores of the shipped models, or of others."""
    parser = argparse.ArgumentParser(prog="python -m utils.tiny.evaluate", description=__doc__)
    parser.add_argument("--scenes", type=int, default=40, help="fresh scenes per world (default: 40)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--clip", type=Path, default=CLIP_WEIGHTS, help="CLIP weights (default: the shipped)")
    parser.add_argument("--sam2", type=Path, default=SAM2_WEIGHTS, help="SAM 2 weights (default: the shipped)")
    parser.add_argument("--world", choices=("easy", "standard", "both"), default="both")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message="cannot import name '_C'")  # sam2's optional CUDA extension
    vocabulary, sam2 = Vocabulary(*load_clip(options.clip)), load_sam2(options.sam2)
    for world in ("easy", "standard") if options.world == "both" else (options.world,):
        easy = world == "easy"
        cases = evaluation_cases(sam2, options.scenes, easy)
        scores = score_masks(cases) | score_clip(vocabulary, options.scenes, easy) | score_maps(vocabulary, cases)
        print(f"{world} world, {options.scenes} scenes")
        print("\n".join(f"  {name:<36}{value:.3f}" for name, value in scores.items()))


if __name__ == "__main__":
    main()
