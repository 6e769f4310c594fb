"""results.json and results.md say what was measured and what made it."""

import json

import pytest

from eval import results
from eval.results import Results, git_commit, markdown_table, published_figures, published_for, sum_seconds


@pytest.fixture
def example():
    return Results(
        task="semantic segmentation",
        benchmark="voc21",
        backbone="clip-vit-b16",
        metrics={"mIoU": 12.345, "aAcc": 67.0},
        items=7,
        config={"model": {"scale": (1008, 672)}},
        recipe={"name": "semantic", "unit_values": False, "mlp_residual": False},
        per_class={"ship": {"IoU": 11.0}, "a|b": {"IoU": float("nan")}},
        skipped=[{"id": "x.jpg", "reason": "damaged"}],
        seconds={"total": 4.0, "per_stage": {"masks": 3.0}},
        measured=5,
        device={"type": "cpu"},
    )


def test_results_json_has_everything(example, tmp_path):
    example.save(tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["metrics"] == {"mIoU": 12.345, "aAcc": 67.0}
    assert content["images_per_second"] == 1.25
    assert content["per_class"]["a|b"]["IoU"] is None
    assert content["config"]["model"]["scale"] == [1008, 672]
    assert content["recipe"]["name"] == "semantic"
    assert content["versions"]["torch"] == results.torch.__version__
    assert content["commit"]["hash"] == git_commit()["hash"]
    assert content["skipped"] == [{"id": "x.jpg", "reason": "damaged"}]
    assert [f["value"] for f in content["published"]] == [70.9]


def test_the_markdown_marks_published_figures(example):
    text = example.markdown()
    assert "| mIoU | 12.35 |" in text or "| mIoU | 12.34 |" in text
    assert "Published figures (not measured here)" in text
    assert "70.9 mIoU" in text
    assert "| a\\|b |  |" in text
    assert "| x.jpg | damaged |" in text


def test_without_new_items_there_is_no_speed(example):
    example.measured = 0
    assert example.items_per_second is None
    assert "nothing new was run" in example.markdown()


def test_published_figures_are_those_we_know():
    assert {f.value for f in published_for("average8") if f.method == "TextRegion"} == {46.6, 49.5}
    assert {f.value for f in published_for("ade20k") if f.method == "TextRegion"} == {22.8, 27.3}
    assert {f.value for f in published_for("average8")} >= {48.7, 50.7, 57.8, 58.9, 59.5, 63.0}
    assert published_for("ade20k", "openclip-vit-h14")[0].value == 27.3
    assert published_for("tiny") == []
    assert all(f.source and f.unit for f in published_figures())


def test_outside_a_checkout_the_commit_is_unknown(tmp_path):
    assert git_commit(tmp_path) == {"hash": None, "changed": None}


def test_stages_are_summed():
    assert sum_seconds([{"a": 1.0, "b": 2.0}, {"b": 3.0}]) == {"a": 1.0, "b": 5.0}


def test_markdown_table():
    assert markdown_table(["a", "b"], [["1", "x|y"]]) == ["| a | b |", "| --- | --- |", "| 1 | x\\|y |"]
