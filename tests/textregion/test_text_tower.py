"""The text tower with shared prefixes against the plain one, on small random towers of the real classes."""

import bounds
import oracles
import pytest
import tiny_models
import torch
from open_clip import SimpleTokenizer
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

from textregion.backbones import ClipBackbone, PerceptionBackbone
from textregion.text import TEMPLATE_SETS, TEMPLATES
from textregion.text_tower import embed_prompts, encode_prefixes, prompt_lengths, prompt_vectors, shares_prefixes

LABELS = ["dog", "7", "wooden kitchen table", "'s", "größe, sehr groß", "a label that is cut " * 5]
TOWER = {"context_length": 23, "vocab_size": 49408, "width": 34, "heads": 2, "layers": 3}  # heads of 17


def lively(model: nn.Module, seed: int) -> nn.Module:
    """The same model with branches that matter, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not name.startswith("visual."):
            spread = 1.5 / parameter.shape[-1] ** 0.5 if parameter.ndim == 2 else 0.3
            noise = torch.randn(parameter.shape, generator=generator) * spread
            parameter.data = parameter.data + noise if parameter.ndim == 1 else noise
    return model.eval().double()


def clip(seed: int = 3, **text) -> ClipBackbone:
    model = lively(CLIP(29, tiny_models.CLIP_VISION, TOWER | text, quick_gelu=True), seed)
    return ClipBackbone.from_model(model, SimpleTokenizer(context_length=23))


def perception(seed: int = 4, **text) -> PerceptionBackbone:
    vision = {"image_size": 64, "timm_model_name": "golden_pe_tiny_patch8_64", "timm_pool": "map", "timm_proj": None}
    model = lively(CustomTextCLIP(31, vision, TOWER | text), seed)
    return PerceptionBackbone.from_model(model, SimpleTokenizer(context_length=23))


TOWERS = {
    "CLIP": clip,
    "PE": perception,
    "layer scale": lambda: perception(ls_init_value=0.3),
    "no projection": lambda: perception(proj_type="none", width=31, heads=1),
    "linear projection": lambda: perception(proj_bias=True),
    "one block": lambda: clip(layers=1),
}


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("count", [1, 7, 80])
def test_labels_from_prefixes_equal_the_plain_tower(kind, count):
    """In double precision both give the same vectors but for the last step of single precision, in which both end."""
    backbone, templates = TOWERS[kind](), TEMPLATE_SETS[count]
    assert shares_prefixes(backbone.model)
    embedded = backbone.encode_labels(LABELS, templates)
    with torch.inference_mode():
        plain = torch.stack(
            [
                oracles.label_embedding(backbone.model, backbone.tokenizer, [t(label) for t in templates])
                for label in LABELS
            ]
        )
    # A mean of unit vectors: each entry carries the rounding to float32 of vector, norm and mean, a step each.
    torch.testing.assert_close(embedded, plain, rtol=0, atol=bounds.steps(1.0, torch.float32, 4))


@pytest.mark.parametrize("make", [clip, perception])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_the_precision_it_is_used_in_it_is_as_exact_as_the_plain_tower(make, dtype):
    """Both round in other places: their errors against double precision are of one size."""
    backbone, which = make(), torch.arange(len(TEMPLATES))
    tokens = backbone.tokenizer([t("red sofa") for t in TEMPLATES])
    with torch.inference_mode():
        backbone.model.to(dtype).double()  # the same weights in both
        exact = backbone.model.encode_text(tokens)
        plain = backbone.to("cpu", dtype).model.encode_text(tokens)
    found = prompt_vectors(backbone.model, tokens, prefixes=backbone.prefixes_of(TEMPLATES), which=which)
    error, error_of_plain = ((vectors.double() - exact).square().mean().sqrt() for vectors in (found, plain))
    assert 0 < error < 2 * error_of_plain


def test_prefixes_are_what_two_labels_share():
    backbone = clip()
    prefixes = backbone.prefixes_of(TEMPLATE_SETS[7])
    assert prefixes.lengths.tolist() == [5, 6, 3, 6, 2, 4, 6]  # start of text, then "itap of a", …
    tokens = backbone.tokenizer(["a photo of the large 7."])
    assert torch.equal(prefixes.tokens[3, :6], tokens[0, :6])
    assert [len(keys) for keys in prefixes.keys] == [7] * 3
    assert prefixes.values[2].shape == (7, 6, 34)


def test_a_prompt_that_does_not_begin_with_its_prefix_is_computed_whole():
    backbone = clip()
    prefixes = backbone.prefixes_of(TEMPLATE_SETS[7])
    tokens = backbone.tokenizer(["a photo of the large dog.", "a photo of the huge dog.", "itap of a cat", "itap"])
    which = torch.tensor([3, 3, 0, 0])
    lengths = prompt_lengths(backbone.model, tokens)
    assert prefixes.fitting(tokens, lengths, which).tolist() == [3, -1, 0, -1]
    found = prompt_vectors(backbone.model, tokens, prefixes=prefixes, which=which)
    with torch.inference_mode():
        expected = backbone.model.encode_text(tokens).float()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_prompts_that_are_the_same_for_both_probes_share_all_but_their_end():
    backbone = clip()
    same = backbone.tokenizer(["a dog", "the sky"])
    assert encode_prefixes(backbone.model, same, same).lengths.tolist() == [3, 3]


def test_only_positions_of_labels_go_through_the_tower():
    backbone = clip()
    rows = []
    for block in backbone.model.transformer.resblocks:
        block.mlp.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    backbone.encode_labels(["dog"])
    shared = backbone.prefixes_of(TEMPLATES).lengths
    assert rows[:3] == [int(shared.sum())] * 3
    longest = prompt_lengths(backbone.model, backbone.tokenizer([t("dog") for t in TEMPLATES]))
    assert rows[3:] == [int((longest - shared).sum())] * 2 + [80]  # of the last block the end alone
    del rows[:]
    backbone.encode_labels(["cat"])
    assert len(rows) == 3  # the prefixes are there


def test_moving_the_model_forgets_its_prefixes():
    backbone = clip()
    before = backbone.prefixes_of(TEMPLATES)
    assert backbone.prefixes_of(TEMPLATES) is before
    assert backbone.to("cpu").prefixes_of(TEMPLATES) is not before


def test_other_towers_share_nothing(tiny_siglip):
    custom = clip(qk_norm=True)
    two_ways = perception(no_causal_mask=True, pool_type="last")
    assert not shares_prefixes(custom.model)
    assert not shares_prefixes(two_ways.model)
    for backbone in (custom, two_ways):
        assert backbone.prefixes_of(TEMPLATES) is None
        tokens = backbone.tokenizer([t("dog") for t in TEMPLATES])
        mean = torch.nn.functional.normalize(embed_prompts(backbone.model, tokens).mean(0), dim=-1)
        bound = bounds.steps(1.0, torch.float32, 4)
        torch.testing.assert_close(backbone.encode_labels(["dog"])[0], mean, rtol=0, atol=bound)


@pytest.mark.parametrize("make", [clip, tiny_models.siglip])
def test_progress_counts_every_prompt_once(make):
    told = []
    make().encode_labels(["dog", "cat", "sky", "sofa"], progress=told.append)
    assert len(told) > 1
    assert sum(told) == 4 * 80
