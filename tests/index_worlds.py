"""Drawn scenes for region indexes, and what a table holds."""

from pathlib import Path

from PIL import Image

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
