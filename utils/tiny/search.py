"""What region search finds in drawn scenes: python -m utils.tiny.search --scenes 300

Draws scenes, puts their regions into a table (both are kept and taken again), asks for ten things, and compares the
first ten images with what is known to be drawn there. It says nothing about photographs.
"""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("python -m utils.tiny.search", "utils.tiny.search"))

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from textregion.cli.command_line import Parser, positive, run_program
from textregion.index.region_index import RegionIndex
from textregion.render import markdown_table, text_table
from textregion.tiny.scenes import Scene, SceneRegion, draw_scene
from utils.tiny.data import DEFAULT_CACHE

OBJECTS = ("red star", "red shape", "blue shape", "green shape", "orange shape")
WORDS = (*OBJECTS, "sky", "brick", "water", "wood", "snow")
FIRST = 10
COLUMNS = ("words", "images that have it", f"right of the first {FIRST}", "ms an answer")


def region_at(scene: Scene, mask: np.ndarray) -> SceneRegion:
    """What most of a mask, (H, W) bool, shows."""
    return scene.regions[np.bincount(scene.region_ids[mask]).argmax()]


def is_called(region: SceneRegion, words: str) -> bool:
    """Whether the words are a region's name ("red star") or that of its class ("red shape")."""
    return words in (region.name, region.class_name)


def precision(index: RegionIndex, scenes: Mapping[str, Scene], words: str) -> tuple[float, int]:
    """(share of right ones among the first images, how many images have the thing). scenes: by name of file.

    Asked are FIRST images, one region of each, or as many as have it; nan where none has.
    """
    having = sum(any(is_called(region, words) for region in scene.regions) for scene in scenes.values())
    if not having:
        return float("nan"), 0
    hits = index.search(words, top=min(FIRST, having), per_image=1)
    right = [is_called(region_at(scenes[Path(hit.image).name], hit.mask), words) for hit in hits]
    return float(np.mean(right)), having


def measured(index: RegionIndex, scenes: Mapping[str, Scene]) -> list[tuple[str, ...]]:
    """A row per thing asked for, as COLUMNS say. The model is loaded before the first."""
    index.search("anything", top=1)
    rows = []
    for words in WORDS:
        start = time.perf_counter()
        index.search(words, top=FIRST, per_image=1)
        spent = time.perf_counter() - start
        share, having = precision(index, scenes, words)
        rows.append((words, f"{having}", f"{share:.2f}" if having else "–", f"{1000 * spent:.0f}"))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = Parser(prog="python -m utils.tiny.search", description=__doc__)
    parser.add_argument("--scenes", type=positive, default=300, help="scenes that are searched (default: 300)")
    parser.add_argument("--output", type=Path, help="folder of pictures and table (default: in the cache)")
    parser.add_argument("--markdown", action="store_true", help="print the table as it stands in docs/search.md")
    options = parser.parse_args(arguments)
    return run_program(lambda: _run(options), "the same command goes on from there")


def _run(options: argparse.Namespace) -> None:
    output = options.output or DEFAULT_CACHE / f"search-{options.scenes}"
    photos, table = output / "photos", output / "regions.lance"
    photos.mkdir(parents=True, exist_ok=True)
    scenes = {f"{seed}.png": draw_scene(seed) for seed in tqdm(range(options.scenes), "drawing", leave=False)}
    for name in scenes.keys() - {path.name for path in photos.iterdir()}:
        Image.fromarray(scenes[name].image).save(photos / name)
    index = RegionIndex.open(table) if table.exists() else RegionIndex.create(table, "tiny")
    added = index.add(photos, bar=True)
    rows = measured(index, scenes)
    print("\n".join(markdown_table(COLUMNS, rows) if options.markdown else [text_table(COLUMNS, rows)]))
    print(f"{options.scenes} drawn scenes ({added.line()}); it says nothing about photographs")
