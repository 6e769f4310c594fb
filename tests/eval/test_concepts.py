"""The method sam3-concepts in the evaluation: the labeller's own maps, its name and thresholds in the record."""

import json

import numpy as np
import pytest
import tiny_transformers
import torch

from eval.mm import SegDataSample
from eval.model import TextRegionModel, describe
from eval.prepare.converters import draw_scenes, scenes_folder
from eval.results import ROOT
from eval.semantic_cli import _command, all_parser, main, main_all
from textregion.concepts import ConceptLabeller
from textregion.errors import InputError

IMAGE = np.random.default_rng(5).integers(0, 256, (61, 83, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Sam3Model in the hub's layout, and two scenes of the tiny world."""
    place = tmp_path_factory.mktemp("concepts")
    tiny_transformers.sam3_concepts().save_pretrained(place / "sam3")
    draw_scenes(scenes_folder(place / "tiny_world", 2, 64), 2, 64)
    return place


def test_the_model_labels_as_the_labeller_does(folder):
    thresholds = {"score_thresh": 0.05, "fallback_thresh": 0.4}
    options = {"method": "sam3-concepts", "sam3_checkpoint": folder / "sam3", "concepts": thresholds}
    model = TextRegionModel(classes=["dog", "grass; sky", "red star"], device="cpu", **options)
    (sample,) = model([torch.from_numpy(IMAGE[..., ::-1].copy()).permute(2, 0, 1)], [SegDataSample()])
    labeller = ConceptLabeller(tiny_transformers.sam3_concepts(), **thresholds)
    expected = labeller.segment(IMAGE, ["dog", "grass; sky", "red star"])
    assert (sample.pred_sem_seg.data[0].numpy() == expected.label_map).all()
    told = describe(model)
    assert told["config"] == {"recipe": "sam3-concepts", **thresholds}
    assert told["queries"] == ["dog", "grass", "sky", "red star"]
    with pytest.raises(InputError, match="got method 'sam3'"):
        TextRegionModel(method="sam3")


def test_the_program_evaluates_it(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TEXTREGION_DATA", str(folder))
    words = ["--config", str(ROOT / "configs/cfg_ds/cfg_tiny.py"), "--device", "cpu"]
    words += ["--method", "sam3-concepts", "--sam3_checkpoint", str(folder / "sam3"), "--work-dir", str(tmp_path)]
    words += ["--cfg-options", "benchmark.scenes=2", "benchmark.size=64", "model.concepts.score_thresh=0.2"]
    assert main(words) == 0
    assert "tiny, sam3-concepts: " in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["backbone"] == "sam3-concepts"
    assert results["config"]["resolved"]["config"]["score_thresh"] == 0.2
    assert results["identity"]["weights"].keys() == {"sam3-concepts"}
    assert results["items"] == 2


def test_all_benchmarks_are_asked_without_a_preset(tmp_path, capsys):
    words = ["--method", "sam3-concepts", "--sam3_checkpoint", "sam3", "--work-dir", str(tmp_path / "all")]
    made = _command(all_parser().parse_args(words), "sam3-concepts", "voc21", tmp_path)
    assert "--preset" not in made
    assert made[made.index("--method") + 1] == "sam3-concepts"
    assert made[made.index("--sam3_checkpoint") + 1] == "sam3"
    assert main_all([*words, "--preset", "tiny"]) == 2
    assert "got --method sam3-concepts and a preset, which it has none of" in capsys.readouterr().err
