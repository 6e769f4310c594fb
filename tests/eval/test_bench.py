"""The benchmark's own arithmetic and its comparisons at tiny sizes; nothing here looks at how long something took."""

import json

import numpy as np
import pytest
import tiny_models
import torch

from eval.bench import cases
from eval.bench.__main__ import floor_seconds, jobs, main, parse_arguments, report, total
from eval.bench.measure import Row, Side, compare, measured
from eval.bench.options import Options, patch_grid, soft_masks
from textregion.errors import InputError

SMALL = Options("pe-core-t16-384", size=(400, 800), regions=7, labels=5, limit=2**22)
ROW = Row("a", Side(0.5, 10.0, 1.0), Side(6.0, 400.0, 0.25), 1e-6, 989e9, 4.8e6, "sizes")


def both(case: cases.Case) -> float:
    with torch.inference_mode():
        ours, obvious = ([np.asarray(result)] for result in (case.ours(), case.obvious()))
    return case.difference(ours, obvious)


@pytest.mark.parametrize("preset", ["pe-core-t16-384", "siglip2-b32-256", "clip-vit-b32"])
def test_pooling_agrees_on_the_part_that_fits(preset):
    case = cases.Pool(Options(preset, size=(400, 800), regions=7, limit=2**21))
    regions = len(case.weights)
    assert case.share == case.part / regions < 1
    with torch.inference_mode():
        assert len(case.obvious()) == case.part < len(case.ours()) == regions
    assert both(case) < 1e-5


def test_a_smaller_limit_gives_a_smaller_part():
    few, all_of_them = (cases.Pool(Options("clip-vit-b32", regions=7, limit=limit)) for limit in (1, 2**33))
    assert (few.part, all_of_them.part) == (1, 7)
    one_pixel = cases.Postprocess(Options("clip-vit-b32", regions=3, labels=5, size=(20, 30), limit=4 * 5 * 7))
    assert one_pixel.share == 1 / 600
    assert one_pixel.obvious().shape == (1, 1)


@pytest.mark.parametrize("case", [cases.Removal, cases.Postprocess])
def test_other_comparisons_agree(case):
    assert both(case(SMALL)) < 1e-4


def test_fusion_counts_masks_in_other_groups():
    case = cases.Fusion(Options("clip-vit-b32", size=(67, 89), regions=23))
    assert both(case) == 0
    assert 1 < len(set(case.ours().tolist())) < 23
    assert case.difference([np.array([0, 0, 2, 3])], [np.array([0, 1, 2, 3])]) == 0.25
    assert both(cases.LowFusion(case.options)) <= 0.1


@pytest.mark.parametrize("case", [cases.Text, cases.Encode])
def test_comparisons_of_whole_models(case, monkeypatch):
    monkeypatch.setattr(cases, "backbone_of", lambda options: tiny_models.clip())
    made = case(Options("clip-vit-b32", size=(64, 96), labels=20))
    assert both(made) < 2e-5
    if case is cases.Text:
        assert (made.share, made.own_share) == (4 / 20, 16 / 20)
        assert "positions a prompt on average" in made.note


def test_synthetic_masks_are_soft_and_the_same_every_time():
    masks = soft_masks(41, 64)
    assert masks.shape == (41, 64, 64)
    assert masks.dtype == torch.float16
    assert torch.equal(masks, soft_masks(41, 64))
    assert (masks.amax((1, 2)) > 0).all()
    assert 0 <= masks.min() <= masks.max() <= 3


def test_the_grid_is_the_tilings():
    assert patch_grid(Options("pe-core-l14-336")) == (48, 72)
    assert patch_grid(Options("siglip2-l16-256")) == (32, 48)


# ---------------------------------------------------------------- measuring


def test_the_peak_is_what_a_call_takes_beyond_its_inputs():
    kept = torch.ones(2**24)  # 64 MB that were there before
    seconds, peak, result = measured(lambda: (kept * 2).sum(), torch.device("cpu"))
    assert seconds > 0
    assert 2**25 < peak < 2**27
    assert float(result) == 2**25


def test_what_a_process_refuses_is_said_here():
    with pytest.raises(InputError, match="unknown preset 'no-such'"):
        compare(cases.Removal, Options("no-such"), 1)


def test_ratios_floor_and_sum():
    assert ROW.speed == 12
    assert ROW.saving == 40
    assert floor_seconds(ROW) == pytest.approx(1e-3)
    network = Row("b", Side(2.0, 30.0, 1.0), None, None, 0.0, 9.6e9, "")
    assert network.speed is network.saving is None
    whole = total([ROW, network])
    assert (whole.ours.seconds, whole.obvious.seconds) == (2.5, 8.0)
    assert (whole.ours.megabytes, whole.obvious.megabytes) == (30.0, 400.0)
    text = report([ROW, network, whole], "a machine", markdown=True)
    assert "| a | 500 ms | 6.0 s * | 12.0× | 10 MB | 400 MB * | 40.0× | 1.0e-06 | 1 ms |" in text
    assert "| b | 2.0 s | – | – | 30 MB | – | – | – | 2 ms |" in text
    assert "* run on a part and scaled to the whole" in text
    assert report([network], "a machine", markdown=False).endswith("measured on a machine")


# ---------------------------------------------------------------- the program


def test_which_comparisons_are_run():
    def chosen(*arguments):
        return [case.title(options) for case, options in jobs(parse_arguments([*arguments, "--device", "cpu"]))]

    assert chosen("pool") == [
        "pool pe-core-l14-336",
        "removal pe-core-l14-336",
        "pool siglip2-l16-256",
        "removal siglip2-l16-256",
    ]
    assert chosen("text", "--preset", "clip-vit-b32", "pe-core-b16") == ["text clip-vit-b32", "text pe-core-b16"]
    assert len(chosen("all")) == 2 + 1 + 4 + 1 + 1
    assert len(chosen("masks", "--preset", "clip-vit-b32", "pe-core-b16")) == 2
    (_, options), *_ = jobs(parse_arguments(["pool", "--size", "100", "200", "--limit", "0.5", "--threads", "3"]))
    assert (options.size, options.limit, options.threads, options.regions) == ((100, 200), 2**29, 3, 100)


def test_a_whole_run(tmp_path, capsys):
    path = tmp_path / "figures.json"
    sizes = ["--regions", "5", "--labels", "3", "--size", "40", "56"]
    assert (
        main(["postprocess", *sizes, "--repeats", "2", "--threads", "1", "--device", "cpu", "--json", str(path)]) == 0
    )
    printed = capsys.readouterr()
    assert "3 labels, 5 regions, 40 x 56 px" in printed.out
    assert "running postprocess" in printed.err
    (row,) = json.loads(path.read_text())["rows"]
    assert row["difference"] < 1e-4
    assert row["speed"] == pytest.approx(row["obvious"]["seconds"] / row["ours"]["seconds"])
    assert row["operations"] == 2 * 5 * 3 * 40 * 56


@pytest.mark.parametrize(
    "arguments",
    [
        ["speed"],
        [],
        ["pool", "--preset", "clip-vit-x"],
        ["pool", "--preset", "tiny"],
        ["pool", "--repeats", "0"],
        ["pool", "--regions", "many"],
        ["pool", "--limit", "-1"],
        ["pool", "--device", "gpu"],
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, capsys):
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*cases.CASES, "--random-weights", "--markdown", "examples:", "989 TFLOP/s"))
