"""The segmenter as a whole, on small random models: options, caching, given masks, normal and empty results."""

import warnings
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import oracles
import pytest
import tiny_models
import torch
from torch.nn import functional as F

from textregion.config import SegmenterConfig
from textregion.crops import CropGrid
from textregion.errors import InputError
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.pooling import PoolingRecipe
from textregion.types import RegionMasks, RegionTokens
from TextRegionSegmenter import TextRegionSegmenter

SCALE = (101, 67)
LABELS = ["dog", "sofa; couch", "floor"]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """53 x 79 pixels: 67 x 100 at SCALE, so 2 x 3 tiles of 32."""
    noise = np.random.default_rng(2).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    return cv2.resize(noise, (79, 53), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    """Four boolean masks at image size: left, bottom, a speck, nothing."""
    out = np.zeros((4, 53, 79), bool)
    out[0, :, :31] = out[1, 29:, :] = out[2, 10, 60] = True
    return out


def segmenter(backbone, **options) -> TextRegionSegmenter:
    return TextRegionSegmenter(backbone, **({"scale": SCALE, "device": "cpu", "dtype": "float32"} | options))


def generator(model, **options) -> Sam2MaskGenerator:
    given = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "min_size": 0}
    return Sam2MaskGenerator(model, **(given | options))


@pytest.fixture
def calls(tiny_clip, tiny_sam2):
    """How often the real models' parts ran, counted by hooks."""
    counted = Counter()

    def count(name):
        return lambda module, given: counted.update({name: 1})

    def count_views(module, given):
        counted["views"] += len(given[0])

    handles = [
        tiny_clip.model.visual.conv1.register_forward_pre_hook(count_views),
        tiny_clip.model.ln_final.register_forward_pre_hook(count("text batches")),
        tiny_sam2.image_encoder.register_forward_pre_hook(count("sam2 images")),
        tiny_sam2.sam_prompt_encoder.register_forward_pre_hook(count("sam2 points")),
    ]
    yield counted
    for handle in handles:
        handle.remove()


# ---------------------------------------------------------------- image to tokens


def test_tokens_equal_the_steps_one_by_one(tiny_clip, image, masks):
    """The whole way again with the slow formulations."""
    result = segmenter(tiny_clip).encode_image(image, masks)
    resized = cv2.resize(image, (100, 67), interpolation=cv2.INTER_LINEAR)
    pixels = torch.from_numpy(resized).permute(2, 0, 1).float() / 255
    views = [pixels[None]]
    for y in (0, 33):  # two rows of 34 pixels, the second moved back by one; three columns likewise
        views += [pixels[None, :, y : y + 34, x : x + 34] for x in (0, 34, 66)]
    views = torch.cat([F.interpolate(v, (32, 32), mode="bicubic", antialias=True) for v in views])
    maps = tiny_clip.encode_crops(tiny_clip.normalise(views)).pooled
    values = oracles.fused_views(maps, (2, 3), (1, 1), 1.0).flatten(1).T
    weights = oracles.resize(torch.from_numpy(masks).float(), (8, 12)).flatten(1).clamp(0, 1)
    scores = oracles.difference_scores(values, weights[:2])  # the speck lies between the samples
    left = weights[:2] * (scores >= 0.07)
    assert (weights[2:] == 0).all()
    unit = values / values.norm(dim=1, keepdim=True)
    block, visual = tiny_clip.model.visual.transformer.resblocks[-1], tiny_clip.model.visual
    with torch.inference_mode():
        pooled = block.attn.out_proj(oracles.weighted_sum(unit, left))
        pooled = pooled + block.mlp(block.ln_2(pooled))
        tokens = visual.ln_post(pooled) @ visual.proj
    assert result.grid == (8, 12)
    assert result.source_index.tolist() == [0, 1]
    torch.testing.assert_close(result.patch_scores.flatten(), scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.tokens, tokens / tokens.norm(dim=1, keepdim=True), rtol=0, atol=1e-4)


def test_every_way_to_give_an_image(tiny_clip, image, masks, tmp_path):
    import PIL.Image

    path = tmp_path / "image.png"
    PIL.Image.fromarray(image).save(path)
    expected = segmenter(tiny_clip).encode_image(image, masks).tokens
    for given in (path, str(path), path.read_bytes(), PIL.Image.open(path)):
        assert torch.equal(segmenter(tiny_clip).encode_image(given, masks).tokens, expected)


@pytest.mark.parametrize("size", [(53, 79), (106, 158), (265, 395), (13, 19), (16, 16)])
def test_masks_of_any_resolution(tiny_clip, image, size):
    soft = np.zeros((3, *size), np.float32)
    soft[0, :, : size[1] // 2] = soft[1, size[0] // 2 :] = 1
    soft[2] = 0.4
    tokens = segmenter(tiny_clip).encode_image(image, soft)
    assert len(tokens) == 3
    assert tokens.masks.image_size == (53, 79)
    grid = oracles.resize(torch.from_numpy(soft), (8, 12))  # one bilinear step from the given size
    torch.testing.assert_close(tokens.masks.patch_grid((8, 12)), grid)


def test_boolean_and_soft_masks_of_zeros_and_ones_are_the_same(tiny_clip, image, masks):
    encode = segmenter(tiny_clip).encode_image
    tokens = encode(image, masks).tokens
    for given in (masks.astype(np.uint8), masks.astype(np.float64), torch.from_numpy(masks)):
        assert torch.equal(encode(image, given).tokens, tokens)
    assert torch.equal(encode(image, RegionMasks.from_array(masks, (53, 79))).tokens, tokens)


def test_soft_masks_weigh(tiny_clip, image, masks):
    encode = segmenter(tiny_clip, global_patch_threshold=None).encode_image
    ramp = masks[:1] * np.linspace(0.1, 1, 79)
    assert F.cosine_similarity(encode(image, ramp).tokens, encode(image, masks[:1]).tokens)[0] < 0.9999


def test_results_are_the_same_every_time(tiny_clip, image, masks):
    first, second = (segmenter(tiny_clip, dense_fallback=True).encode_image(image, masks) for _ in range(2))
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.dense, second.dense)


def test_views_per_batch_does_not_matter(tiny_clip, image, masks):
    whole = segmenter(tiny_clip).encode_image(image, masks)
    for batch in (1, 3):
        parts = segmenter(tiny_clip, crops_per_batch=batch).encode_image(image, masks)
        torch.testing.assert_close(parts.tokens, whole.tokens, rtol=0, atol=2e-5)


def test_identical_views_are_encoded_once(tiny_clip, image, masks, calls):
    few = segmenter(tiny_clip, scale=(61, 41))  # 41 x 61: one tile, the whole image again
    assert CropGrid(41, 61, 32).crops == [(0, 0, 41, 61)] * 2
    few.encode_image(image, masks)
    assert calls["views"] == 1
    segmenter(tiny_clip).encode_image(image, masks)
    assert calls["views"] == 1 + 7


def test_one_tile_counts_twice(tiny_clip, image):
    """The view once upsampled and once as its own tile: the fused map is twice the view's."""
    few = segmenter(tiny_clip, scale=(61, 41))
    resized = few.resize(image)
    grid = CropGrid(*resized.shape[:2], 32)
    features = few.encode_crops([resized], [grid])[0]
    assert features.pooled.shape[0] == 2
    assert torch.equal(features.pooled[0], features.pooled[1])


def test_resizing_to_one_view(tiny_clip, image, masks, calls):
    tokens = segmenter(tiny_clip, resize_method="resize").encode_image(image, masks)
    assert calls["views"] == 1
    assert tokens.grid == (4, 4)


def test_upsampling_makes_the_grid_finer(tiny_clip, image, masks):
    assert segmenter(tiny_clip, upsample_times=2).encode_image(image, masks).grid == (16, 24)


def test_splitting_the_whole_image(tiny_clip, image, masks, calls):
    tokens = segmenter(tiny_clip, global_splits=(1, 2)).encode_image(image, masks)
    assert calls["views"] == 2 + 6
    assert tokens.grid == (8, 12)


@pytest.mark.parametrize("family", ["tiny_siglip", "tiny_perception"])
def test_other_families(family, image, masks, request):
    backbone = request.getfixturevalue(family)
    tokens = segmenter(backbone, scale=(220, 140), global_patch_threshold=None).encode_image(image, masks)
    assert tokens.source_index.tolist() in ([0, 1], [0, 1, 2])
    torch.testing.assert_close(tokens.tokens.norm(dim=1), torch.ones(len(tokens)))
    result = segmenter(backbone, scale=(220, 140)).segment(tokens, LABELS)
    assert result.label_map.shape == (53, 79)
    assert tokens.logit_bias == (-10 if family == "tiny_siglip" else 0)


# ---------------------------------------------------------------- no region


@pytest.mark.parametrize("dense", [False, True])
def test_no_region_is_a_normal_result(tiny_clip, image, dense):
    whole = segmenter(tiny_clip, dense_fallback=dense)
    for given in (np.zeros((0, 53, 79), bool), np.zeros((2, 53, 79), bool)):
        tokens = whole.encode_image(image, given)
        assert tokens.tokens.shape == (0, 24)
        result = whole.segment(tokens, LABELS)
        assert result.label_map.shape == (53, 79)
        assert (result.region_map == -1).all()
        assert dense or (result.label_map == 0).all()
        best = whole.refer(tokens, "the dog")
        assert (best.region, best.box, best.score) == (None, None, None)
        assert not best.mask.any()
        assert best.mask.shape == (53, 79)


def test_no_region_from_the_generator(tiny_clip, tiny_sam2, image):
    whole = segmenter(tiny_clip, mask_generator=generator(tiny_sam2, pred_iou_thresh=1.0))
    tokens = whole.encode_image(image)
    assert len(tokens) == 0
    assert whole.segment(image, LABELS).label_map.shape == (53, 79)


def test_a_threshold_that_removes_everything(tiny_clip, image, masks):
    assert len(segmenter(tiny_clip, global_patch_threshold=2.0).encode_image(image, masks)) == 0


# ---------------------------------------------------------------- words


def test_labels_are_encoded_once(tiny_clip, calls):
    whole = segmenter(tiny_clip)
    first = whole.encode_text(["dog", "sofa", "dog"])
    assert torch.equal(first[0], first[2])
    counted = calls["text batches"]
    assert counted > 0
    assert torch.equal(whole.encode_text(["sofa", "dog"]), first[[1, 0]])
    assert calls["text batches"] == counted
    whole.encode_text(["dog", "cat"])
    assert calls["text batches"] == counted + 1


def test_five_hundred_labels_equal_one_by_one(tiny_clip):
    labels = [f"{first} {second}" for first in ("red", "big", "old", "wet", "odd") for second in map(str, range(100))]
    together = segmenter(tiny_clip).encode_text(labels)
    assert together.shape == (500, 24)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(500))
    alone = segmenter(tiny_clip)
    for i in (0, 1, 24, 25, 26, 250, 499):
        torch.testing.assert_close(alone.encode_text([labels[i]])[0], together[i], rtol=0, atol=2e-6)


@pytest.mark.parametrize("count", [1, 2, 26])
def test_any_number_of_labels(tiny_clip, image, masks, count):
    whole = segmenter(tiny_clip)
    result = whole.segment(whole.encode_image(image, masks), [f"thing {i}" for i in range(count)])
    assert len(result.labels) == len(result.shares) == count
    assert sum(result.shares.values()) == pytest.approx(1)


# ---------------------------------------------------------------- tasks


def test_other_labels_encode_no_image(tiny_clip, tiny_sam2, image, calls):
    whole = segmenter(tiny_clip, mask_generator=generator(tiny_sam2))
    tokens = whole.encode_image(image)
    assert calls["views"] > 0
    assert calls["sam2 images"] == 1
    assert calls["sam2 points"] > 0
    before = Counter({name: n for name, n in calls.items() if name != "text batches"})
    for labels in (["dog", "sofa"], ["cat"], LABELS):
        whole.segment(tokens, labels)
    whole.refer(tokens, "the big dog")
    assert Counter({name: n for name, n in calls.items() if name != "text batches"}) == before


def test_segmenting_an_image_equals_segmenting_its_tokens(tiny_clip, tiny_sam2, image):
    whole = segmenter(tiny_clip, mask_generator=generator(tiny_sam2), dense_fallback=True)
    first, second = whole.segment(image, LABELS), whole.segment(whole.encode_image(image), LABELS)
    np.testing.assert_array_equal(first.label_map, second.label_map)
    np.testing.assert_array_equal(first.confidence, second.confidence)


def test_saved_tokens_give_the_same_answers(tiny_clip, image, masks, tmp_path):
    whole = segmenter(tiny_clip, dense_fallback=True)
    tokens = whole.encode_image(image, masks)
    tokens.save(tmp_path / "tokens.safetensors")
    back = RegionTokens.load(tmp_path / "tokens.safetensors")
    first, second = whole.segment(tokens, LABELS), whole.segment(back, LABELS)
    np.testing.assert_array_equal(first.label_map, second.label_map)
    np.testing.assert_allclose(first.confidence, second.confidence, rtol=0, atol=1e-5)  # memory layout rounds
    assert whole.refer(back, "the dog").box == whole.refer(tokens, "the dog").box


def test_label_map_equals_the_slow_form(tiny_clip, image, masks):
    whole = segmenter(tiny_clip, dense_fallback=True)
    tokens = whole.encode_image(image, masks)
    text = whole.encode_text(["dog", "sofa", "couch", "floor"])
    uncovered = torch.einsum("qd,dyx->qyx", text, tokens.dense)
    full = torch.from_numpy(masks[tokens.source_index.numpy()]).float()
    probability = oracles.pixel_probabilities(tokens.tokens @ text.T, full, (0, 1, 1, 2), (53, 79), uncovered)
    result = whole.segment(tokens, LABELS, return_probabilities=True)
    np.testing.assert_allclose(result.probabilities, probability, rtol=0, atol=2e-4)
    assert result.labels == ("dog", "sofa", "floor")


def test_output_size_and_threshold(tiny_clip, image, masks):
    whole = segmenter(tiny_clip)
    tokens = whole.encode_image(image, masks)
    result = whole.segment(tokens, LABELS, probability_threshold=1.0, output_size=(17, 19))
    assert result.label_map.shape == (17, 19)
    assert (result.label_map == 0).all()


def test_referring_takes_the_largest_cosine(tiny_clip, image, masks):
    whole = segmenter(tiny_clip)
    tokens = whole.encode_image(image, masks)
    scores = tokens.similarity(whole.encode_text(["the dog"]))[:, 0]
    best = whole.refer(tokens, "The DOG")
    assert best.region == int(scores.argmax())
    assert best.score == pytest.approx(float(scores.max()))
    np.testing.assert_array_equal(best.mask, masks[tokens.source_index[best.region]])
    assert best.box == ((0, 0, 30, 52), (0, 29, 78, 23))[best.region]


def test_mask_size_of_generated_masks(tiny_clip, tiny_sam2, image):
    for option, size in (("resized", (67, 100)), ("original", (53, 79))):
        whole = segmenter(tiny_clip, mask_generator=generator(tiny_sam2), mask_size=option)
        tokens = whole.encode_image(image)
        assert tokens.masks.mask_size == size
        assert tokens.masks.image_size == (53, 79)


def test_stages_are_timed(tiny_clip, image, masks):
    whole = segmenter(tiny_clip)
    whole.segment(whole.encode_image(image, masks), LABELS)
    assert {"resize", "masks", "encode", "pool", "text", "postprocess"} <= whole.timer.calls.keys()
    assert all(seconds >= 0 for seconds in whole.timer.seconds.values())


# ---------------------------------------------------------------- what is refused


def refused(call, *args, **options) -> str:
    with pytest.raises(InputError) as error:
        call(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "fancy"}, "expected one of demo, semantic, semantic-fp32"),
        ({"scale": (0, 672)}, "got scale (0, 672), expected two whole numbers"),
        ({"scale": (672,)}, "got scale (672,)"),
        ({"scale": (672.5, 300)}, "got scale"),
        ({"crop_size": 33}, "multiple of the patch size 8"),
        ({"crop_size": 0}, "got crop_size 0"),
        ({"crop_size": "32"}, "got crop_size '32'"),
        ({"resize_method": "squash"}, "expected one of multi_resolution, resize"),
        ({"global_patch_threshold": 2.5}, "expected -2..2 or None"),
        ({"global_patch_threshold": float("nan")}, "expected -2..2 or None"),
        ({"mask_type": "medium"}, "expected one of soft, hard"),
        ({"pool_feature": "query"}, "expected one of value, input, output"),
        ({"mask_size": "small"}, "expected one of resized, original"),
        ({"upsample_times": 0}, "got upsample_times 0"),
        ({"upsample_times": True}, "got upsample_times True"),
        ({"crops_per_batch": -1}, "got crops_per_batch -1"),
        ({"global_splits": (0, 1)}, "got global_splits (0, 1)"),
        ({"device": "gpu"}, "expected auto, cpu, cuda"),
        ({"dtype": "float64"}, "expected auto, float32"),
        ({"dtype": "float16"}, "too slow and inexact on a CPU"),
    ],
)
def test_bad_options(untyped, tiny_clip, options, message):
    assert message in refused(segmenter, tiny_clip, **options)


def test_bad_parts(untyped, tiny_siglip):
    assert "type Linear, expected ClipBackbone" in refused(segmenter, torch.nn.Linear(2, 2))
    assert "no dense features" in refused(segmenter, tiny_siglip, dense_fallback=True)
    assert "expected 64" in refused(segmenter, tiny_siglip, crop_size=32)


def test_other_families_have_no_ablation_of_features(tiny_siglip, image, masks):
    whole = segmenter(tiny_siglip, pool_feature="input")
    assert "CLIP only" in refused(whole.encode_image, image, masks)


def test_bad_images_masks_and_labels(tiny_clip, image, masks):
    whole = segmenter(tiny_clip)
    assert "no mask_generator" in refused(whole.encode_image, image)
    assert "expected (R, h, w)" in refused(whole.encode_image, image, np.zeros((1, 2, 3, 4)))
    assert "no image file" in refused(whole.encode_image, "missing.png", masks)
    tokens = whole.encode_image(image, masks)
    assert "single string" in refused(whole.segment, tokens, "dog")
    assert "no labels" in refused(whole.segment, tokens, [])
    assert "expected a word or phrase" in refused(whole.refer, tokens, " ")
    assert "0..1" in refused(whole.segment, tokens, ["dog"], probability_threshold=1.5)


def test_tokens_of_another_backbone(tiny_clip, tiny_siglip, image, masks):
    tokens = segmenter(tiny_clip).encode_image(image, masks)
    message = refused(segmenter(tiny_siglip, scale=(220, 140)).segment, tokens, ["dog"])
    assert "expected (L, 24)" in message
    assert "(tiny)" in message


def test_own_recipes_are_taken(tiny_clip, image, masks):
    own = segmenter(tiny_clip, recipe=PoolingRecipe(False, True, "own")).encode_image(image, masks)
    assert own.recipe == "own"
    assert F.cosine_similarity(own.tokens, segmenter(tiny_clip).encode_image(image, masks).tokens).min() < 0.9999


# ---------------------------------------------------------------- devices


@pytest.mark.gpu
def test_cuda_and_cpu_agree(image, masks):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    options = {"scale": SCALE, "dtype": "float32", "dense_fallback": True}
    tokens = {}
    for device in ("cpu", "cuda"):
        whole = TextRegionSegmenter(tiny_models.clip(), device=device, **options)
        tokens[device] = whole.encode_image(image, masks).to("cpu")
        assert whole.segment(tokens[device], LABELS).label_map.shape == (53, 79)
    assert torch.equal(tokens["cpu"].source_index, tokens["cuda"].source_index)
    assert F.cosine_similarity(tokens["cpu"].tokens, tokens["cuda"].tokens).min() > 0.9999


def test_bfloat16_on_a_cpu_is_close(image, masks):
    exact = segmenter(tiny_models.clip(), global_patch_threshold=None).encode_image(image, masks)
    rough = segmenter(tiny_models.clip(), global_patch_threshold=None, dtype="bfloat16").encode_image(image, masks)
    assert rough.tokens.dtype == torch.float32
    assert F.cosine_similarity(exact.tokens, rough.tokens).min() > 0.99


def test_too_long_labels_are_cut_with_a_warning(tiny_clip):
    with pytest.warns(UserWarning, match=r"cut|long|truncat"):
        segmenter(tiny_clip).encode_text(["very " * 100 + "long"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter(tiny_clip).encode_text(["short"])


def test_several_images_are_encoded_as_one_by_one(tiny_clip):
    segmenter = TextRegionSegmenter(tiny_clip, scale=(96, 64), crops_per_batch=3, dense_fallback=True, device="cpu")
    draw = np.random.default_rng(3)
    images = [draw.integers(0, 255, (h, w, 3), dtype=np.uint8) for h, w in ((37, 53), (61, 41), (47, 47))]
    masks = [draw.random((3, *image.shape[:2])) > 0.5 for image in images]
    together = segmenter.encode_images(images, masks)
    for image, own, found in zip(images, masks, together, strict=True):
        alone = segmenter.encode_image(image, own)
        torch.testing.assert_close(found.tokens, alone.tokens, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.dense, alone.dense, rtol=0, atol=1e-5)
        assert found.source_index.tolist() == alone.source_index.tolist()
    with pytest.raises(InputError, match="2 sets of masks for 3 images"):
        segmenter.encode_images(images, masks[:2])


@pytest.mark.parametrize("given", [{"scale": (96, 32)}, "demo", None])
def test_a_config_of_another_type_is_one_line(untyped, tiny_clip, given):
    segmenter = TextRegionSegmenter(tiny_clip, scale=(64, 32), device="cpu")
    before = segmenter.config
    with pytest.raises(InputError, match=rf"got a config of type {type(given).__name__}, expected SegmenterConfig"):
        segmenter.config = given
    assert segmenter.config is before
    if given is not None:
        with pytest.raises(InputError, match="expected SegmenterConfig"):
            TextRegionSegmenter(tiny_clip, config=given, device="cpu")


def test_a_config_set_anew_keeps_the_models_crops(tiny_clip):
    segmenter = TextRegionSegmenter(tiny_clip, device="cpu")
    segmenter.config = SegmenterConfig(scale=(96, 32))
    assert (segmenter.config.scale, segmenter.config.crop_size) == ((96, 32), tiny_clip.crop_size)
    with pytest.raises(InputError, match="crop"):
        segmenter.config = replace(segmenter.config, crop_size=tiny_clip.crop_size + 1)
    assert segmenter.settings()["dtype"] == "float32"
