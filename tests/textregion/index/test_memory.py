"""A region memory: against its sentence written out, its identities, and what it refuses."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import timm
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from index_worlds import QUICK
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from textregion.cli.main import main
from textregion.errors import InputError
from textregion.index import RegionIndex, RegionMemory, memory, upkeep
from textregion.index.keys import KeyTower, encode_keys
from textregion.index.memory import Bank
from textregion.index.schema import KeyRecord, Meta
from textregion.index.sources import content_hash, read_bytes
from textregion.labels import LabelPrompts
from textregion.neighbours import Blocks
from textregion.segmenter import TextRegionSegmenter
from textregion.types import RegionMasks, RegionTokens

WORDS = ["sky", "grass; meadow"]
clip = cache(tiny_models.clip)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(scope="module")
def segmenter():
    """A CLIP of D = 24 with random weights; masks are given."""
    return TextRegionSegmenter(clip(), device="cpu")


def regions_of(tokens):
    masks = RegionMasks(torch.eye(len(tokens), 11)[:, None], (1, 11))
    return RegionTokens(tokens, masks, torch.arange(len(tokens)), (1, 1), logit_scale=3.0, logit_bias=-0.5)


def bank_of(tokens, hashes=("a",)):
    return Bank(tokens, [tokens], torch.arange(len(tokens)) % len(hashes), hashes)


def slow_logits(tokens, keys, bank, text, alpha, count, scale, bias):
    """The sentence of docs/region-memory.md, region by region."""
    logits = torch.zeros(len(tokens), len(text))
    for r, (token, key) in enumerate(zip(tokens, keys, strict=True)):
        nearest = sorted(range(len(bank)), key=lambda n: -float(bank.keys[n] @ key))[:count]
        mean = sum(bank.tokens[0][n] for n in nearest) / len(nearest)
        support = mean / mean.norm()
        for q, words in enumerate(text):
            own_logit, support_logit = (scale * float(vector @ words) + bias for vector in (token, support))
            logits[r, q] = (1 - alpha) * own_logit + alpha * support_logit
    return logits


@given(st.integers(0, 11), st.integers(1, 53), st.floats(0.01, 1), st.integers(1, 60), st.integers(0, 99))
def test_logits_are_the_sentence_written_out(regions, size, alpha, count, seed):
    segmenter = TextRegionSegmenter(clip(), device="cpu", memory_alpha=alpha, memory_neighbours=count)
    tokens, text = unit(regions, 24, seed=seed), unit(3, 24, seed=seed + 1)
    held = RegionMemory("bank", bank_of(unit(size, 24, seed=seed + 2)), own_rows=True)
    found = held.logits(segmenter, regions_of(tokens), LabelPrompts.parse(WORDS), text)
    expected = slow_logits(tokens, tokens, held.bank, text, alpha, count, 3.0, -0.5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_alpha_0_is_bit_equal_to_no_memory(quick, quick_table):
    image = str(quick_table / "photos" / "1.png")
    segmenter = TextRegionSegmenter.from_preset("tiny", **QUICK, memory_alpha=0)
    held = RegionMemory.open(quick, device="cpu")
    without, with_it = (segmenter.segment(image, WORDS, return_probabilities=True, memory=m) for m in (None, held))
    for name in ("label_map", "confidence", "region_map", "probabilities"):
        np.testing.assert_array_equal(getattr(without, name), getattr(with_it, name))


def test_one_neighbour_with_own_rows_is_the_own_token(quick, quick_table):
    image, index = str(quick_table / "photos" / "1.png"), RegionIndex.open(quick, device="cpu")
    tokens = index.segmenter().encode_image(image)
    held = RegionMemory.open(quick, device="cpu", own_rows=True)
    (support,) = held.supports(held.nearest(held.keys(tokens), 1))
    torch.testing.assert_close(support, tokens.tokens, atol=5e-4, rtol=0)  # the table is in half precision


def test_as_many_neighbours_as_there_are_give_the_banks_mean(segmenter):
    tokens = unit(37, 24)
    held = RegionMemory("bank", bank_of(tokens), own_rows=True)
    (support,) = held.supports(held.nearest(unit(5, 24, seed=1), 10_000))
    expected = F.normalize(tokens.mean(0), dim=0).expand(5, -1)
    torch.testing.assert_close(support, expected, atol=1e-5, rtol=1e-5)


def test_an_image_does_not_support_itself(quick, quick_table):
    image, index = quick_table / "photos" / "1.png", RegionIndex.open(quick, device="cpu")
    held, segmenter = RegionMemory.open(quick, device="cpu"), index.segmenter()
    own = held.left_out(str(image))
    journal = {row["image"]: row["regions"] for row in index.tables.journal().to_pylist()}
    assert len(own) == journal[str(image)] > 0
    tokens = segmenter.encode_image(str(image))
    assert not torch.isin(held.nearest(held.keys(tokens), 20, own), own).any()
    assert torch.isin(held.nearest(held.keys(tokens), 20), own).any()
    assert torch.equal(held.left_out(read_bytes(str(image))), own)
    assert held.left_out(b"another image") is None
    with pytest.raises(InputError, match="pixels without their file"):
        segmenter.segment(tokens, WORDS, memory=held)
    by_file = segmenter.segment(str(image), WORDS, memory=held, return_probabilities=True)
    by_tokens = segmenter.segment(tokens, WORDS, memory=held, source=image, return_probabilities=True)
    np.testing.assert_allclose(by_tokens.probabilities, by_file.probabilities, atol=1e-6)
    assert held.overlap([image, "nowhere.png"]) == [str(image)]


def test_an_image_that_is_all_of_the_bank_keeps_its_own_logits(segmenter):
    tokens = unit(5, 24)
    held = RegionMemory("bank", bank_of(tokens, [content_hash(b"the image")]))
    prompts, text = LabelPrompts.parse(WORDS), segmenter.encode_text(["sky", "grass", "meadow"])
    regions = regions_of(tokens)
    assert torch.equal(held.logits(segmenter, regions, prompts, text, b"the image"), regions.logits(text))


def test_several_models_support_by_the_mean_of_their_cosines(segmenter):
    other = TextRegionSegmenter(tiny_models.clip(seed=9), device="cpu")
    first, second, own = unit(31, 24), unit(31, 24, seed=1), unit(7, 24, seed=2)
    bank = Bank(first, [first, second], torch.zeros(31, dtype=torch.int64), ["a"])
    held = RegionMemory("bank", bank, words=[other], own_rows=True)
    prompts = LabelPrompts.parse(WORDS)
    alone = replace(segmenter.config, memory_alpha=1.0, memory_neighbours=3)
    only = TextRegionSegmenter(segmenter.backbone, config=alone, device="cpu")
    text, more = (s.encode_text(prompts.queries) for s in (segmenter, other))
    found = held.logits(only, regions_of(own), prompts, text)
    rows = (own @ first.T).topk(3)[1]
    cosines = (F.normalize(first[rows].mean(1), dim=1) @ text.T + F.normalize(second[rows].mean(1), dim=1) @ more.T) / 2
    torch.testing.assert_close(found, 3 * cosines - 0.5)


def test_a_large_bank_is_searched_by_blocks_and_tells_its_recall(monkeypatch):
    monkeypatch.setattr(memory, "EXACT_VECTORS", 500)
    bank = bank_of(unit(997, 24).half())
    held = RegionMemory("bank", bank, blocks=memory._blocks(bank))
    assert isinstance(held.blocks, Blocks)
    assert "searched by blocks" in repr(held)
    assert 0.5 < held.recall(unit(10, 24, seed=3), 5) <= 1
    exact = RegionMemory("bank", bank)
    assert exact.recall(unit(10, 24, seed=3), 5) == 1


# ---------------------------------------------------------------------- keys of a vision tower


@pytest.fixture(scope="module")
def tower():
    with tiny_models.seeded(3):
        return KeyTower("test_vit", timm.create_model("test_vit"))


def slow_keys(features, masks):
    """Pixel by pixel."""
    wide = F.interpolate(features[None], masks.shape[1:], mode="bilinear")[0]
    keys = torch.zeros(len(masks), len(features))
    for r, mask in enumerate(masks):
        pixels = [wide[:, y, x] / wide[:, y, x].norm() for y, x in mask.nonzero().tolist()]
        if pixels:
            mean = sum(pixels) / len(pixels)
            keys[r] = mean / mean.norm()
    return keys


def test_keys_are_means_of_unit_features(tower, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    masks = torch.rand(3, 13, 17) > 0.6
    masks[1] = False
    monkeypatch.setattr("textregion.index.keys.NUMBERS_AT_ONCE", 17 * 64 * 5)
    found = encode_keys(tower, pixels, RegionMasks(masks, (37, 53)))
    features = tower.features(pixels)
    assert features.shape == (64, 10, 10)
    torch.testing.assert_close(features.norm(dim=0), torch.ones(10, 10))
    torch.testing.assert_close(found, slow_keys(features, masks), atol=1e-5, rtol=1e-4)


def test_a_region_without_a_key_keeps_its_own_logits(segmenter, tower):
    pixels = Image.new("RGB", (31, 29), (200, 10, 10))
    regions, text = regions_of(unit(2, 24)), unit(3, 24, seed=1)
    masks = RegionMasks(torch.stack([torch.ones(3, 5), torch.zeros(3, 5)]), (29, 31))
    regions = replace(regions, masks=masks)
    tokens = unit(11, 24, seed=2)
    bank = Bank(unit(11, 64, seed=3), [tokens], torch.zeros(11, dtype=torch.int64), ["a"])
    held = RegionMemory("bank", bank, tower=tower, own_rows=True)
    found = held.logits(segmenter, regions, LabelPrompts.parse(WORDS), text, pixels)
    own = regions.logits(text)
    assert torch.equal(found[1], own[1])
    assert not torch.equal(found[0], own[0])
    with pytest.raises(InputError, match="needs the image; give source=FILE"):
        held.logits(segmenter, regions, LabelPrompts.parse(WORDS), text)


def test_a_table_with_keys_of_a_tower(quick, quick_table, tower, tmp_path):
    index = RegionIndex.open(quick, device="cpu")
    assert upkeep.add_keys(index, tower) == "keys of test_vit (64 numbers): 6 images"
    with pytest.raises(InputError, match="has keys of test_vit already"):
        upkeep.add_keys(index, tower)
    save_file(tower.model.state_dict(), tmp_path / "tower.safetensors")
    how = {"key": "test_vit", "key_checkpoint": tmp_path / "tower.safetensors", "device": "cpu"}
    held = RegionMemory.open(quick, **how, own_rows=True)
    assert held.bank.keys.shape == (len(index), 64)
    assert "keys test_vit" in repr(held)
    image = str(quick_table / "photos" / "2.png")
    tokens = index.segmenter().encode_image(image)
    (support,) = held.supports(held.nearest(held.keys(tokens, image), 1))
    torch.testing.assert_close(support, tokens.tokens, atol=1e-3, rtol=0)
    assert index.search("sky", top=1)[0].more == {}  # keys are no columns of the user's
    with pytest.raises(InputError, match="has keys of test_vit, not of test_vit2: textregion index --to"):
        RegionMemory.open(quick, key="test_vit2")
    with tiny_models.seeded(4):
        save_file(timm.create_model("test_vit").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="made by other weights of test_vit than are here"):
        RegionMemory.open(quick, **{**how, "key_checkpoint": tmp_path / "other.safetensors"})
    with pytest.raises(InputError, match="timm has no model 'resnet5x'"):
        memory.load_tower("resnet5x", None, torch.device("cpu"))
    Image.new("RGB", (64, 64)).save(tmp_path / "new.png")
    index.add(tmp_path / "new.png")  # without keys
    more = RegionMemory.open(quick, **how)
    assert (len(more.bank), more.empty) == (len(held.bank), len(index) - len(held.bank))


# ---------------------------------------------------------------------- what it refuses and tells


def test_a_memory_of_another_model_is_refused(quick, quick_table, segmenter):
    image, held = str(quick_table / "photos" / "1.png"), RegionMemory.open(quick, device="cpu")
    with pytest.raises(InputError, match="tokens of 128 numbers, tiny of 24"):
        held.check(segmenter)
    demo = TextRegionSegmenter.from_preset("tiny", **QUICK, recipe="demo")
    with pytest.raises(InputError, match="was made with --recipe semantic, this run has demo"):
        demo.segment(image, WORDS, memory=held)
    other = TextRegionSegmenter.from_preset("tiny", **QUICK, random_weights=True)
    with pytest.raises(InputError, match="was made by other weights than tiny has here"):
        other.segment(image, WORDS, memory=held)
    fewer = TextRegionSegmenter.from_preset("tiny", **QUICK, templates=7)  # the words are another matter
    held.check(fewer)


def test_options_and_content_are_in_what_a_run_records(quick):
    config = TextRegionSegmenter.from_preset("tiny", **QUICK, memory_neighbours=3).settings()["config"]
    assert (config["memory_alpha"], config["memory_neighbours"]) == (0.5, 3)
    index = RegionIndex.open(quick)
    assert not {"memory_alpha", "memory_neighbours"} & index.encoder.settings["config"].keys()
    held = RegionMemory.open(quick, device="cpu")
    told = held.settings()
    assert told == RegionMemory.open(quick, device="cpu").settings()
    assert told["regions"] == len(index)
    fewer = replace(held, bank=bank_of(held.bank.tokens[0][:5]))
    assert fewer.settings()["content"] != told["content"]
    for name, value, said in (("alpha", 1.5, "in 0..1"), ("neighbours", 0, "at least 1")):
        with pytest.raises(InputError, match=said):
            TextRegionSegmenter(tiny_models.clip(), device="cpu", **{f"memory_{name}": value})


def test_metadata_of_tables_before_keys_are_read():
    packed = Meta({}, keys={"token_key_a": KeyRecord("a", "hash", 3)})
    assert packed.key_column("a", "t") == "token_key_a"
    with pytest.raises(InputError, match="t has keys of no tower, not of a"):
        Meta({}).key_column("a", "t")


def test_an_empty_table_is_no_memory(tmp_path):
    RegionIndex.create(tmp_path / "empty.lance", "tiny", **QUICK)
    with pytest.raises(InputError, match="has no region with token; index photographs first"):
        RegionMemory.open(tmp_path / "empty.lance", device="cpu")


def test_the_program_labels_with_a_memory_and_resumes(quick, quick_table, tmp_path, capsys):
    plain = ["segment", str(quick_table / "photos" / "1.png"), "-l", "sky", "grass", "--output", str(tmp_path / "out")]
    plain += ["--preset", "tiny", "--masks", "slic", "--resize_method", "resize", "--device", "cpu"]
    plain += ["--memory", str(quick)]
    assert main(plain) == 0
    assert "memory" in capsys.readouterr().out
    assert main([*plain, "--resume"]) == 0
    assert "already finished with these settings" in capsys.readouterr().out
    assert main([*plain, "--resume", "--memory_neighbours", "3"]) == 0
    assert "kept as" in capsys.readouterr().out
    assert main([*plain[:-1], "nowhere.lance"]) == 2
    assert "no region index at nowhere.lance" in capsys.readouterr().err
    assert main(["segment", "--serve", "--memory", str(quick)]) == 2
    assert "the page has none" in capsys.readouterr().err


def test_options_younger_than_a_table_have_their_defaults_there(quick):
    encoder = RegionIndex.open(quick).encoder
    config = {name: value for name, value in encoder.settings["config"].items() if name != "mode_per_mask"}
    config["recipe"] = {name: config["recipe"][name] for name in ("unit_values", "mlp_residual", "name")}
    older = replace(encoder, settings={**encoder.settings, "config": config}, fingerprint="another")
    older.check_same(encoder, "t")
    changed = replace(encoder, settings={**encoder.settings, "config": {**config, "mode_per_mask": True}})
    with pytest.raises(InputError, match="mode_per_mask False there, True here"):
        older.check_same(changed, "t")
