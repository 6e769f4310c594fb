import pytest
import torch

from textregion.errors import InputError
from textregion.regionspot import model
from textregion.regionspot.model import TEMPLATES, clean_name, encode_names

NAMES = ["bat_(animal)", "a red cup", "sofa"]


def slow(backbone, name):
    """One prompt at a time, full context, plain mean, then length 1."""
    vectors = [backbone.model.encode_text(backbone.tokenizer([template(name)]))[0] for template in TEMPLATES]
    mean = torch.stack(vectors).mean(0)
    return mean / mean.norm()


def test_81_templates():
    assert len({template("dog") for template in TEMPLATES}) == 81
    assert TEMPLATES[-1]("dog") == "dog."


@torch.inference_mode()
def test_plain_mean_then_one_norm(tiny_clip, monkeypatch):
    expected = torch.stack([slow(tiny_clip, name) for name in NAMES])
    torch.testing.assert_close(encode_names(tiny_clip, NAMES), expected, atol=1e-5, rtol=0)
    monkeypatch.setattr(model, "NAMES_AT_ONCE", 2)
    torch.testing.assert_close(encode_names(tiny_clip, NAMES), expected, atol=1e-5, rtol=0)


def test_another_mean_than_that_of_labels(tiny_clip):
    names = encode_names(tiny_clip, ["sofa"])
    assert (names * tiny_clip.encode_labels(["sofa"])).sum() > 0.9
    assert not torch.allclose(names, tiny_clip.encode_labels(["sofa"]), atol=1e-4)


def test_names_go_in_raw_unless_cleaned(tiny_clip):
    raw, clean = encode_names(tiny_clip, ["bat_(animal)"]), encode_names(tiny_clip, ["bat_(animal)"], clean=True)
    torch.testing.assert_close(clean, encode_names(tiny_clip, ["bat"]))
    assert not torch.allclose(raw, clean, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("aerosol_can", "aerosol can"),
        ("bat_(animal)", "bat"),
        ("Band_Aid", "Band Aid"),
        ("wall-other-merged", "wall"),
        ("food-stuff", "food"),
        ("baby-stuffed", "baby-stuffed"),
        ("wall_(brick)_old", "wall old"),
        ("(unknown)", "(unknown)"),
    ],
)
def test_clean_names(name, clean):
    assert clean_name(name) == clean


@pytest.mark.parametrize("names", [[], [""], "dog"])
def test_bad_names_are_refused(tiny_clip, names):
    with pytest.raises(InputError, match="expected"):
        encode_names(tiny_clip, names)
