"""Cached masks equal the generator's, bit by bit; anything else on disk is made again."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from eval.mask_cache import CachedMasks, decisive, generator_identity, load_masks, save_masks
from textregion.masks import SOURCES, Sam2MaskGenerator, SlicMasks, automatic_sources
from textregion.tiny.models import load_sam2
from textregion.tiny.scenes import draw_scene
from textregion.types import RegionMasks

FIELDS = ("soft", "group", "boxes", "predicted_iou", "stability")


@pytest.fixture(scope="module")
def generator():
    return Sam2MaskGenerator(load_sam2(), points_per_side=3)


@pytest.fixture(scope="module")
def image():
    return draw_scene(900_001, size=128).image


def assert_equal(one, other):
    for name in FIELDS:
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name
    assert (one.image_size, one.mask_size) == (other.image_size, other.mask_size)
    assert (one.hard, one.cut) == (other.hard, other.cut)


def test_the_second_time_nothing_is_computed_and_all_is_equal(generator, image, tmp_path):
    cached = CachedMasks(generator, tmp_path)
    first = cached.generate(image, (128, 128), (128, 128))
    second = CachedMasks(generator, tmp_path).generate(image, (128, 128), (128, 128))
    assert_equal(first, second)
    uncached = generator.generate(image, (128, 128), (128, 128))
    assert len(first) > 0
    assert torch.equal(first.full(), uncached.full())
    assert torch.equal(first.binary(), uncached.binary())
    assert torch.equal(first.boxes, uncached.boxes)
    cached.generate(image, (128, 128), (128, 128))
    assert (cached.hits, cached.misses) == (1, 1)


@pytest.mark.parametrize("name", automatic_sources())
def test_masks_of_every_source_are_kept(name, tiny_sam2, tmp_path):
    pixels, sizes = np.random.default_rng(1).integers(0, 256, (62, 86, 3), dtype=np.uint8), ((31, 43), (62, 86))
    source = SOURCES[name].generator.example(tiny_sam2, (31, 43))
    caches = [CachedMasks(source, tmp_path), CachedMasks(source, tmp_path)]
    first, second = (cached.generate(pixels, *sizes) for cached in caches)
    assert (caches[0].misses, caches[1].hits) == (1, 1)
    assert_equal(first, second)
    assert torch.equal(second.full(), source.generate(pixels, *sizes).full())


def test_masks_without_a_region_are_kept_too(generator, tmp_path):
    strict = Sam2MaskGenerator(generator.model, points_per_side=2, pred_iou_thresh=1.0)
    blank = np.full((70, 90, 3), 128, np.uint8)
    cached = CachedMasks(strict, tmp_path)
    assert len(cached.generate(blank)) == 0
    again = cached.generate(blank)
    assert (len(again), again.mask_size, cached.hits) == (0, (70, 90), 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16, torch.bool])
def test_storage_is_lossless(dtype, tmp_path):
    soft = (3 * torch.rand(5, 7, 11, generator=torch.Generator().manual_seed(1))).to(dtype)
    masks = RegionMasks(soft, (13, 17), (19, 23), torch.tensor([0, 1, 1, 0, 2]), hard=True, cut=0.0)
    save_masks(tmp_path / "m", masks, "key")
    assert_equal(masks, load_masks(tmp_path / "m", "key"))


@given(st.integers(0, 10_000), st.sampled_from([torch.float16, torch.float32]))
def test_logits_left_out_decide_nothing(seed, dtype):
    """Coarse random logits, so that borders are everywhere; 64 x 64 of them have many that are left out."""
    random = torch.Generator().manual_seed(seed)
    coarse = 12 * torch.randn(3, 1, 5, 4, generator=random)
    soft = F.interpolate(coarse, (17, 13), mode="nearest")[:, 0] + torch.randn(3, 17, 13, generator=random)
    masks = RegionMasks(soft.to(dtype), (37, 41), (29, 23), torch.tensor([0, 1, 1]), cut=0.0)
    trimmed = decisive(masks)
    assert torch.equal(trimmed.full(), masks.full())
    assert torch.equal(trimmed.binary(), masks.binary())
    assert torch.equal(trimmed.binary((101, 7)), masks.binary((101, 7)))
    assert torch.equal(trimmed.boxes, masks.boxes)
    assert trimmed.soft.unique().numel() < masks.soft.unique().numel()


def test_files_are_small(generator, image, tmp_path):
    masks = CachedMasks(generator, tmp_path).generate(image)
    (path,) = tmp_path.rglob("*.safetensors")
    assert path.stat().st_size < 0.25 * masks.soft.numel() * masks.soft.element_size()


def test_the_key_depends_on_everything_the_masks_depend_on(generator, image):
    base = CachedMasks(generator, ".").key(image, (1, 2), (3, 4))
    changed = image.copy()
    changed[5, 7, 1] ^= 1
    other_model = load_sam2()
    with torch.no_grad():
        next(other_model.parameters()).view(-1)[0] += 1e-3
    keys = {
        CachedMasks(generator, ".").key(changed, (1, 2), (3, 4)),
        CachedMasks(generator, ".").key(image, (1, 3), (3, 4)),
        CachedMasks(generator, ".").key(image, (1, 2), (3, 5)),
        CachedMasks(Sam2MaskGenerator(generator.model, points_per_side=5), ".").key(image, (1, 2), (3, 4)),
        CachedMasks(Sam2MaskGenerator(generator.model, points_per_side=3, min_size=0), ".").key(image, (1, 2), (3, 4)),
        CachedMasks(Sam2MaskGenerator(other_model, points_per_side=3), ".").key(image, (1, 2), (3, 4)),
    }
    assert len(keys) == 6
    assert base not in keys
    batches = Sam2MaskGenerator(generator.model, points_per_side=3, points_per_batch=4)
    assert generator_identity(batches) == generator_identity(generator), "the batch size changes nothing"


def damage_in_the_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"not a mask file at all" * 50),
        damage_in_the_middle,
        lambda path: RegionMasks.empty((3, 5)).save(path),
        lambda path: save_masks(path, RegionMasks(torch.ones(1, 3, 3), (3, 3)), "another key"),
    ],
    ids=["empty", "truncated", "foreign", "flipped bits", "another kind", "another image"],
)
def test_damaged_and_foreign_files_are_made_again(image, tmp_path, damage):
    cached = CachedMasks(SlicMasks(segments=7), tmp_path)
    first = cached.generate(image)
    (path,) = tmp_path.rglob("*.safetensors")
    good = path.read_bytes()
    damage(path)
    assert_equal(first, cached.generate(image))
    assert (cached.hits, cached.misses) == (0, 2)
    assert path.read_bytes() == good


def test_a_folder_that_cannot_be_written_is_told_once_and_costs_no_image(image, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    source, cached = SlicMasks(segments=7), CachedMasks(SlicMasks(segments=7), tmp_path / "file")
    for _ in range(2):
        assert torch.equal(cached.generate(image).soft, decisive(source.generate(image)).soft)
    assert (cached.hits, cached.misses, cached.unkept) == (0, 2, 2)
    assert [record.getMessage().partition(" /")[0] for record in caplog.records] == ["mask cache: cannot write"]
