"""Regions within their boxes equal the full-size binary masks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from textregion.resampling import RegionCrop, crop_regions
from textregion.types import RegionMasks

sizes = st.tuples(st.integers(1, 43), st.integers(1, 43))


def blobs(seed: int, image_size, mask_size, parts: int = 9, regions: int = 6) -> RegionMasks:
    """Soft rectangles on a 13 x 11 grid, some parts empty, several to a region."""
    random = torch.Generator().manual_seed(seed)
    soft = torch.rand(parts, 13, 11, generator=random) * 3
    for part in soft:
        top, left, height, width = (int(torch.randint(n, (), generator=random)) for n in (13, 11, 9, 8))
        inside = torch.zeros(13, 11)
        inside[top : top + height, left : left + width] = 1
        part *= inside
    group = torch.cat([torch.arange(regions), torch.randint(regions, (parts - regions,), generator=random)])
    return RegionMasks(soft, image_size, mask_size, group)


@given(st.integers(0, 10_000), sizes, st.sampled_from([0.0, 0.5, 1.5]))
@example(0, (13, 11), 0.0)
@example(1, (1, 1), 0.5)
@example(2, (43, 37), 0.0)
def test_crops_equal_binary_masks(seed, image_size, cut):
    masks = replace(blobs(seed, image_size, (29, 23)), cut=cut, boxes=None)
    crops = crop_regions(masks)
    assert len(crops) == len(masks)
    for crop, expected in zip(crops, masks.binary().numpy(), strict=True):
        painted = np.zeros(image_size, bool)
        crop.paint(painted, True)
        assert (painted == expected).all()
        assert crop.area == expected.sum()


def test_a_crop_is_not_much_larger_than_its_region():
    soft = torch.zeros(1, 64, 64)
    soft[0, 10:12, 20:23] = 1
    (crop,) = crop_regions(RegionMasks(soft, (640, 640)))
    assert crop.mask.shape[0] <= 20 + 34
    assert crop.mask.shape[1] <= 30 + 34


def test_no_regions_and_an_empty_region():
    assert crop_regions(RegionMasks.empty((5, 7))) == []
    (crop,) = crop_regions(RegionMasks(torch.zeros(1, 3, 3), (5, 7)))
    assert (crop.mask.shape, crop.area) == ((0, 0), 0)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 8)])
def test_packing_round_trip(shape):
    mask = np.random.default_rng(0).random(shape) > 0.5
    crop = RegionCrop.pack(slice(2, 2 + shape[0]), slice(1, 1 + shape[1]), mask)
    assert (crop.mask == mask).all()
    assert crop.area == mask.sum()
