"""The labeller sam3-concepts against its rule written naively, on a tiny random Sam3Model; the presence filter."""

import json

import numpy as np
import open_clip
import pytest
import tiny_models
import tiny_transformers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import CLIPTokenizer, Sam3ImageProcessor

from textregion.concepts import (
    SAM3_CONCEPTS,
    ConceptAnswer,
    ConceptLabeller,
    concept_evidence,
    labels_present,
    tokenize,
)
from textregion.errors import InputError
from textregion.labels import LabelPrompts
from textregion.masks import SlicMasks
from TextRegionSegmenter import TextRegionSegmenter

IMAGE = np.random.default_rng(5).integers(0, 256, (61, 83, 3), dtype=np.uint8)
LABELS = ["dog", "a red star; sky", "grass", "water; car"]
SIZE = {"height": 112, "width": 112}


@pytest.fixture
def labeller() -> ConceptLabeller:
    return ConceptLabeller(tiny_transformers.sam3_concepts())


def sigmoid(values):
    return 1 / (1 + np.exp(-np.asarray(values, np.float64)))


def naive(model, queries, size, t):
    """(presence, P) of every query: the whole model anew for each, instances one by one in float64."""
    pixels = Sam3ImageProcessor(size=SIZE)(images=IMAGE, return_tensors="pt")["pixel_values"]
    found = []
    for query in queries:
        ids = open_clip.SimpleTokenizer(context_length=32)([query])
        mask = (ids != 0).long()  # what follows the end of the text
        with torch.no_grad():
            out = model(pixel_values=pixels, input_ids=ids, attention_mask=mask)
        presence = float(sigmoid(out.presence_logits[0, 0]))
        large = [
            F.interpolate(m[:, None], size, mode="bilinear")[:, 0] for m in (out.pred_masks[0], out.semantic_seg[0])
        ]
        best = sigmoid(large[1][0])
        for logit, mask in zip(out.pred_logits[0], large[0], strict=True):
            score = float(sigmoid(logit)) * presence
            if score > t:
                best = np.maximum(best, sigmoid(mask) * score)
        found.append((presence, presence * best))
    return found


@pytest.mark.parametrize(("t", "b", "size"), [(0.05, 0.0, (61, 83)), (0.2, 0.4, (61, 83)), (1.0, 0.0, (97, 53))])
def test_labels_are_those_of_the_naive_rule(labeller, t, b, size):
    labeller = ConceptLabeller(labeller.model, t, b)
    found = labeller.segment(IMAGE, LABELS, size, return_probabilities=True)
    queries = ["dog", "a red star", "sky", "grass", "water", "car"]
    each = [p for _, p in naive(labeller.model, queries, size, t)]
    per_label = np.stack([each[0], np.maximum(each[1], each[2]), each[3], np.maximum(each[4], each[5])])
    np.testing.assert_allclose(found.probabilities, per_label, atol=1e-5)
    np.testing.assert_allclose(found.confidence, per_label.max(0), atol=1e-5)
    two_best = np.sort(per_label, 0)[-2:]
    sure = (two_best[1] - two_best[0] > 1e-4) & (abs(two_best[1] - b) > 1e-4)  # beyond rounding
    certain = per_label.max(0) >= b
    assert (found.label_map == np.where(certain, per_label.argmax(0), 0))[sure].all()
    assert (found.region_map == np.where(certain, per_label.argmax(0), -1))[sure].all()
    assert sure.mean() > 0.9
    assert len(np.unique(found.label_map)) > 1
    assert found.labels == ("dog", "a red star", "grass", "water")
    assert b == 0 or 0.05 < certain.mean() < 0.95, "both sides of the threshold are met"


def test_presence_is_the_models_and_an_image_is_encoded_once(labeller, monkeypatch):
    encoded, original = [], labeller.model.get_vision_features
    monkeypatch.setattr(labeller.model, "get_vision_features", lambda pixels: encoded.append(1) or original(pixels))
    queries = ["dog", "sky", "dog"]
    presence = labeller.presence(IMAGE, queries)
    expected = [presence for presence, _ in naive(labeller.model, queries, (5, 7), 0.5)]
    np.testing.assert_allclose(presence, expected, atol=1e-6)
    assert presence[0] == presence[2]
    assert len(encoded) == 1


@given(seed=st.integers(0, 10**6), t=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@settings(max_examples=20, deadline=None)
def test_evidence_of_a_query(seed, t):
    rng = torch.Generator().manual_seed(seed)
    masks, semantic = 3 * torch.randn(5, 7, 11, generator=rng), torch.randn(7, 11, generator=rng)
    presence, scores = torch.rand((), generator=rng), torch.rand(5, generator=rng)
    found = concept_evidence(ConceptAnswer(presence, scores, masks, semantic), (13, 17), t)
    large = F.interpolate(torch.cat([semantic[None], masks])[None], (13, 17), mode="bilinear")[0].sigmoid()
    weights = torch.cat([torch.ones(1), scores * (scores > t)])
    torch.testing.assert_close(found, presence * (large * weights[:, None, None]).amax(0))


def test_words_are_cut_as_transformers_cuts_them():
    ours = open_clip.SimpleTokenizer(context_length=32)
    merges = sorted(ours.bpe_ranks, key=ours.bpe_ranks.get)
    theirs = CLIPTokenizer(vocab=ours.encoder | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}, merges=merges)
    queries = ["dog", "Red star-shaped sign", "  two   spaces ", "it's 12 o'clock", "tvmonitor"]
    ids, mask = tokenize(queries)
    expected = theirs(queries, padding="max_length", max_length=32, return_tensors="pt")
    assert torch.equal(mask, expected["attention_mask"].bool())
    assert torch.equal(ids[mask], expected["input_ids"][mask])


def test_a_folder_in_the_hubs_layout_gives_the_model(labeller, tmp_path):
    labeller.model.save_pretrained(tmp_path)
    other = ConceptLabeller.from_weights(tmp_path, score_thresh=0.1).to("cpu")
    assert torch.equal(other.presence(IMAGE, ["dog"]), labeller.presence(IMAGE, ["dog"]))
    assert other.settings() == {
        "backbone": SAM3_CONCEPTS,
        "device": "cpu",
        "dtype": "float32",
        "config": {"recipe": SAM3_CONCEPTS, "score_thresh": 0.1, "fallback_thresh": 0.0},
    }
    options = {"label_filter": "presence", "presence_threshold": 0.0, "sam3_checkpoint": tmp_path}
    made = TextRegionSegmenter.from_preset("tiny", mask_generator="slic", device="cpu", **options)
    assert made.segment(IMAGE, ["sky", "grass"]).labels == ("sky", "grass")
    assert made.settings()["config"]["label_filter"] == "presence"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(InputError, match="labeller sam3-concepts"):
        ConceptLabeller.from_weights(tmp_path)


@pytest.mark.parametrize("option", ["score_thresh", "fallback_thresh"])
def test_thresholds_are_numbers_in_0_to_1(labeller, option):
    with pytest.raises(InputError, match=f"got {option} 1.5, expected a number in 0..1"):
        ConceptLabeller(labeller.model, **{option: 1.5})


# ---------------------------------------------------------------- the presence filter


@pytest.mark.parametrize(
    ("presence", "kept"),
    [
        ([0.1, 0.9, 0.1, 0.9, 0.1, 0.1], [0, 1, 2]),
        ([0.1, 0.1, 0.5, 0.4, 0.1, 0.6], [0, 1, 3]),
        ([0.4, 0.4, 0.4, 0.4, 0.4, 0.4], [0, 1, 2, 3]),
        ([0.9, 0.1, 0.1, 0.1, 0.1, 0.1], [0]),
    ],
    ids=["any query counts", "at the threshold", "none is there", "the first alone"],
)
def test_labels_that_are_present_and_the_first_stay(presence, kept):
    prompts = LabelPrompts.parse(LABELS)
    assert labels_present(torch.tensor(presence), prompts, 0.5) == kept


def test_some_labels_of_prompts():
    chosen, queries = LabelPrompts.parse(LABELS).select([0, 3])
    assert chosen == LabelPrompts(("dog", "water"), ("dog", "water", "car"), (0, 1, 1))
    assert queries == [0, 4, 5]


class Says(ConceptLabeller):
    """Its presences are given."""

    said = ()

    def presence(self, image, queries):
        assert image.shape == IMAGE.shape
        assert len(queries) == len(self.said)
        return torch.tensor(self.said)


@pytest.fixture
def filtered(labeller):
    says = Says(labeller.model)
    options = {"scale": (101, 67), "device": "cpu", "dense_fallback": True}
    parts = (tiny_models.clip(), SlicMasks(segments=7))
    with_filter = TextRegionSegmenter(*parts, concepts=says, label_filter="presence", **options)
    return says, with_filter, TextRegionSegmenter(*parts, **options)


def test_filtered_labels_are_as_if_they_had_not_been_asked_for(filtered):
    says, with_filter, plain = filtered
    says.said = [0.1, 0.1, 0.6, 0.2, 0.7, 0.1]
    found = with_filter.segment(IMAGE, LABELS, return_probabilities=True)
    expected = plain.segment(IMAGE, [LABELS[0], LABELS[1], LABELS[3]], return_probabilities=True)
    assert (found.label_map == np.array([0, 1, 3])[expected.label_map]).all()
    assert (found.probabilities[[0, 1, 3]] == expected.probabilities).all()
    assert (found.probabilities[2] == 0).all()
    assert (found.confidence == expected.confidence).all()
    assert found.labels == ("dog", "a red star", "grass", "water")


def test_where_all_labels_are_there_nothing_changes(filtered):
    says, with_filter, plain = filtered
    says.said = [0.9] * 6
    tokens = plain.encode_image(IMAGE)
    found, expected = with_filter.segment(tokens, LABELS, pixels=IMAGE), plain.segment(tokens, LABELS)
    assert (found.label_map == expected.label_map).all()
    assert (found.confidence == expected.confidence).all()


def test_what_the_filter_lacks_is_one_line(filtered):
    _, with_filter, plain = filtered
    tokens = plain.encode_image(IMAGE)
    with pytest.raises(InputError, match="give its pixels beside its tokens"):
        with_filter.segment(tokens, LABELS)
    with pytest.raises(InputError, match="label_filter presence asks a SAM 3"):
        TextRegionSegmenter(plain.backbone, None, label_filter="presence")
    with pytest.raises(InputError, match="got label_filter 'all'"):
        TextRegionSegmenter(plain.backbone, None, label_filter="all")
    with pytest.raises(InputError, match="got presence_threshold 2"):
        TextRegionSegmenter(plain.backbone, None, presence_threshold=2)
    with pytest.raises(InputError, match="random weights are not for label_filter presence"):
        TextRegionSegmenter.from_preset("tiny", label_filter="presence", random_weights=True)
    with pytest.raises(InputError, match="sam3_checkpoint without label_filter presence"):
        TextRegionSegmenter.from_preset("tiny", sam3_checkpoint="sam3")
