"""Results in a notebook and a shell: pictures, and short words instead of tensors."""

import io
from pathlib import Path

import matplotlib.figure
import numpy as np
import torch
from PIL import Image

from textregion.backbones.base import CropFeatures
from textregion.boxes import ANY_IMAGE, BoxesFile, GivenBoxes
from textregion.labels import LabelPrompts
from textregion.masks.base import SOURCES
from textregion.masks.prompts import BoxMaskGenerator, PointMaskGenerator
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.resampling import RegionCrop
from textregion.segmenter import TextRegionSegmenter
from textregion.types import Segmentation

LABEL_MAP = np.repeat(np.array([[0, 0, 1, -1]]), 4, 0)
RESULT = Segmentation(LABEL_MAP, np.ones((4, 4), np.float32), LABEL_MAP, ("dog", "狗, red", "lamp"))


def test_a_notebook_shows_the_labels_in_their_colours():
    with Image.open(io.BytesIO(RESULT._repr_png_())) as picture:
        pixels = np.array(picture)
    assert pixels.shape == (4, 4, 3)
    assert (pixels[3, 3] != pixels[3, 0]).any()
    assert len(set(pixels[3, 0].tolist())) > 1


def test_plot_draws_picture_and_legend_into_given_axes():
    axes = matplotlib.figure.Figure().add_subplot()
    image = np.full((8, 8, 3), 90, np.uint8)
    assert RESULT.plot(image, axes) is axes
    assert (axes.images[0].get_array() == RESULT.overlay(image)).all()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["dog 50%", "狗, red 25%", "no label 25%"]


def test_models_and_sources_tell_no_tensors(tiny_clip, tiny_sam2, small_model):
    clip = "ClipBackbone(tiny, D = 24, crops of 32 pixels)"
    sam2 = Sam2MaskGenerator(tiny_sam2)
    assert repr(tiny_clip) == clip
    assert repr(TextRegionSegmenter(tiny_clip, device="cpu")) == f"TextRegionSegmenter({clip}, masks are given, cpu)"
    assert repr(small_model).startswith(f"RegionSpot({clip}, ")
    assert repr(BoxMaskGenerator(sam2, [[0, 0, 5, 5]])) == "BoxMaskGenerator(1 boxes)"
    assert repr(PointMaskGenerator(sam2, [[0, 0], [5, 5]])) == "PointMaskGenerator(2 regions)"
    for source in SOURCES.values():
        assert len(repr(source.generator.example(tiny_sam2, (40, 60)))) < 300


def test_types_tell_counts_and_sizes():
    boxes = GivenBoxes(np.zeros((2, 4), np.float32))
    crop = RegionCrop.pack(slice(1, 3), slice(2, 6), np.ones((2, 4), bool))
    assert repr(boxes) == "GivenBoxes(2 boxes, without scores)"
    assert repr(BoxesFile(Path("a.json"), {ANY_IMAGE: boxes})) == "BoxesFile('a.json', 2 boxes of any image)"
    assert repr(LabelPrompts.parse(["dog; puppy", "sofa"])) == "LabelPrompts(2 labels, 3 queries: ('dog', 'sofa'))"
    assert repr(crop) == "RegionCrop(8 pixels in rows 1:3, columns 2:6)"
    assert repr(CropFeatures(torch.zeros(3, 5, 7, 7))) == "CropFeatures(3 crops, 7 x 7 patches of 5, dense: False)"
