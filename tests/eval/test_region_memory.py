"""The evaluation with a region memory: its own images are refused unless told, and the run's identity knows it."""

import os

import numpy as np
import pytest
from index_worlds import QUICK, write_scenes
from PIL import Image

from eval.bench.memory import main as bench
from eval.identity import PLACES
from eval.mm import SegDataSample
from eval.model import TextRegionModel, describe
from eval.semantic import check_memory
from eval.semantic_cli import parser
from textregion.errors import InputError
from textregion.index import RegionIndex
from textregion.masks import SlicMasks
from textregion.tiny.scenes import draw_scene
from utils.tiny.data import EVALUATION_SEED
from utils.tiny.evaluate import tiny_segmenter
from utils.tiny.options import draw_bank, score, with_options
from utils.tiny.options import main as options_table

LABELS = ["sky", "grass"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Scenes 0 to 3 in photos/, of which the first three are in table.lance."""
    place = tmp_path_factory.mktemp("memory")
    write_scenes(place / "photos", range(4))
    RegionIndex.create(place / "table.lance", "tiny", **QUICK).add([place / "photos" / f"{n}.png" for n in range(3)])
    return place


def model(photos, **options):
    quick = {"resize_method": "resize", "masks": "slic", "device": "cpu"}
    return TextRegionModel("tiny", classes=LABELS, memory=photos / "table.lance", **quick, **options)


def test_a_bank_with_the_benchmarks_images_is_refused_unless_told(photos):
    images = [str(photos / "photos" / f"{n}.png") for n in range(4)]
    with pytest.raises(
        InputError, match=r"has 3 of the benchmark's 4 images, first .*0\.png: take photographs from else"
    ):
        check_memory(model(photos), images)
    check_memory(model(photos, memory_may_overlap=True), images)
    check_memory(model(photos), images[3:])


def test_the_model_labels_with_the_memory_and_leaves_out_the_image(photos):
    file = photos / "photos" / "1.png"
    pixels = np.asarray(Image.open(file).convert("RGB"))[:, :, ::-1].transpose(2, 0, 1).copy()
    sample = SegDataSample(metainfo={"img_path": str(file), "ori_shape": (64, 64)})
    found = model(photos, memory_alpha=1.0, return_probabilities=True)
    (labelled,) = found.test_step({"inputs": [pixels], "data_samples": [sample]})
    tokens = found.segmenter.encode_image(str(file))
    by_hand = found.segmenter.segment(
        tokens, found.prompts, memory=found.memory, source=file, return_probabilities=True
    )
    assert by_hand.probabilities is not None
    np.testing.assert_allclose(labelled.seg_logits.data.numpy(), by_hand.probabilities, atol=1e-6)
    assert len(found.memory.left_out(file)) > 0


def test_the_record_of_a_run_knows_the_memory_but_not_its_place(photos):
    told = describe(model(photos, memory_neighbours=7))
    assert told["config"]["memory_neighbours"] == 7
    assert told["memory"]["regions"] > 0
    assert str(photos) not in str(told)
    assert {"memory", "memory_key_checkpoint"} <= set(PLACES)
    assert describe(TextRegionModel("tiny", classes=LABELS, masks="slic", device="cpu"))["memory"] is None


def test_flags_reach_the_model():
    flags = ["--config", "a", "--memory", "t.lance", "--memory_key", "x", "--memory_may_overlap", "--memory_alpha", "1"]
    options = parser().parse_args(flags)
    assert (options.memory, options.memory_key, options.memory_may_overlap) == ("t.lance", "x", True)
    assert options.memory_alpha == 1.0


# ---------------------------------------------------------------------- the programs that print figures


@pytest.fixture
def quick():
    """The tiny models with superpixels for SAM 2's masks and one prompt a word, for time."""
    segmenter = with_options(tiny_segmenter(), templates=1)
    segmenter.mask_generator = SlicMasks()
    return segmenter


def test_a_memory_does_not_lower_the_mean_iou_of_the_tiny_world(quick):
    """Of 5 scenes and a bank of 24, their superpixels: docs/methods.md has the figures of 40, 500 and SAM 2."""
    scenes = [draw_scene(EVALUATION_SEED + n) for n in range(5)]
    tokens = [quick.encode_image(scene.image) for scene in scenes]
    memory = draw_bank(quick, 24)
    plain = score(quick, scenes, tokens, tasks=("17 classes",))["17 classes"]
    supported = score(quick, scenes, tokens, memory, tasks=("17 classes",))["17 classes"]
    assert plain > 0.8
    assert supported >= plain


def test_the_table_of_options_is_printed(quick, monkeypatch, capsys):
    monkeypatch.setattr("utils.tiny.options.tiny_segmenter", lambda: quick)
    assert options_table(["--scenes", "1", "--bank", "1", "--outlines", "--recipes", "corrclip"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("as the preset is", "memory, alpha 0.5, K 20", "recipe corrclip"))
    assert "1 scenes, a memory of 1 others (drawn outlines); it says nothing about photographs" in out


def test_the_benchmark_of_a_memory_prints_its_figures(capsys, tmp_path):
    sizes = ["--rows", "211", "--width", "16", "--regions", "5", "--images", "4", "--labels", "3", "--neighbours", "2"]
    assert bench([*sizes, "--json", str(tmp_path / "figures.json")]) == 0
    out = capsys.readouterr().out
    assert "exact" in out
    assert "1.000" in out  # recall
    assert os.path.getsize(tmp_path / "figures.json") > 100
