"""A small mmseg model with random weights, and miniature data sets."""

import io
from functools import cache

import numpy as np
import pytest
import task_worlds
import torch
from open_clip import SimpleTokenizer
from open_clip.model import CLIP
from PIL import Image

from eval.data import read_classes
from eval.mm import MODELS
from eval.model import TextRegionModel
from textregion.backbones import ClipBackbone
from textregion.masks import SlicMasks
from TextRegionSegmenter import TextRegionSegmenter


@cache
def small_segmenter(global_splits=(1, 1)):
    """Random weights, short texts, superpixels: fast enough for hundreds of labels."""
    torch.manual_seed(3)
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    backbone = ClipBackbone.from_model(CLIP(24, vision, text).eval(), SimpleTokenizer(context_length=20))
    return TextRegionSegmenter(
        backbone,
        SlicMasks(segments=5),
        recipe="semantic",
        scale=(64, 32),
        mask_size="original",
        dense_fallback=True,
        global_splits=global_splits,
        device="cpu",
    )


@pytest.fixture
def one_thread():
    """The test runs on one thread."""
    with task_worlds.one_thread():
        yield


@MODELS.register_module()
class SmallModel(TextRegionModel):
    """The benchmark model around the small segmenter; keeps its predictions by the image's stem."""

    predictions: dict = {}  # noqa: RUF012 (shared with the tests on purpose)

    def __init__(self, classes, names="published", probability_threshold=0.0, global_splits=(1, 1), **_):
        super().__init__(
            segmenter=small_segmenter(tuple(global_splits)),
            classes=read_classes(classes, names),
            probability_threshold=probability_threshold,
        )

    def label(self, sample, regions, pixels=None):
        super().label(sample, regions, pixels)
        if "pred_sem_seg" in sample:
            self.predictions[stem(sample)] = sample.pred_sem_seg.data[0].numpy().copy()


@MODELS.register_module()
class Planted(SmallModel):
    """Predicts what a test has put into `planted`."""

    planted: dict = {}  # noqa: RUF012

    def label(self, sample, regions, pixels=None):
        super().label(sample, regions, pixels)
        sample.pred_sem_seg.data = torch.from_numpy(self.planted[stem(sample)])[None]


def stem(sample):
    return sample.get("img_path", "").rsplit("/", 1)[-1].split(".")[0]


@pytest.fixture
def models():
    """The two classes above, emptied."""
    SmallModel.predictions.clear()
    Planted.planted.clear()
    return {"small": SmallModel, "planted": Planted}


@pytest.fixture(scope="session")
def write_image():
    """write(path, array or size): a PNG or JPEG file, noise when only a size is given."""

    def write(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            content = np.random.default_rng(content).integers(0, 256, (*content, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(content).save(buffer, format="JPEG" if path.suffix == ".jpg" else "PNG")
        path.write_bytes(buffer.getvalue())

    return write
