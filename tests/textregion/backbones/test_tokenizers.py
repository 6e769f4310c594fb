"""SigLIP's tokenizer file through the small library: cleaned, ended, cut and padded as open_clip does."""

import json

import open_clip
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from textregion.backbones import SPECS
from textregion.backbones.loading import FileTokenizer, tokenizer_asset, tokenizer_of
from textregion.errors import InputError

PIECES = ["<pad>", "<eos>", "<unk>", "a", "photo", "of", "cat", "dog"]


@pytest.fixture
def path(tmp_path):
    """A tokenizer.json of whole words that ends every text with <eos>, as SigLIP 2's does."""
    pieces = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    pieces.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_texts_are_cleaned_ended_and_padded(path):
    tokenizer = FileTokenizer(path, 7, "canonicalize")
    assert tokenizer(["A photo of  a Cat.", "bird"]).tolist() == [[3, 4, 5, 3, 6, 1, 0], [2, 1, 0, 0, 0, 0, 0]]


def test_a_long_text_is_cut_and_still_ended(path):
    tokenizer = FileTokenizer(path, 5, "canonicalize")
    assert tokenizer(["a dog of a cat of a dog"]).tolist() == [[3, 7, 5, 3, 1]]


def test_the_padding_piece_is_the_configured_one(path):
    path.with_name("tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<eos>"}}))
    assert FileTokenizer(path, 4, "canonicalize")(["cat"]).tolist() == [[6, 1, 1, 1]]


def test_a_row_uses_its_own_length_and_cleaning(path):
    tokenizer = tokenizer_of(SPECS["siglip-so400m-14"], path)
    assert tokenizer(["A cat!"]).tolist() == [[3, 6, 1] + [0] * 13]
    assert tokenizer_of(SPECS["siglip2-b16"], path)(["cat"]).shape == (1, 64)


def test_clip_and_perception_need_no_file():
    for name, length in (("clip-vit-l14", 77), ("pe-core-b16", 32), ("pe-core-bigg14-448", 72)):
        assert tokenizer_asset(SPECS[name]) is None
        tokens = tokenizer_of(SPECS[name])(["a photo of a cat."])
        assert tokens.tolist() == open_clip.SimpleTokenizer(context_length=length)(["a photo of a cat."]).tolist()


def test_a_damaged_file_is_one_line(path):
    path.write_text(path.read_text()[:40])
    with pytest.raises(InputError, match="is not a readable tokenizer file"):
        FileTokenizer(path, 7, "canonicalize")
