"""The soak program: what it measures, its judgement, and that a leak of one image per image is found."""

import csv
import gc

import numpy as np
import pytest

from tests.soak import Sample, judge, main, new_label, parse_arguments, soak
from TextRegionSegmenter import TextRegionSegmenter

FAST = ("--labels-per-image", "0", "--scale", "96", "96", "--device", "cpu")
LEAK_BOUND = 100.0  # KB an image; a drawn image has 192


def samples(growth: float, slowdown: float, count: int = 200) -> list[Sample]:
    """A straight line of memory, in KB an image, under noise; a tenth at the end slower by a factor."""
    noise = np.random.default_rng(4).normal(0, 0.5, count)
    seconds = np.where(np.arange(count) < count * 0.9, 0.1, 0.1 * slowdown)
    return [Sample(i, 0.2, float(seconds[i]), 900 + growth * i / 2**10 + noise[i]) for i in range(count)]


@pytest.mark.parametrize(("growth", "slowdown"), [(0, 1), (200, 1), (0, 1.5), (-30, 0.8)])
def test_judgement_of_known_series(growth, slowdown):
    verdict = judge(samples(growth, slowdown), warmup=50, max_growth=20, max_slowdown=1.2)
    assert verdict.growth == pytest.approx(growth, abs=5)
    assert verdict.slowdown == pytest.approx(slowdown)
    assert (verdict.flat, verdict.steady) == (growth <= 20, slowdown <= 1.2)


def test_what_happens_before_the_warm_up_ends_does_not_count():
    series = samples(0, 1)
    series[:50] = [Sample(i, 9, 9, 10 * i) for i in range(50)]
    verdict = judge(series, 50, 20, 1.2)
    assert verdict.flat
    assert verdict.steady


def test_made_up_labels_are_new_every_time():
    random = np.random.default_rng(0)
    labels = [new_label(random) for _ in range(2000)]
    assert len(set(labels)) == 2000
    assert all(label.replace(" ", "").isalpha() for label in labels)


def test_a_short_soak_is_flat_and_written(tmp_path, capsys):
    options = ("--images", "30", "--warmup", "10", "--max-slowdown", "1000", "--max-growth", str(LEAK_BOUND))
    code = main([*FAST, *options, "--labels-per-image", "1", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert code == 0
    assert "flat" in printed
    assert "| 11 to 12 |" in printed
    rows = list(csv.DictReader((tmp_path / "soak.csv").read_text().splitlines()))
    assert [int(row["image"]) for row in rows] == list(range(30))
    assert min(float(row["megabytes"]) for row in rows) > 50
    assert (tmp_path / "soak.png").stat().st_size > 5000


def test_a_leak_of_one_image_per_image_is_found():
    args = parse_arguments([*FAST, "--images", "30", "--size", "384"])  # of 432 KB: other tests' remains go meanwhile
    segmenter = TextRegionSegmenter.from_preset("tiny", mask_generator="slic", scale=(96, 96), device="cpu")
    encode, leaked = segmenter.encode_image, []

    def leaking(image):
        leaked.append(image.copy())
        return encode(image)

    segmenter.encode_image = leaking
    gc.collect()  # what other tests left behind must not go while this one measures
    verdict = judge(list(soak(segmenter, args)), 10, LEAK_BOUND, 1000)
    assert len(leaked) == 30
    assert not verdict.flat


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "20"], "expected at least 60 images"),
        (["--images", "0"], "at least 1"),
        (["--size", "30"], "multiple of 4"),
        (["--masks", "boxes"], "expected slic or sam2"),
        (["--masks", "nope"], "nope"),
        (["--seed", "-1"], "--seed -1"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
