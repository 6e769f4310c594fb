import logging

import pytest
import tiny_models
import torch

from textregion.errors import InputError
from textregion.storage import save_tensors
from textregion.text import TEMPLATE_SETS, TextCache, model_fingerprint
from TextRegionSegmenter import TextRegionSegmenter

LABELS = ["dog", "größe/..", "a red cup"]


def segmenter(folder, seed: int = 1) -> TextRegionSegmenter:
    return TextRegionSegmenter(tiny_models.clip(seed), crop_size=32, device="cpu", text_cache=folder)


class Counting:
    """Counts the labels a backbone encodes."""

    def __init__(self, backbone, monkeypatch):
        self.labels = []
        encode = backbone.encode_labels
        monkeypatch.setattr(
            backbone, "encode_labels", lambda labels, *how: self.labels.extend(labels) or encode(labels, *how)
        )


def test_a_second_segmenter_encodes_only_what_is_new(tmp_path, monkeypatch):
    first = segmenter(tmp_path / "cache").encode_text(LABELS)
    second = segmenter(tmp_path / "cache")
    counting = Counting(second.backbone, monkeypatch)
    found = second.encode_text([*LABELS[::-1], "new"])
    assert counting.labels == ["new"]
    assert torch.equal(found[:3], first.flip(0))
    second.encode_text(LABELS)
    assert counting.labels == ["new"]


def test_off_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    segmenter(None).encode_text(LABELS)
    assert list(tmp_path.rglob("*")) == []


def test_other_weights_have_other_files(tmp_path, monkeypatch):
    segmenter(tmp_path).encode_text(["dog"])
    other = segmenter(tmp_path, seed=2)
    counting = Counting(other.backbone, monkeypatch)
    other.encode_text(["dog"])
    assert counting.labels == ["dog"]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_other_templates_have_other_files(tmp_path):
    found = {}
    for count in (80, 7, 1, 7):
        made = TextRegionSegmenter(tiny_models.clip(), crop_size=32, device="cpu", text_cache=tmp_path, templates=count)
        found[count] = made.encode_text(["dog"])[0]
        with torch.inference_mode():
            tokens = made.backbone.tokenizer([template("dog") for template in TEMPLATE_SETS[count]])
            plain = torch.nn.functional.normalize(made.backbone.model.encode_text(tokens), dim=-1).mean(0)
        torch.testing.assert_close(found[count], torch.nn.functional.normalize(plain, dim=-1), rtol=0, atol=1e-6)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert found[80] @ found[1] < 0.999


def test_the_fingerprint_is_of_the_text_tower_and_tokenizer():
    backbone = tiny_models.clip()
    before = model_fingerprint(backbone)
    assert before == model_fingerprint(tiny_models.clip())
    backbone.model.visual.proj.data += 1
    assert model_fingerprint(backbone) == before
    tokenizer = backbone.tokenizer
    backbone.tokenizer = lambda texts: tokenizer([text.upper()[::-1] for text in texts])
    assert model_fingerprint(backbone) != before
    backbone.tokenizer = tokenizer
    backbone.model.ln_final.weight.data[3] += 1e-3
    assert model_fingerprint(backbone) != before


@pytest.mark.parametrize("damage", ["truncated", "other label", "other shape", "empty"])
def test_damaged_files_are_made_again(tmp_path, damage, caplog):
    made = segmenter(tmp_path)
    expected = made.encode_text(["dog"])
    path = made.text_cache.path("dog")
    meta = {"kind": "TextEmbedding", "fingerprint": made.text_cache.fingerprint, "label": "dog"}
    if damage in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[:100] if damage == "truncated" else b"")
    elif damage == "other label":
        save_tensors(path, {"embedding": torch.ones(24)}, {**meta, "label": "cat"})
    else:
        save_tensors(path, {"embedding": torch.ones(23)}, meta)
    with caplog.at_level(logging.WARNING):
        again = segmenter(tmp_path).encode_text(["dog"])
    assert "made again" in caplog.text
    assert torch.equal(again, expected)
    assert torch.equal(TextCache(tmp_path, made.backbone).load(["dog"])["dog"], expected[0])


def test_folders_that_cannot_be(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="expected a folder"):
        segmenter(file)
    cache = TextCache(file / "inside", tiny_models.clip())
    with pytest.raises(InputError, match="cannot write the text cache"):
        cache.save(["dog"], torch.ones(1, 24))
