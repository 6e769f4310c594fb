"""What the fast mode costs is told on the tiny world, and no benchmark ever uses it."""

import pytest

from eval.bench import fast
from eval.bench.program import main
from eval.results import ROOT
from eval.semantic import load_config
from textregion.presets import fast_dtype, fast_preset, find_preset
from TextRegionSegmenter import TextRegionSegmenter


@pytest.mark.parametrize("path", sorted((ROOT / "configs/cfg_ds").glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_never_use_it(path):
    model = load_config(path).model
    assert not {"fast", "templates"} & set(model)
    assert find_preset(model.preset).options.get("templates", 80) == 80


def test_what_it_is():
    preset = fast_preset(find_preset("clip-vit-l14-336"))
    assert (preset.sam2, preset.masks["points_per_side"], preset.options["templates"]) == ("small", 12, 7)
    tiny = TextRegionSegmenter.from_preset("tiny", device="cpu", fast=True)
    assert (tiny.mask_generator.points_per_side, tiny.config.templates) == (12, 7)
    assert (
        tiny.backbone.dtype == TextRegionSegmenter.from_preset("tiny", device="cpu", dtype=fast_dtype()).backbone.dtype
    )
    own = TextRegionSegmenter.from_preset("tiny", device="cpu", fast=True, points_per_side=9, templates=1, dtype="fp32")
    assert (own.mask_generator.points_per_side, own.config.templates) == (9, 1)
    assert str(own.backbone.dtype) == "torch.float32"


@pytest.mark.parametrize(
    ("known", "dtype"), [({"avx512_bf16": True}, "bfloat16"), ({"avx2": True}, "auto"), ({}, "auto")]
)
def test_bfloat16_only_where_the_processor_has_it(monkeypatch, known, dtype):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: known, raising=False)
    assert fast_dtype() == dtype


def test_the_benchmark_prints_agreement_and_mean_iou(monkeypatch, capsys):
    monkeypatch.setattr(
        fast, "MODES", {"normal": {"points_per_side": 3}, "--fast": {"fast": True, "points_per_side": 2}}
    )
    assert main(["fast", "--scenes", "1", "--device", "cpu", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = {row[1]: row for row in ([cell.strip() for cell in line.split("|")] for line in lines) if len(row) > 4}
    assert cells["normal"][4] == "100.00%"
    assert 0.2 < float(cells["normal"][2]) <= 1
    assert 0.2 < float(cells["--fast"][3]) <= 1
    assert 20 < float(cells["--fast"][4].rstrip("%")) <= 100
