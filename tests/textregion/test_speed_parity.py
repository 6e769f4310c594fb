"""Every faster form equals its obvious one, over random shapes (tests/oracles.py); no test looks at a clock."""

import bounds
import oracles
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import integers

from textregion.errors import InputError
from textregion.labeling import label_pixels
from textregion.labels import LabelPrompts
from textregion.masks import filters
from textregion.masks.clicks import CPU_PROMPTS
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.pooling import RECIPES, difference_scores
from textregion.runtime import compile_backend, compile_blocks
from textregion.text import TEMPLATES
from textregion.text_tower import embed_prompts, prompt_lengths, reads_end_of_text
from textregion.types import RegionMasks
from TextRegionSegmenter import TextRegionSegmenter

seeds = integers(0, 10_000)
sides = st.sampled_from([5, 11, 17, 29, 41])
PHRASES = ["dog", "a rather large and old wooden kitchen table", "x", "traffic light", "sky " * 90]


def soft_masks(seed: int, count: int, size: tuple[int, int], dtype=torch.float32) -> torch.Tensor:
    """Smooth blobs 0..3 in families that contain or nearly equal each other; one is empty."""
    random = torch.Generator().manual_seed(seed)
    number = lambda low, high: low + (high - low) * float(torch.rand((), generator=random))  # noqa: E731
    y, x = torch.meshgrid(*(torch.linspace(0, 1, n) for n in size), indexing="ij")
    masks = []
    for index in range(count):
        if index % 3 == 0:
            centre, axes = (number(0, 1), number(0, 1)), (number(0.1, 0.6), number(0.1, 0.6))
        shift, grow = number(-0.1, 0.1), number(0.4, 1.1)
        distance = (((y - centre[0] - shift) / axes[0]) ** 2 + ((x - centre[1] + shift) / axes[1]) ** 2).sqrt()
        masks.append(((grow - distance) * number(1, 9)).clamp(0, 3))
    masks[-1] = torch.zeros(size)
    return torch.stack(masks).to(dtype)


# ---------------------------------------------------------------- fusion


@given(seeds, sides, sides, st.tuples(sides, sides), st.sampled_from([0.0, 0.3, 0.8, 0.97, 1.0]), st.booleans())
def test_fusion_equals_the_pair_loop_at_full_size(seed, height, width, size, threshold, half):
    """Up, down and mixed resizes; groups are identical unless a share lies within rounding of the threshold."""
    soft = soft_masks(seed, 11, (height, width), torch.float16 if half else torch.float32)
    boxes = filters.inclusive_boxes(soft > 0)
    groups = filters.fusion_groups(RegionMasks(soft, size, size), boxes, threshold)
    full = oracles.full_size(soft, size)
    shares = pair_shares(full)
    if ((shares - threshold).abs() > 2e-6).all() or threshold in (0.0, 1.0):
        assert groups == oracles.fusion_groups_pair_by_pair(soft, size, boxes, threshold)


def pair_shares(full: torch.Tensor) -> torch.Tensor:
    sums = full.double().sum((1, 2))
    shared = torch.stack([torch.minimum(one, full).double().sum((1, 2)) for one in full])
    return (shared / torch.minimum(sums[:, None], sums)).nan_to_num(-1)


@given(seeds, sides, sides, st.tuples(sides, sides))
def test_shared_mass_lies_between_its_bounds(seed, height, width, size):
    soft = soft_masks(seed, 7, (height, width))
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    boxes = filters.inclusive_boxes(soft > 0).tolist()
    y, x = (filters.Axis.of(*sizes) for sizes in zip((height, width), size, strict=True))
    below, above = filters.bounds(soft, pairs, boxes, y, x)
    full = oracles.full_size(soft, size).double()
    exact = torch.stack([torch.minimum(full[i], full[j]).sum() for i, j in pairs]).float()
    slack = 1e-5 * exact.max() + 1e-6
    assert (below <= exact + slack).all()
    assert (above >= exact - slack).all()
    torch.testing.assert_close(soft @ x.total @ y.total, full.sum((1, 2)).float(), rtol=1e-5, atol=1e-5)


def test_doubtful_pairs_are_decided_at_full_size(monkeypatch):
    """Two borders that cross between low-res pixels: neither bound settles it, and only such pairs are opened."""
    soft = torch.zeros(3, 4, 4)
    soft[0] = torch.tensor([1.0, 1, 0, 0])
    soft[1] = torch.tensor([0.0, 0, 1, 1])
    soft[2] = soft[0]
    masks = RegionMasks(soft, (32, 32), (32, 32))
    boxes = torch.tensor([[0, 0, 3, 3]] * 3)  # all near each other
    full = oracles.full_size(soft, (32, 32))
    share = float(pair_shares(full)[0, 1])
    opened = []
    original = filters.at_full_size
    monkeypatch.setattr(filters, "at_full_size", lambda m, p, *a: opened.extend(p) or original(m, p, *a))
    assert filters.fusion_groups(masks, boxes, share - 0.01) == [[0, 1, 2]]
    assert filters.fusion_groups(masks, boxes, share + 0.01) == [[0, 2], [1]]
    assert {tuple(sorted(pair)) for pair in opened} == {(0, 1), (1, 2)}


# ---------------------------------------------------------------- pooling, removal


@given(seeds, integers(1, 13), integers(2, 37), st.sampled_from(["siglip", "perception"]))
def test_masked_mean_equals_attention_over_repeated_patches(seed, regions, patches, family):
    backbone = timm_backbone(family)
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(patches, backbone.trunk.embed_dim, generator=random)
    weights = (torch.rand(regions, patches, generator=random) - 0.5).clamp(0)
    weights[:, seed % patches] = 0.3  # no region is empty
    pooled = backbone.pool(features, weights, RECIPES["semantic"], False)
    with torch.inference_mode():
        expected = oracles.attention_pool(backbone.trunk, features, weights)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-5)


_timm = {}


def timm_backbone(family: str):
    if family not in _timm:
        _timm[family] = getattr(tiny_models, family)()
    return _timm[family]


@given(seeds, integers(1, 11), integers(2, 31), integers(2, 17))
def test_scores_equal_the_similarity_matrix(seed, regions, patches, width):
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(patches, width, generator=random)
    weights = (torch.rand(regions, patches, generator=random) - 0.5).clamp(0)
    weights[:, 0] = 1.0
    scores = difference_scores(features, weights)
    torch.testing.assert_close(scores, oracles.similarity_scores(features, weights), rtol=0, atol=2e-6)


# ---------------------------------------------------------------- label maps


@given(seeds, integers(1, 9), integers(1, 13), sides, sides, st.sampled_from([1, 3_000, 2**26]))
def test_label_maps_equal_the_whole_product(seed, labels, regions, height, width, budget):
    soft = soft_masks(seed, regions + 1, (13, 17))[:regions]
    masks = RegionMasks(soft, (height, width), (height, width))
    logits = torch.rand(regions, labels, generator=torch.Generator().manual_seed(seed)) * 0.3
    prompts = LabelPrompts.parse([f"label {k}" for k in range(labels)])
    result = label_pixels(logits, masks, prompts, memory_budget=budget)
    label, confidence = oracles.pixel_labels(logits, oracles.full_size(soft, (height, width)))
    torch.testing.assert_close(torch.from_numpy(result.confidence), confidence, rtol=0, atol=5e-5)
    certain = (confidence > 0.51).numpy()
    assert (result.label_map[certain] == label.numpy()[certain]).all()


@given(seeds, integers(1, 11), st.lists(integers(0, 6), min_size=1, max_size=7, unique=True))
def test_some_regions_pixels_are_those_of_all(seed, parts, wanted):
    group = torch.arange(7).repeat(3)[: 7 + parts].sort().values
    masks = RegionMasks(soft_masks(seed, 7 + parts, (11, 13)), (23, 19), (23, 19), group)
    rows, columns, regions = torch.arange(3, 17), torch.arange(19), torch.tensor(sorted(wanted))
    assert torch.equal(masks.pixels(rows, columns, regions), masks.full()[regions][:, 3:17])


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("make", [tiny_models.clip, tiny_models.perception, tiny_models.siglip])
@pytest.mark.parametrize("batch", [3, 7, 512])
def test_prompts_without_padding_equal_the_full_context(make, batch):
    backbone = make()
    prompts = [template(phrase) for phrase in PHRASES for template in TEMPLATES[::7]]
    tokens = backbone.tokenizer(prompts)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(backbone.model.encode_text(tokens).float(), dim=-1)
    rounding = bounds.steps(1.0, torch.float32, 32)
    torch.testing.assert_close(embed_prompts(backbone.model, tokens, batch), expected, rtol=0, atol=rounding)


@pytest.mark.parametrize("make", [tiny_models.clip, tiny_models.perception])
def test_what_follows_the_end_of_text_has_no_influence(make):
    backbone = make()
    model = backbone.model
    tokens = backbone.tokenizer(["a dog", "a rather old table"])
    assert reads_end_of_text(model)
    assert prompt_lengths(model, tokens).tolist() == [4, 6]
    other = tokens.clone()
    other[:, 9:] = 321
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_text(tokens), model.encode_text(other), rtol=0, atol=1e-6)


def test_towers_that_look_both_ways_keep_their_context():
    """The SigLIP 2 registry rows say so themselves: no causal mask, last position pooled."""
    text = {**tiny_models.TIMM_TEXT, "no_causal_mask": True, "pool_type": "last"}
    vision = {"image_size": 64, "timm_model_name": "golden_siglip_tiny_patch8_64", "timm_pool": "map"}
    model = tiny_models.CustomTextCLIP(64, {**vision, "timm_proj": "none"}, text).eval()
    assert not reads_end_of_text(model)
    tokens = timm_backbone("siglip").tokenizer(["a dog", "two old dogs"])
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)
    assert torch.equal(embed_prompts(model, tokens), expected)


@given(st.lists(st.sampled_from(["dog", "old red sofa", "sky", "a very long label " * 9]), min_size=1, max_size=4))
def test_labels_together_equal_one_at_a_time(labels):
    backbone = clip_backbone()
    alone = torch.stack(
        [
            oracles.label_embedding(backbone.model, backbone.tokenizer, [template(label) for template in TEMPLATES])
            for label in labels
        ]
    )
    torch.testing.assert_close(backbone.encode_labels(labels), alone, rtol=0, atol=1e-6)


def clip_backbone():
    if "clip" not in _timm:
        _timm["clip"] = tiny_models.clip()
    return _timm["clip"]


# ---------------------------------------------------------------- encoder, decoder, compilation


@pytest.mark.parametrize("make", [tiny_models.clip, tiny_models.perception])
def test_views_in_one_batch_equal_view_by_view(make):
    backbone = make()
    views = torch.randn(5, 3, backbone.crop_size, backbone.crop_size)
    together = backbone.encode_crops(views).pooled
    torch.testing.assert_close(
        together, torch.cat([backbone.encode_crops(view[None]).pooled for view in views]), rtol=0, atol=2e-5
    )


def test_decoder_batches_follow_the_free_memory(tiny_sam2, monkeypatch):
    maker = Sam2MaskGenerator(tiny_sam2, points_per_batch=100)
    assert maker.prompts_at_once == CPU_PROMPTS
    assert Sam2MaskGenerator(tiny_sam2, points_per_batch=3).prompts_at_once == 3
    per_click = 448 * (4 * 256 // 16) ** 2
    for clicks, expected in ((0, 1), (17.5, 17), (5000, 100)):
        monkeypatch.setattr(
            "textregion.masks.clicks.free_memory", lambda device, n=clicks: int(n * per_click / 0.7) + 1
        )
        assert maker.prompts_at_once == expected


def test_the_number_of_clicks_at_once_changes_nothing(tiny_sam2):
    image = torch.randint(0, 255, (48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).numpy()
    whole, parts = (Sam2MaskGenerator(tiny_sam2, points_per_side=4, points_per_batch=n) for n in (16, 5))
    features = whole.encode(image)
    points = filters.point_grid(4)[:, None]
    outputs = (maker.decode_with_tokens(features, points)[:2] for maker in (whole, parts))
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)  # half precision


def test_compiled_blocks_keep_names_and_numbers():
    plain, compiled = tiny_models.clip(), tiny_models.clip()
    names = list(compiled.model.state_dict())
    TextRegionSegmenter(compiled, crop_size=32, device="cpu", compile="aot_eager")
    assert list(compiled.model.state_dict()) == names
    assert compile_blocks(tiny_models.clip().model.visual, "eager") == 3
    assert compile_blocks(timm_backbone("siglip").model.visual, "eager") == 3
    views = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    expected = plain.encode_crops(views).pooled
    torch.testing.assert_close(compiled.encode_crops(views).pooled, expected, rtol=0, atol=1e-5)


def test_what_compile_may_be():
    assert compile_backend(False) is None
    assert compile_backend(True) == "inductor"
    with pytest.raises(InputError, match="expected True, False or a backend"):
        compile_backend("fast")
