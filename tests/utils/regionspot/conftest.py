"""A small world to train on: drawn scenes in LVIS's layout, and the models with random weights."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from textregion.tiny.painting import COLOURS
from textregion.tiny.scenes import draw_scene
from utils.regionspot.data import BoxDataset, read_dataset


@dataclass(frozen=True)
class ColourWorld:
    """Scenes of 64 pixels with up to three objects of different colours; the boxes' names are the colours."""

    folder: Path

    def write(self, name: str, first: int, count: int) -> Path:
        """Draw scenes of these seeds; returns the annotation file."""
        images, annotations = [], []
        (self.folder / name).mkdir()
        for number in range(first, first + count):
            scene = draw_scene(number, 64, 3, distinct_colours=True)
            Image.fromarray(scene.image).save(self.folder / name / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 64})
            for region, mask in zip(scene.regions, scene.masks, strict=True):
                if region.kind == "object":
                    category, box = list(COLOURS).index(region.colour), cv2.boundingRect(mask.astype(np.uint8))
                    annotations.append({"image_id": number, "category_id": category, "bbox": list(box)})
        categories = [{"id": number, "name": f"{colour} shape"} for number, colour in enumerate(COLOURS)]
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        return path

    def read(self, name: str, first: int, count: int) -> BoxDataset:
        """Draw scenes and read them as training does."""
        return read_dataset(name, self.write(name, first, count), self.folder / name)


@pytest.fixture
def colour_world(tmp_path_factory):
    """A folder of the test's own to draw into."""
    return ColourWorld(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """Seven scenes, only read."""
    return ColourWorld(tmp_path_factory.mktemp("few")).read("few", 600_000, 7)
