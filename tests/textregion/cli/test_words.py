import pytest
import tiny_models
import torch

from textregion.cli import words
from textregion.cli.arguments import parse_arguments
from textregion.cli.words import TextProgress, encode_words, templates_option
from textregion.segmenter import TextRegionSegmenter


@pytest.mark.parametrize(
    ("flags", "preset", "expected"),
    [
        (["--device", "cpu"], "clip-vit-b16", {"templates": 7}),
        (["--device", "cpu", "--templates", "80"], "clip-vit-b16", {}),
        (["--device", "cpu"], "tiny", {}),  # the preset says 80
    ],
)
def test_a_cpu_takes_fewer_prompts_unless_told_otherwise(flags, preset, expected):
    assert templates_option(parse_arguments(flags), preset) == expected


def test_another_device_takes_the_published_ones(monkeypatch):
    monkeypatch.setattr(words, "resolve_device", lambda name: torch.device("mps"))
    assert templates_option(parse_arguments([]), "clip-vit-b16") == {}


def test_new_words_are_encoded_once(monkeypatch):
    segmenter = TextRegionSegmenter(tiny_models.clip(), crop_size=32, device="cpu", templates=7)
    asked = []
    encode = segmenter.backbone.encode_labels
    monkeypatch.setattr(
        segmenter.backbone, "encode_labels", lambda labels, *how: asked.append(labels) or encode(labels, *how)
    )
    encode_words(segmenter, ["sky; wall", "dog"])
    encode_words(segmenter, ["dog", "wall", "sky", "cat"])
    encode_words(segmenter, ["dog"])
    assert asked == [["sky", "wall", "dog"], ["cat"]]


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by hand."""
    now = [0.0]
    monkeypatch.setattr(words.time, "perf_counter", lambda: now[0])
    return now


def test_long_words_are_told_with_a_bar(clock, capsys):
    with TextProgress(5, 80, "cpu") as progress:
        clock[0] = 2.0
        progress(100)
        assert progress.bar.total == 400
        assert progress.bar.n == 100
        progress(300)
        assert progress.bar.n == 400
    assert "5 new labels of 80 prompts each: about 8 s on cpu; fewer with --templates" in capsys.readouterr().err


def test_short_words_are_silent(clock, capsys):
    with TextProgress(5, 80, "cpu") as progress:
        clock[0] = 1.2
        progress(100)
        clock[0] = 9.0
        progress(300)  # nothing is left to wait for
    assert capsys.readouterr().err == ""
