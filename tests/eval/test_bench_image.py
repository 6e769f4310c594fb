"""The whole-image table: its arithmetic, its counts, and a run at the smallest sizes; nothing about times."""

import json

import pytest
import torch
from torch import nn

from eval.bench import image
from eval.bench.comparisons import Options
from eval.bench.image import Rival, Stage, count, report, scene, summary, whole
from eval.bench.program import image_jobs, main, parse_arguments
from textregion.errors import InputError

ENCODER = Stage("encoder", 2.0, 40e9, 50e9)
CLICKS = Stage("clicks", 3.0, 30e9, 60e9, obvious=9.0, note="16 clicks")


def test_a_stage_is_measured_against_the_machine():
    assert (ENCODER.floor, ENCODER.share, ENCODER.speed) == (0.8, 0.4, None)
    assert (CLICKS.floor, CLICKS.share, CLICKS.speed) == (0.5, pytest.approx(1 / 6), 3.0)


def test_the_whole_image_is_the_sum_of_its_stages():
    both = whole([ENCODER, CLICKS])
    assert (both.seconds, both.operations, both.obvious) == (5.0, 70e9, 11.0)
    assert both.floor == pytest.approx(0.8 + 0.5)  # each stage at the rate that was measured around it
    assert both.share == pytest.approx(1.3 / 5)
    line = "whole image: 5.0 s, 26% of the machine's matrix-product rate, 2.2 times faster than the obvious form"
    assert summary([ENCODER, CLICKS]) == line


def test_the_table_ends_with_one_line():
    text = report("a model", [ENCODER, CLICKS], [Rival("theirs", 8.0, 2.0, 31, 29)], ["absent: one"], markdown=True)
    assert "| encoder | 2.0 s | 40 GFLOP | 40% | – | – |" in text
    assert "| clicks | 3.0 s | 30 GFLOP | 17% | 9.0 s | 3.0× |" in text
    assert "| whole image | 5.0 s | 70 GFLOP | 26% | 11.0 s | 2.2× |" in text
    assert "| theirs | 8.0 s | 2.0 s | 4.0× | 31 | 29 |" in text
    assert "- absent: one\n- machine's matrix products: 50 to 60 GFLOP/s while this ran\nwhole image" in text
    assert text.splitlines()[-1] == summary([ENCODER, CLICKS])
    assert report("a", [ENCODER], [], [], markdown=False).splitlines()[-1] == summary([ENCODER])


@torch.inference_mode()
def test_operations_are_counted_through_fused_attention():
    """By hand: 2 a multiply-add, four projections, two products of attention; each of these kernels counts as torch's
    plain products do.
    """
    batch, length, width, heads = 3, 7, 10, 2
    x = torch.rand(batch, length, width)
    linear = nn.Linear(width, 13)
    assert count(lambda: linear(x)) == 2 * batch * length * width * 13
    products = 2 * 2 * batch * length * length * width
    split = x.unflatten(2, (heads, -1)).transpose(1, 2)
    assert count(lambda: nn.functional.scaled_dot_product_attention(split, split, split)) == products
    attention = nn.MultiheadAttention(width, heads, batch_first=True).eval()
    assert count(lambda: attention(x, x, x, need_weights=False)) == products + 4 * 2 * batch * length * width**2


def test_a_scene_fills_the_image_whatever_its_shape():
    assert scene(Options("tiny", size=(41, 67))).shape == (41, 67, 3)


def test_which_models_are_run():
    def chosen(*arguments):
        jobs = image_jobs(parse_arguments(["image", "--device", "cpu", *arguments]))
        return [(o.preset, o.sam2, o.size, o.labels, o.points, o.regions) for o in jobs]

    assert chosen() == [("tiny", None, (192, 256), 5, 4, 20)]
    models = ["--preset", "clip-vit-l14-336", "pe-core-l14-336", "--sam2", "large", "tiny", "--labels", "21", "150"]
    assert len(chosen(*models)) == 8
    assert chosen(*models)[0] == ("clip-vit-l14-336", "large", (672, 1008), 21, 16, 100)
    with pytest.raises(InputError, match="unknown preset 'nothing'"):
        chosen("--preset", "nothing")


def test_a_small_run(tmp_path, capsys):
    path = tmp_path / "figures.json"
    sizes = ["--size", "64", "96", "--points", "2", "--labels", "2", "--regions", "3", "--repeats", "1"]
    assert main(["image", *sizes, "--threads", "1", "--device", "cpu", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("whole image: ")
    rows = json.loads(path.read_text())["rows"]
    stages, (rival,) = rows[:8], [row for row in rows if "our_masks" in row]
    assert [row["name"] for row in stages][:3] == ["SAM 2 image encoder", "clicks, filters", "fusion"]
    total = next(row for row in rows if row["name"] == "whole image")
    assert total["operations"] == pytest.approx(sum(row["operations"] for row in stages))
    assert total["seconds"] == pytest.approx(sum(row["seconds"] for row in stages))
    assert rival["name"] == "sam2's SAM2AutomaticMaskGenerator"
    encoders = {row["name"]: row["operations"] for row in stages}
    assert encoders["SAM 2 image encoder"] > 1e9
    assert encoders["image-text encoder"] > 1e8
    assert "transformers" in printed


def test_settings_are_put_back():
    target = Rival("a", 1.0, 2.0, 3, 4)
    holder = type("Holder", (), {})()
    holder.value = target
    with image.changed(holder, value=None):
        assert holder.value is None
    assert holder.value is target
