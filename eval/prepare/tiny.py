"""Scenes of the tiny world in mmseg's on-disk layout: images/val/*.png, annotations/val/*.png."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from eval.prepare.common import write_map
from textregion.storage import write_atomically
from textregion.tiny.scenes import draw_scene

FOLDER = "tiny_world"
FIRST_SEED = 900_000  # scenes no training has seen


def tiny(root: Path) -> str:
    """40 scenes of 256 x 256 pixels."""
    return f"{draw_scenes(root / FOLDER, 40, 256)} scenes drawn"


def draw_scenes(folder: Path, count: int, size: int, first_seed: int = FIRST_SEED) -> int:
    """Draw what is not there yet; returns how many are new. Pixel value of a label map = index of CLASS_NAMES."""
    new = 0
    for seed in tqdm(range(first_seed, first_seed + count), "drawing scenes", disable=None, leave=False):
        image_path, map_path = (folder / kind / "val" / f"{seed}.png" for kind in ("images", "annotations"))
        if image_path.exists() and map_path.exists():
            continue
        scene = draw_scene(seed, size)
        write_map(map_path, scene.class_map.astype(np.uint8))
        buffer = io.BytesIO()
        Image.fromarray(scene.image).save(buffer, format="PNG")
        write_atomically(image_path, buffer.getvalue())
        new += 1
    return new
