"""The benchmark's own arithmetic and its comparisons at tiny sizes; nothing here looks at how long something took."""

import json

import numpy as np
import pytest
import tiny_models
import torch
from warm_start import warm_context

from eval.bench import comparisons, program
from eval.bench.comparisons import Options, pooling_inputs, share_of_different, soft_masks
from eval.bench.program import Cost, Measured, compare, jobs, main, measured, parse_arguments, report, total
from textregion.errors import InputError

SMALL = Options("pe-core-t16-384", size=(400, 800), regions=7, labels=5, limit=2**22)
ROW = Measured("a", Cost(0.5, 10.0, 1.0), Cost(6.0, 400.0, 0.25), 1e-6, 989e9, 4.8e6, "sizes")


def both(formulations) -> tuple[np.ndarray, np.ndarray, float]:
    """Both results and their difference."""
    ours, obvious, facts = formulations
    with torch.inference_mode():
        results = [np.asarray(form()) for form in (ours, obvious)]
    return *results, facts.difference(*results)


@pytest.mark.parametrize("preset", ["pe-core-t16-384", "siglip2-b32-256", "clip-vit-b32"])
def test_pooling_agrees_on_the_part_that_fits(preset):
    options = Options(preset, size=(400, 800), regions=7, limit=2**21)
    made = comparisons.pool(options)
    ours, obvious, difference = both(made)
    regions = len(pooling_inputs(options)[2])
    assert len(obvious) < len(ours) == regions
    assert made[2].share == len(obvious) / regions
    assert difference < 1e-5


def test_a_smaller_limit_gives_a_smaller_part():
    few, all_of_them = (comparisons.pool(Options("clip-vit-b32", regions=7, limit=limit)) for limit in (1, 2**33))
    assert (few[2].share, all_of_them[2].share) == (1 / 7, 1)
    _, obvious, facts = comparisons.postprocess(
        Options("clip-vit-b32", regions=3, labels=5, size=(20, 30), limit=4 * 5 * 7)
    )
    assert facts.share == 1 / 600
    assert obvious().shape == (1, 1)


@pytest.mark.parametrize("make", [comparisons.removal, comparisons.postprocess])
def test_other_comparisons_agree(make):
    assert both(make(SMALL))[2] < 1e-4


def test_fusion_counts_masks_in_other_groups():
    ours, _, difference = both(comparisons.fusion(Options("clip-vit-b32", size=(67, 89), regions=23)))
    assert difference == 0
    assert 1 < len(set(ours.tolist())) < 23
    assert share_of_different(np.array([0, 0, 2, 3]), np.array([0, 1, 2, 3])) == 0.25


@pytest.mark.parametrize("make", [comparisons.text, comparisons.prefixes, comparisons.encode])
def test_comparisons_of_whole_models(make, monkeypatch):
    monkeypatch.setattr(comparisons, "backbone_of", lambda options: tiny_models.clip())
    made = make(Options("clip-vit-b32", size=(64, 96), labels=20))
    assert both(made)[2] < 2e-5
    if make is comparisons.text:
        assert (made[2].share, made[2].own_share) == (4 / 20, 16 / 20)
        assert "positions a prompt on average, 5.3 of them shared by all labels" in made[2].note


def test_synthetic_masks_are_soft_and_the_same_every_time():
    masks = soft_masks(41, 64)
    assert masks.shape == (41, 64, 64)
    assert masks.dtype == torch.float16
    assert torch.equal(masks, soft_masks(41, 64))
    assert (masks.amax((1, 2)) > 0).all()
    assert 0 <= masks.min() <= masks.max() <= 3


@pytest.mark.parametrize(("preset", "patches"), [("pe-core-l14-336", 48 * 72), ("siglip2-l16-256", 32 * 48)])
def test_the_patches_are_those_of_the_crops(preset, patches):
    _, features, weights = pooling_inputs(Options(preset, regions=3))
    assert (len(features), weights.shape[1]) == (patches, patches)


# ---------------------------------------------------------------- measuring


def test_the_peak_is_what_a_call_takes_beyond_its_inputs():
    kept = torch.ones(2**24)  # 64 MB that were there before
    seconds, peak, result = measured(lambda: (kept * 2).sum(), torch.device("cpu"))
    assert seconds > 0
    assert 2**25 < peak < 2**27
    assert float(result) == 2**25


@pytest.fixture
def warm(monkeypatch):
    """The processes of a comparison have their imports behind them."""
    monkeypatch.setattr(program, "get_context", lambda _: warm_context())


def test_what_a_process_refuses_is_said_here(warm):
    with pytest.raises(InputError, match="unknown preset 'no-such'"):
        compare(comparisons.REMOVAL, Options("no-such"), 1)


def test_ratios_floor_and_sum():
    assert ROW.speed == 12
    assert ROW.saving == 40
    assert ROW.floor_seconds == pytest.approx(1e-3)
    network = Measured("b", Cost(2.0, 30.0, 1.0), None, None, 0.0, 9.6e9, "")
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
        return [each.title(options) for each, options in jobs(parse_arguments([*arguments, "--device", "cpu"]))]

    assert chosen("pool") == [
        "pool pe-core-l14-336",
        "removal pe-core-l14-336",
        "pool siglip2-l16-256",
        "removal siglip2-l16-256",
    ]
    assert chosen("text", "--preset", "clip-vit-b32", "pe-core-b16") == [
        "text clip-vit-b32",
        "text, prefixes shared clip-vit-b32",
        "text pe-core-b16",
        "text, prefixes shared pe-core-b16",
    ]
    assert len(chosen("all")) == 1 + 1 + 4 + 1 + 2
    assert len(chosen("masks", "--preset", "clip-vit-b32", "pe-core-b16")) == 1
    (_, options), *_ = jobs(parse_arguments(["pool", "--size", "100", "200", "--limit", "0.5", "--threads", "3"]))
    assert (options.size, options.limit, options.threads, options.regions) == ((100, 200), 2**29, 3, 100)


def test_a_whole_run(warm, tmp_path, capsys):
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
    assert all(
        name in text
        for name in (*comparisons.COMPARISONS, "--random-weights", "--markdown", "examples:", "989 TFLOP/s")
    )
