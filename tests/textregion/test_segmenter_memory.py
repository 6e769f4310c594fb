"""When memory runs out: smaller parts with the same results, then one line; and what stays in memory is bounded."""

import numpy as np
import pytest
import torch
from cachetools import LRUCache

from textregion.cli.program import main
from textregion.errors import InputError
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.segmenter import TextRegionSegmenter

IMAGE = np.random.default_rng(5).integers(0, 256, (53, 79, 3), dtype=np.uint8)
LABELS = ["dog", "sofa; couch", "floor"]


class Room:
    """A forward hook that fails, as CUDA does, on more than `items` rows at once, and keeps what it let through."""

    def __init__(self, items: int) -> None:
        self.items, self.let_through, self.refused = items, [], 0

    def __call__(self, module, given) -> None:
        count = len(given[0])
        if count > self.items:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.let_through.append(count)


@pytest.fixture
def little_memory():
    """Put rooms in front of modules; they are gone after the test."""
    handles = []

    def limit(part: torch.nn.Module, items: int) -> Room:
        room = Room(items)
        handles.append(part.register_forward_pre_hook(room))
        return room

    yield limit
    for handle in handles:
        handle.remove()


@pytest.fixture
def segmenter(tiny_clip, tiny_sam2):
    """Seven views; twenty-five clicks of which most survive."""
    thresholds = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "min_size": 0}
    masks = Sam2MaskGenerator(tiny_sam2, points_per_side=5, **thresholds)
    return TextRegionSegmenter(tiny_clip, masks, scale=(101, 67), dense_fallback=True, device="cpu")


def test_results_are_the_same_with_little_memory(segmenter, little_memory, monkeypatch):
    monkeypatch.setattr("textregion.segmenter.CPU_CROPS", 32)  # as where more than one at once pays
    whole_tokens = segmenter.encode_image(IMAGE)
    whole = segmenter.segment(whole_tokens, LABELS)
    segmenter.remembered_labels.clear()
    views = little_memory(segmenter.backbone.model.visual.conv1, 3)
    clicks = little_memory(segmenter.mask_generator.model.sam_mask_decoder.transformer.layers[0].self_attn, 3)
    prompts = little_memory(segmenter.backbone.model.token_embedding, 100)
    tokens = segmenter.encode_image(IMAGE)
    result = segmenter.segment(tokens, LABELS)
    assert [sum(room.let_through) for room in (views, clicks, prompts)] == [7, 25, 4 * (3 * 78 + 7 * 2)]
    # Behind each prefix of the four words: word, full stop, end; in two templates also "in a video game".
    assert min(room.refused for room in (views, clicks, prompts)) >= 1
    assert torch.equal(tokens.source_index, whole_tokens.source_index)
    torch.testing.assert_close(tokens.tokens, whole_tokens.tokens, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result.label_map, whole.label_map)
    np.testing.assert_allclose(result.confidence, whole.confidence, atol=1e-4)


def test_where_nothing_fits_one_line_says_what_to_do(segmenter, little_memory):
    little_memory(segmenter.backbone.model.visual.conv1, 0)
    with pytest.raises(InputError, match=r"^out of memory on cpu .*smaller --scale.*--device cpu$"):
        segmenter.encode_image(IMAGE)


def test_running_out_elsewhere_is_one_line_too(segmenter, monkeypatch):
    def pool(*_) -> None:
        raise MemoryError("Unable to allocate 8.00 TiB")

    monkeypatch.setattr(segmenter, "pool", pool)
    with pytest.raises(InputError, match=r"^out of memory on cpu \(Unable to allocate 8.00 TiB\); use"):
        segmenter.encode_image(IMAGE)


def test_a_program_that_runs_out_of_memory_ends_in_one_line(monkeypatch, capsys):
    def run(*_) -> None:
        torch.empty(2**60)

    monkeypatch.setattr("textregion.cli.program.run", run)
    assert main(["--preset", "tiny"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory (")
    assert error.count("\n") == 1


def test_only_the_labels_used_last_stay_in_memory(segmenter, monkeypatch):
    monkeypatch.setattr(segmenter, "remembered_labels", LRUCache(3))
    expected = segmenter.encode_text(["a", "b", "c"])
    segmenter.encode_text(["a", "d"])
    assert sorted(segmenter.remembered_labels) == ["a", "c", "d"]
    many = segmenter.encode_text(["e", "b", "f", "c", "a", "b"])  # more than are kept
    assert len(segmenter.remembered_labels) == 3
    torch.testing.assert_close(many[[4, 1, 3]], expected)
    assert torch.equal(many[1], many[5])
