"""Drawn scenes for region indexes, and what a table holds."""

import os
import threading
from pathlib import Path

from PIL import Image

from textregion.errors import InputError
from textregion.index import RegionIndex
from textregion.tiny.scenes import draw_scene

QUICK = {"mask_generator": "slic", "resize_method": "resize", "device": "cpu"}


def write_scenes(folder: Path, seeds, size: int = 64) -> Path:
    """Scenes as PNG files that are called by their seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        Image.fromarray(draw_scene(seed, size).image).save(folder / f"{seed}.png")
    return folder


def contents(index: RegionIndex) -> list[tuple]:
    """Every row in one order, tokens as text."""
    rows = index.tables.regions.to_arrow().to_pylist()
    return sorted((row["image"], row["region"], tuple(row["box"]), str(row["token"])) for row in rows)


class Doubler:
    """Loads a number, doubles it; ends its process at one of them."""

    def __init__(self, deadly: int | None = None, bad: int | None = None) -> None:
        self.deadly, self.bad, self.batches = deadly, bad, []

    def load(self, item: int) -> tuple[int, str]:
        return item, threading.current_thread().name

    def work(self, loaded: list) -> list:
        self.batches.append(len(loaded))
        numbers = [number for number, _ in loaded]
        if self.deadly in numbers:
            os._exit(1)
        if self.bad in numbers:
            raise InputError(f"got {self.bad}")
        return [2 * number for number in numbers]
