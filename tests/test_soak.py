"""The soak program: what it measures, its judgement, and that a leak of one image per image is found."""

import csv
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from warm_start import run_warm

from tests.soak import Sample, judge, new_label

ROOT = Path(__file__).resolve().parents[1]
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


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what other tests have left in this one comes and goes meanwhile."""
    return run_warm(words, folder, {**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_short_soak_is_flat_and_written(tmp_path):
    options = ("--images", "30", "--warmup", "10", "--max-slowdown", "1000", "--max-growth", str(LEAK_BOUND))
    done = run(["-m", "tests.soak", *FAST, *options, "--labels-per-image", "1", "--output", str(tmp_path)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "flat" in done.stdout
    assert "| 11 to 12 |" in done.stdout
    rows = list(csv.DictReader((tmp_path / "soak.csv").read_text().splitlines()))
    assert [int(row["image"]) for row in rows] == list(range(30))
    assert min(float(row["megabytes"]) for row in rows) > 50
    assert (tmp_path / "soak.png").stat().st_size > 5000


LEAKING = """
import sys
from tests.soak import judge, parse_arguments, soak
from textregion.segmenter import TextRegionSegmenter

args = parse_arguments([*sys.argv[2:], "--images", "30"])
segmenter = TextRegionSegmenter.from_preset("tiny", mask_generator="slic", scale=(96, 96), device="cpu")
encode, leaked = segmenter.encode_image, []

def leaking(image):
    leaked.append(image.copy())
    return encode(image)

segmenter.encode_image = leaking
verdict = judge(list(soak(segmenter, args)), 10, float(sys.argv[1]), 1000)
print(len(leaked), verdict.flat)
"""


def test_a_leak_of_one_image_per_image_is_found(tmp_path):
    (tmp_path / "leaking.py").write_text(LEAKING)
    done = run([str(tmp_path / "leaking.py"), str(LEAK_BOUND), *FAST], tmp_path)
    assert done.stdout == "30 False\n", done.stderr
