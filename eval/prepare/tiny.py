"""Scenes of the tiny world in mmseg's on-disk layout: images/val/*.png, annotations/val/*.png."""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from eval.prepare.converters import write_image
from textregion.storage import write_atomically
from textregion.tiny.scenes import Scene, SceneRegion, draw_scene

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
        write_image(map_path, scene.class_map.astype(np.uint8))
        write_image(image_path, scene.image)
        new += 1
    return new


def objects(scene: Scene) -> Iterator[tuple[SceneRegion, Bool[np.ndarray, "S S"]]]:
    """The objects of a scene, from back to front, each with its visible mask."""
    pairs = zip(scene.regions, scene.masks, strict=True)
    return ((region, mask) for region, mask in pairs if region.kind == "object")


def tight_box(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    """[x, y, width, height] in pixels around a mask, as COCO counts them."""
    return list(cv2.boundingRect(mask.astype(np.uint8)))


def write_json(path: Path, content: object) -> None:
    """Write JSON in one step."""
    write_atomically(path, json.dumps(content).encode())
