"""The demo without any image: a scene whose truth is known is drawn, labelled and compared."""

import argparse
import hashlib
from pathlib import Path

import numpy as np

from textregion.cli.folders import clear_remains
from textregion.cli.photographs import TINY_NOTE
from textregion.cli.report import print_files, print_seconds, print_shares, spent
from textregion.cli.results import Extras, Found, write_results
from textregion.cli.settings import EXTRAS, fingerprint, run_settings
from textregion.errors import at_least
from textregion.types import Segmentation


def drawn_scene(segmenter, output: Path, args: argparse.Namespace, preset: str) -> None:
    """Draw scene number `args.seed`, label it, compare, write its folder."""
    from textregion.tiny.scenes import draw_scene, mean_iou

    before, seed = dict(segmenter.timer.seconds), args.seed
    at_least("--seed", seed, 0)
    scene = draw_scene(seed, distinct_colours=True)
    tokens = segmenter.encode_image(scene.image)
    result = segmenter.segment(tokens, scene.labels)
    score = mean_iou(result.label_map, scene.label_map, len(scene.labels))
    folder, note = output / f"scene_{seed}", TINY_NOTE if preset == "tiny" else f"preset {preset}"
    found = Found(
        f"scene_{seed}.png",
        scene.image,
        tokens,
        result,
        scene.labels,
        note,
        [("truth", truth(scene.label_map, result.labels).overlay(scene.image))],
        {"scene.png": scene.image},
    )
    settings, content = run_settings(segmenter, args, preset), hashlib.sha256(scene.image.tobytes()).hexdigest()
    run = {
        "fingerprint": fingerprint(settings, tuple(scene.labels), content),
        "image": {"path": f"scene {seed}", "sha256": content},
        "labels": list(scene.labels),
        "settings": settings,
        "seconds": spent(segmenter.timer.seconds, before),
    }
    clear_remains(output)
    write_results(folder, found, segmenter, Extras(**{name: getattr(args, name) for name in EXTRAS}), run)
    print(f"Drew scene {seed}, found {len(tokens)} regions, labelled every pixel: {folder / 'picture.png'}")
    print_shares(result, segmenter.dense_fallback)
    print(f"mean IoU against the known truth: {score:.3f}")
    print_files(folder, run)
    print_seconds(spent(segmenter.timer.seconds, before))
    print(f"({note})")
    program = ".venv/bin/python TextRegionSegmenter.py"
    print(f"Next: another scene            {program} --seed {seed + 1}")
    print(f"      your photo, real weights {program} --image photo.jpg --labels dog sofa floor")


def truth(label_map: np.ndarray, labels: tuple[str, ...]) -> Segmentation:
    """The known label map (H, W) as a result."""
    return Segmentation(label_map, np.ones(label_map.shape, np.float32), label_map * 0, labels)
