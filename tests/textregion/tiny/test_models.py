import open_clip
import pytest
import torch
from safetensors.torch import load_file

from textregion.tiny.models import (
    CLIP_WEIGHTS,
    SAM2_WEIGHTS,
    TOKEN_IDS,
    TOKEN_TABLE,
    build_clip,
    build_sam2,
    known_token_ids,
    load_clip,
    read_clip,
    save_weights,
    tokenizer,
    unknown_words,
)


def test_weight_files_are_small_and_half_precision():
    assert CLIP_WEIGHTS.stat().st_size + SAM2_WEIGHTS.stat().st_size <= 15e6
    for path in (CLIP_WEIGHTS, SAM2_WEIGHTS):
        state = load_file(path)
        state.pop(TOKEN_IDS, None)
        assert {value.dtype for value in state.values()} == {torch.float16}
        assert all(value.isfinite().all() for value in state.values())


def test_models_load_ready_to_use(clip, sam2):
    for model in (clip[0], sam2):
        assert not model.training
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_clip_is_open_clips_own_class(clip):
    reference = open_clip.CLIP(
        128,
        {"image_size": 96, "patch_size": 12, "width": 192, "layers": 4},
        {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
    )
    shapes = {name: value.shape for name, value in reference.state_dict().items()}
    assert type(clip[0]) is open_clip.CLIP
    assert shapes == {name: value.shape for name, value in build_clip().state_dict().items()}


def test_sam2_files_fit_the_built_model():
    assert set(load_file(SAM2_WEIGHTS)) == set(build_sam2().state_dict())


def test_tokenizer_round_trip():
    tokens = tokenizer()(["a red star", "wooden floor"])
    assert tokens.shape == (2, 32)
    assert tokens.dtype == torch.int64
    words = tokens[0][1 : tokens[0].argmax()].tolist()
    assert tokenizer().decode(words).strip() == "a red star"


def test_unknown_words():
    assert unknown_words(["a red star!", "Wooden floor, and sky."]) == []
    assert unknown_words(["a zebra on grass", "zebra, sofa"]) == ["zebra", "sofa"]


def test_token_table_spreads_rows(clip):
    state, token_ids = read_clip(CLIP_WEIGHTS)
    table = clip[0].state_dict()[TOKEN_TABLE]
    assert table.shape == (49408, state[TOKEN_TABLE].shape[1])
    assert table[token_ids.long()].equal(state[TOKEN_TABLE].float())


def test_compact_and_full_table_encode_alike(clip):
    state, token_ids = read_clip(CLIP_WEIGHTS)
    compact = build_clip(len(token_ids)).eval()
    compact.load_state_dict(state)
    tokens = tokenizer()(["a photo of a red star.", "stone floor"])
    rows = torch.searchsorted(token_ids.long(), tokens)
    with torch.no_grad():
        torch.testing.assert_close(compact.encode_text(rows), clip[0].encode_text(tokens))


def test_known_rows_are_the_rows_with_values(clip):
    table = clip[0].state_dict()[TOKEN_TABLE]
    assert set(torch.nonzero(table.any(1))[:, 0].tolist()) == known_token_ids()


def test_saving_and_reading_back(tmp_path):
    state, token_ids = read_clip(CLIP_WEIGHTS)
    save_weights({**state, TOKEN_IDS: token_ids}, tmp_path / "new" / "clip.safetensors")
    again, ids = read_clip(tmp_path / "new" / "clip.safetensors")
    assert ids.equal(token_ids)
    assert all(again[name].equal(value) for name, value in state.items())


def test_loading_is_strict(tmp_path):
    state, token_ids = read_clip(CLIP_WEIGHTS)
    del state["visual.proj"]
    save_weights({**state, TOKEN_IDS: token_ids}, tmp_path / "clip.safetensors")
    with pytest.raises(RuntimeError, match="Missing key"):
        load_clip(tmp_path / "clip.safetensors")
