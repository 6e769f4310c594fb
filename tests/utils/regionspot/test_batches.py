"""Batches: the published rule of repeating boxes, padding, who gets which image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.regionspot.data import CachedImage
from utils.regionspot.training import choose, collate, flip_or_crop, repeated


def image(count: int, first: int = 0, with_map: bool = False) -> CachedImage:
    numbers = torch.arange(first, first + count)
    clip_map = torch.full((5, 3), float(first)).half() if with_map else None
    return CachedImage(numbers[:, None].expand(count, 7).float(), numbers, clip_map)


@pytest.mark.parametrize(
    ("count", "length", "expected"),
    [(2, 5, [0, 0, 1, 1, 1]), (3, 5, [0, 1, 1, 2, 2]), (3, 3, [0, 1, 2]), (1, 3, [0, 0, 0]), (2, 4, [0, 0, 1, 1])],
)
def test_boxes_are_repeated_as_published(count, length, expected):
    assert repeated(count, length).tolist() == expected


@given(st.integers(1, 13), st.integers(0, 11))
def test_every_box_is_repeated_floor_or_ceiling_of_n_by_k_times(count, more):
    length = count + more
    times = repeated(count, length).bincount(minlength=count)
    assert times.sum() == length
    assert times.tolist() == sorted(times.tolist())
    assert set(times.tolist()) <= {length // count, -(-length // count)}
    batch = collate([image(count), image(length)], dataset=0)
    assert batch.labels[0].tolist()[:count] == [*range(count)]
    assert batch.padding.tolist() == [[False] * count + [True] * more, [False] * length]


def test_rows_are_padded_and_the_padding_is_told():
    batch = collate([image(2, 10, True), image(3, 20, True)], dataset=1)
    assert batch.dataset == 1
    assert batch.labels[:, :2].tolist() == [[10, 11], [20, 21]]
    assert batch.padding.tolist() == [[False, False, True], [False, False, False]]
    assert torch.equal(batch.tokens[..., 0].long(), batch.labels)
    assert batch.clip_maps.dtype == torch.float32
    assert batch.clip_maps[:, 0, 0].tolist() == [10, 20]


def test_rows_are_repeated_as_published_and_none_is_padding():
    batch = collate([image(2, 10), image(5, 20)], dataset=0, repeat_boxes=True)
    assert batch.labels.tolist() == [[10, 10, 11, 11, 11], [20, 21, 22, 23, 24]]
    assert not batch.padding.any()
    assert batch.clip_maps is None


def test_data_sets_are_equally_likely_whatever_their_size():
    drawn = [choose([1000, 3], 2, seed=5, step=step) for step in range(400)]
    assert 160 < sum(dataset for dataset, _ in drawn) < 240
    assert all(len(set(images)) == 2 for _, images in drawn)


def test_a_batch_depends_on_seed_and_step_alone():
    assert choose([50], 8, 3, 7) == choose([50], 8, 3, 7)
    assert choose([50], 8, 3, 7) != choose([50], 8, 3, 8)
    assert choose([50], 8, 3, 7) != choose([50], 8, 4, 7)
    assert len(choose([3], 8, 3, 7)[1]) == 8


def test_the_published_augmentation_flips_and_crops():
    pixels = np.arange(400 * 500 * 3, dtype=np.uint32).astype(np.uint8).reshape(400, 500, 3)
    seen = set()
    for seed in range(40):
        changed = flip_or_crop(pixels, np.random.default_rng(seed))
        if changed.shape == pixels.shape:
            flipped = np.array_equal(changed, pixels[:, ::-1])
            assert flipped or np.array_equal(changed, pixels)
            seen.add("mirrored" if flipped else "as it was")
        else:
            assert min(changed.shape[:2]) >= 384 * 400 / 600 - 1
            seen.add("cropped")
    assert seen == {"mirrored", "as it was", "cropped"}
