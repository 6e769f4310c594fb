"""The library on a second device (tests/fake_accelerator.py), which has no float64: what the CPU gives, with few words
between host and device, whatever the number of regions.

Results are compared with the CPU's: what is decided (labels, masks, boxes, which regions have a token) is equal,
numbers are within `ROUNDING`, as the two add up in another order (batches of another size, other compositions).
"""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import tiny_models
import torch
from fake_accelerator import fake_accelerator

from textregion.boxes import as_boxes
from textregion.labels import LabelPrompts, region_scores
from textregion.masks import Sam2MaskGenerator, SlicMasks
from textregion.masks.filters import fusion_groups, without_overlap
from textregion.masks.given import PrecomputedMasks
from textregion.masks.prompts import PointMaskGenerator
from textregion.outputs.annotations import coco_json, region_rows
from textregion.resampling import crop_regions
from textregion.tiny.scenes import draw_scene
from textregion.types import RegionMasks, RegionTokens
from textregion.web.cached_segmenter import CachedSegmenter, Limits, Question
from TextRegionSegmenter import TextRegionSegmenter

# (reads, uploads), at most, of one call. What must grow: a read per further batch of clicks that memory asks for (three
# each), per band of rows of a label map beyond `labeling.MEMORY_BUDGET`, per region of `return_non_overlapping`, and an
# upload per 25 further new labels.
LIMITS = {"encode_image": (12, 8), "segment": (4, 3), "binary": (2, 2), "refer": (4, 3), "reason": (4, 3)}
ROUNDING = 2e-6
LABELS = ["sand", "brick; wall", "black ring", "white hexagon", "yellow square"]
OPTIONS = {"points_per_side": 5, "dtype": "float32"}
BOXES = [[20, 30, 120, 140], [0, 0, 256, 256], [90.5, 10, 200, 77]]


@pytest.fixture
def traffic():
    """Every test here is on a device without float64."""
    with fake_accelerator(float64=False) as counted:
        yield counted


@pytest.fixture(scope="module")
def images():
    """Scenes with few regions and with more."""
    return [draw_scene(seed, 256, objects, distinct_colours=True).image for seed, objects in ((3, 2), (11, 6))]


@pytest.fixture(scope="module")
def cpu():
    return TextRegionSegmenter.from_preset("tiny", device="cpu", **OPTIONS)


@pytest.fixture(scope="module")
def acc():
    with fake_accelerator(float64=False):
        return TextRegionSegmenter.from_preset("tiny", device="acc", **OPTIONS)


@pytest.fixture(scope="module")
def expected(cpu, images):
    """The CPU's tokens."""
    return [cpu.encode_image(image) for image in images]


@pytest.fixture(scope="module")
def found(acc, images):
    """The device's tokens."""
    with fake_accelerator(float64=False):
        return [acc.encode_image(image) for image in images]


def assert_same_masks(ours: RegionMasks, theirs: RegionMasks) -> None:
    assert (ours.image_size, ours.mask_size, len(ours)) == (theirs.image_size, theirs.mask_size, len(theirs))
    assert torch.equal(ours.binary().cpu(), theirs.binary())
    assert torch.equal(ours.boxes.cpu(), theirs.boxes)
    torch.testing.assert_close(ours.predicted_iou.cpu(), theirs.predicted_iou, rtol=0, atol=1e-5)


def assert_same(ours: RegionTokens, theirs: RegionTokens) -> None:
    assert ours.tokens.device.type == ours.masks.soft.device.type == "acc"
    assert torch.equal(ours.source_index.cpu(), theirs.source_index)
    assert_same_masks(ours.masks, theirs.masks)
    for name in ("tokens", "patch_scores", "dense"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one.cpu(), other, rtol=0, atol=ROUNDING)


def within(traffic, name: str) -> bool:
    """Whether the traffic keeps to its limits; which it says if not."""
    assert all(n <= limit for n, limit in zip(traffic.counts, LIMITS[name], strict=True)), f"{name}: {traffic}"
    return True


# ---------------------------------------------------------------- traffic


def test_traffic_does_not_grow_with_the_regions(acc, images, traffic):
    counts = []
    acc.encode_text(["what templates share"])  # is encoded with the first label, once per model
    for image in images:
        traffic.clear()
        tokens = acc.encode_image(image)
        assert within(traffic, "encode_image")
        counts.append([len(tokens), traffic.counts])
        words = [f"{label} {len(counts)}" for label in LABELS]  # new ones
        for name, ask in (
            ("segment", lambda tokens=tokens, words=words: acc.segment(tokens, words)),
            ("segment", lambda tokens=tokens, words=words: acc.segment(tokens, words, output_size=(97, 61))),
            ("binary", lambda tokens=tokens: tokens.masks.binary().cpu()),
            ("binary", lambda tokens=tokens: tokens.masks.binary((97, 61)).cpu()),
            ("refer", lambda tokens=tokens, words=words: acc.refer(tokens, words[2])),
            ("refer", lambda tokens=tokens, words=words: acc.refer(tokens, words[2], published=True)),
            ("reason", lambda tokens=tokens, words=words: acc.reason(tokens, words[2])),
        ):
            traffic.clear()
            ask()
            assert within(traffic, name)
            counts[-1].append(traffic.counts)
    (few, *first), (many, *second) = counts
    assert many > few > 1
    assert all(later <= earlier for later, earlier in zip(second, first, strict=True))  # which uploaded constants


@pytest.mark.parametrize("make", [tiny_models.clip, tiny_models.siglip, tiny_models.perception])
@pytest.mark.parametrize("regions", [2, 13])
def test_every_family(make, regions, traffic):
    """Given masks of random models; doubtful pairs are no question here, global patches and tiles are."""
    random = np.random.default_rng(regions)
    image = random.integers(0, 256, (83, 131, 3), dtype=np.uint8)
    masks = random.random((regions, 20, 32)) > 0.7
    masks = np.kron(masks, np.ones((1, 5, 5), bool))[:, :83, :131]
    options = {"scale": (160, 128), "dtype": "float32", "global_patch_threshold": -0.5}
    theirs = TextRegionSegmenter(make(), device="cpu", **options).encode_image(image, _whole(masks))
    segmenter = TextRegionSegmenter(make(), device="acc", **options)
    traffic.clear()
    ours = segmenter.encode_image(image, _whole(masks))
    assert within(traffic, "encode_image")
    assert_same(ours, theirs)
    assert (ours.logit_scale, ours.logit_bias) == (theirs.logit_scale, theirs.logit_bias)


def _whole(masks: np.ndarray) -> np.ndarray:
    padded = np.zeros((len(masks), 83, 131), bool)
    padded[:, : masks.shape[1], : masks.shape[2]] = masks
    return padded


@pytest.mark.parametrize("count", [4, 14])
def test_fusion_of_pairs_that_are_decided_at_full_size(count, traffic):
    """Borders that cross between stored pixels, where neither bound settles a pair: the share decides."""
    soft = torch.zeros(count, 4, 4)
    soft[::2, :, :2] = soft[1::2, :, 2:] = 1.0
    boxes, size = torch.tensor([[0, 0, 3, 3]] * count), (32, 32)
    full = RegionMasks(soft[:2], size, size).full()
    share = float(torch.minimum(*full).sum() / full.sum((1, 2)).min())
    groups = []
    for device in ("cpu", "acc"):
        masks, places = RegionMasks(soft, size, size).to(device), boxes.to(device)
        traffic.clear()
        groups.append([fusion_groups(masks, places, share + apart) for apart in (-0.01, 0.01)])
        assert all(n <= 2 * 3 for n in traffic.counts), str(traffic)
    assert groups[0] == groups[1]
    assert [len(found) for found in groups[1]] == [1, 2]


# ---------------------------------------------------------------- every public method

METHODS = {
    **dict.fromkeys(("from_preset", "encode_image", "encode_images", "settings"), "test_tokens"),
    **dict.fromkeys(("crop_grid", "resize", "mask_full_size", "encode_crops", "pool"), "test_stages"),
    **dict.fromkeys(("encode_text", "segment", "refer", "reason", "absent_labels"), "test_answers"),
    "encode_boxes": "test_boxes",
}


def test_every_public_method_is_tried():
    public = {name for name, _ in inspect.getmembers(TextRegionSegmenter, callable) if not name.startswith("_")}
    assert public == set(METHODS)
    assert set(METHODS.values()) <= set(globals())


def test_tokens(cpu, acc, images, expected, found, traffic):
    assert acc.settings() == {**cpu.settings(), "device": "acc"}
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)
    together = acc.encode_images(images, [expected[0].masks, None])  # masks of another device are given too
    assert torch.equal(together[0].tokens.cpu(), found[0].tokens.cpu())
    assert_same(together[1], expected[1])


def test_stages(cpu, acc, images, traffic):
    small = acc.resize(images[0])
    assert np.array_equal(small, cpu.resize(images[0]))
    assert acc.mask_full_size((5, 7), (50, 70)) == cpu.mask_full_size((5, 7), (50, 70))
    grid = acc.crop_grid(*small.shape[:2])
    theirs, ours = (one.encode_crops([small], [grid])[0] for one in (cpu, acc))
    torch.testing.assert_close(ours.pooled.cpu(), theirs.pooled, rtol=0, atol=1e-5)
    masks = RegionMasks(torch.eye(3)[:, None], (256, 256))
    assert_same(acc.pool(ours, masks.to("acc"), grid), cpu.pool(theirs, masks, grid))


def test_answers(cpu, acc, expected, found, traffic, tmp_path):
    tokens, theirs = found[1], expected[1]
    text = acc.encode_text(LABELS)
    torch.testing.assert_close(text.cpu(), cpu.encode_text(LABELS), rtol=0, atol=ROUNDING)
    for options in ({}, {"probability_threshold": 0.4, "output_size": (97, 61), "return_probabilities": True}):
        one, other = (s.segment(t, LABELS, **options) for s, t in ((acc, tokens), (cpu, theirs)))
        assert np.array_equal(one.label_map, other.label_map)
        assert np.array_equal(one.region_map, other.region_map)
        np.testing.assert_allclose(one.confidence, other.confidence, atol=5e-3)  # of masks in half precision
    for published in (False, True):
        one, other = (s.refer(t, "the black ring", published) for s, t in ((acc, tokens), (cpu, theirs)))
        assert (one.region, one.box) == (other.region, other.box)
        assert np.array_equal(one.mask, other.mask)
    one, other = (s.reason(t, "the black ring", ["sand", "brick"]) for s, t in ((acc, tokens), (cpu, theirs)))
    assert np.array_equal(one.label_map, other.label_map)

    assert acc.absent_labels(tokens, LABELS) == cpu.absent_labels(theirs, LABELS)

    prompts = cpu.encode_text(["sand", "brick"])
    scores = (region_scores(t, s.encode_text(["sand"]), ["sand"]) for s, t in ((acc, tokens), (cpu, theirs)))
    for one, other in zip(*scores, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert tokens.logits(prompts).device.type == "acc"  # text of another device is brought there
    tokens.save(tmp_path / "tokens.safetensors")
    assert torch.equal(RegionTokens.load(tmp_path / "tokens.safetensors").tokens, tokens.to("cpu").tokens)
    assert acc.segment(theirs, LABELS).label_map.shape == (256, 256)  # so are tokens


def test_boxes(cpu, acc, images, traffic):
    for method, given in (("textregion", BOXES), ("regionspot", BOXES), ("regionspot", torch.tensor(BOXES).to("acc"))):
        theirs = cpu.encode_boxes(images[0], as_boxes(given), method)
        assert_same(acc.encode_boxes(images[0], given, method), theirs)
    assert len(acc.encode_boxes(images[0], [], "regionspot")) == 0
    plain = replace(acc.config, box_masks="box")
    one, other = (TextRegionSegmenter(s.backbone, None, plain, device=s.device, dtype="float32") for s in (acc, cpu))
    assert_same(one.encode_boxes(images[0], BOXES), other.encode_boxes(images[0], BOXES))


# ---------------------------------------------------------------- options, masks, outputs, the page


@pytest.mark.parametrize(
    "options",
    [
        {"dense_fallback": True, "global_splits": (1, 2)},
        {"mask_type": "hard", "mask_size": "original", "pool_feature": "input", "upsample_times": 2},
        {"resize_method": "resize", "global_patch_threshold": None, "recipe": "semantic"},
    ],
)
def test_options(options, tiny_sam2, images, traffic):
    image, given = images[1][:190], {"scale": (101, 67), "dtype": "float32", **options}
    filters = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "min_size": 0}
    maker = Sam2MaskGenerator(tiny_sam2, **filters)
    theirs = TextRegionSegmenter(tiny_models.clip(), maker, device="cpu", **given)
    expected = theirs.encode_image(image)
    ours = TextRegionSegmenter(tiny_models.clip(), None, device="acc", **given)
    tokens = ours.encode_image(image, replace(expected.masks, hard=False) if len(expected) else None)
    assert len(tokens) > 0
    torch.testing.assert_close(tokens.tokens.cpu(), expected.tokens, rtol=0, atol=1e-4)
    assert np.array_equal(ours.segment(tokens, LABELS).label_map, theirs.segment(expected, LABELS).label_map)


@pytest.mark.parametrize(
    "options",
    [{"decoder": "sam2", "fuse_mask": False}, {"points_per_batch": 7, "return_non_overlapping": True}],
    ids=str,
)
def test_mask_generator(options, cpu, acc, images, traffic):
    given = {"points_per_side": 4, **options}
    theirs = Sam2MaskGenerator(cpu.mask_generator.model, **given).generate(images[0])
    ours = Sam2MaskGenerator(acc.mask_generator.model, **given).generate(images[0])
    assert_same_masks(ours, theirs)


def test_other_mask_sources(cpu, acc, images, traffic):
    boolean = np.zeros((2, 256, 256), bool)
    boolean[0, :99] = boolean[1, 30:, 50:] = True
    for make in (
        lambda segmenter: PointMaskGenerator(segmenter.mask_generator, [[50, 60], [200, 100.5]]),
        lambda _: SlicMasks(segments=5),
        lambda _: PrecomputedMasks(boolean),
    ):
        ours, theirs = (make(segmenter).to(segmenter.device).generate(images[0]) for segmenter in (acc, cpu))
        assert_same_masks(ours, theirs)


def test_masks(expected, found, traffic):
    ours, theirs = found[1].masks, expected[1].masks
    for method in (RegionMasks.full, RegionMasks.published, lambda masks: masks.patch_grid((7, 5))):
        torch.testing.assert_close(method(ours).cpu(), method(theirs), rtol=0, atol=2**-8)  # a step of half precision
    assert_same_masks(ours.select(torch.tensor([2, 0])), theirs.select(torch.tensor([2, 0])))
    assert_same_masks(without_overlap(ours, 9), without_overlap(theirs, 9))
    assert_same_masks(RegionMasks.from_array(ours, (256, 256), "acc"), theirs)
    traffic.clear()
    crops = crop_regions(ours)
    assert traffic.counts[0] <= 4, str(traffic)
    assert traffic.counts[1] <= 1, str(traffic)
    for one, other in zip(crops, crop_regions(theirs), strict=True):
        assert (one.rows, one.columns, one.packed.tobytes()) == (other.rows, other.columns, other.packed.tobytes())


def test_files(cpu, acc, expected, found, traffic):
    rows = []
    for segmenter, tokens in ((acc, found[1]), (cpu, expected[1])):
        text = segmenter.encode_text(LabelPrompts.parse(LABELS).queries)
        traffic.clear()
        rows.append(region_rows(tokens, text, LABELS))
        assert traffic.counts[0] <= 6, str(traffic)
        assert coco_json([("a.png", segmenter.segment(tokens, LABELS), tokens)])["annotations"]
    for ours, theirs in zip(*rows, strict=True):
        same = ("region", "mask", "box", "area")
        assert [ours[name] for name in same] == [theirs[name] for name in same]
        assert ours["labels"][0]["name"] == theirs["labels"][0]["name"]


def test_the_pages_session(cpu, acc, images, traffic, tmp_path):
    from PIL import Image

    path = tmp_path / "scene.png"
    Image.fromarray(images[0]).save(path)
    one, other = (CachedSegmenter(segmenter, "tiny", Limits()) for segmenter in (acc, cpu))
    ours, theirs = one.open(path), other.open(path)
    assert np.array_equal(ours.region_mask(1, (99, 101)), theirs.region_mask(1, (99, 101)))
    assert np.array_equal(one.global_patches(ours)[1], other.global_patches(theirs)[1])
    for question in (Question("sand, brick, black ring", threshold=0.3), Question("The black ring", sentence=True)):
        answer, expected = (s.answer(image, question, (99, 101)) for s, image in ((one, ours), (other, theirs)))
        assert np.array_equal(answer.result.label_map, expected.result.label_map)
        assert (answer.note, answer.labelled) == (expected.note, expected.labelled)
        np.testing.assert_allclose(answer.cosine, expected.cosine, atol=1e-5)
        if question.sentence:
            assert np.array_equal(answer.grounding.mask, expected.grounding.mask)
