from itertools import pairwise
from math import ceil

import oracles
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional as F

from textregion.crops import CropGrid, cut_crops, fuse_crops
from textregion.errors import InputError

sides = st.integers(1, 700)


@given(sides, sides, st.sampled_from([1, 7, 53, 336]))
@example(336, 336, 336)
@example(671, 672, 336)
def test_tiles_cover_the_image_and_have_one_size(height, width, crop):
    grid = CropGrid(height, width, crop)
    rows, columns = grid.shape
    assert (rows, columns) == (max(height // crop, 1), max(width // crop, 1))
    windows = grid.tile_crops
    assert len(windows) == rows * columns
    assert {(y2 - y1, x2 - x1) for y1, x1, y2, x2 in windows} == {(ceil(height / rows), ceil(width / columns))}
    for low, high, side in ((0, 2, height), (1, 3, width)):
        spans = sorted({(w[low], w[high]) for w in windows})
        assert spans[0][0] == 0
        assert spans[-1][1] == side
        assert all(start <= end for (_, end), (start, _) in pairwise(spans))


def test_the_last_tile_is_moved_back():
    grid = CropGrid(10, 23, 7)  # 1 x 3 tiles of 10 x 8
    assert grid.tile_crops == [(0, 0, 10, 8), (0, 8, 10, 16), (0, 15, 10, 23)]
    assert grid.crops[0] == (0, 0, 10, 23)


def test_one_tile_is_the_whole_image_again():
    assert CropGrid(90, 90, 64).crops == [(0, 0, 90, 90)] * 2


def test_without_tiles_there_is_one_view():
    grid = CropGrid(90, 190, 64, tiles=False)
    assert grid.crops == [(0, 0, 90, 190)]
    assert grid.patch_shape(8) == (8, 8)


@given(sides, sides, st.integers(1, 3), st.integers(1, 3))
def test_global_parts_partition_the_image(height, width, rows, columns):
    if rows > height or columns > width:
        with pytest.raises(InputError, match="cannot split"):
            CropGrid(height, width, 64, (rows, columns))
        return
    covered = torch.zeros(height, width, dtype=torch.int)
    for y1, x1, y2, x2 in CropGrid(height, width, 64, (rows, columns)).global_crops:
        covered[y1:y2, x1:x2] += 1
    assert (covered == 1).all()


def test_two_halves_are_split_at_half_the_width():
    assert CropGrid(5, 13, 4, (1, 2)).global_crops == [(0, 0, 5, 6), (0, 6, 5, 13)]


@pytest.mark.parametrize("bad", [(0, 5, 3), (5, -1, 3), (5, 5, 0)])
def test_sizes_below_one_are_refused(bad):
    with pytest.raises(InputError, match="at least 1"):
        CropGrid(*bad)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [False, True])
def test_views_are_windows_squashed(interpolation, antialias, random):
    image = torch.rand(3, 23, 41, generator=random)
    windows = [(0, 0, 23, 41), (3, 5, 14, 16), (2, 1, 22, 12)]
    views = cut_crops(image, windows, 11, interpolation, antialias)
    for view, (y1, x1, y2, x2) in zip(views, windows, strict=True):
        expected = F.interpolate(
            image[None, :, y1:y2, x1:x2], (11, 11), mode=interpolation, antialias=antialias, align_corners=False
        )
        torch.testing.assert_close(view, expected[0])
    assert torch.equal(views[1], image[:, 3:14, 5:16])  # already 11 x 11: left alone


def test_bicubic_views_are_not_clamped():
    image = torch.zeros(3, 8, 8)
    image[:, :, 4:] = 1
    views = cut_crops(image, [(0, 0, 8, 8)], 13)
    assert views.min() < 0
    assert views.max() > 1


@given(
    st.integers(0, 10_000),
    st.sampled_from([(1, 1), (1, 2), (2, 3)]),
    st.sampled_from([(1, 1), (1, 2), (2, 2), (3, 1)]),
    st.sampled_from([1.0, 0.5]),
)
def test_fusing_equals_cell_by_cell(seed, shape, splits, weight):
    side, crop = 5, 10
    grid = CropGrid(shape[0] * crop + 3, shape[1] * crop + 1, crop, splits)
    assert grid.shape == shape
    maps = torch.randn(len(grid.crops), 3, side, side, generator=torch.Generator().manual_seed(seed))
    fused = fuse_crops(maps, grid, weight)
    torch.testing.assert_close(fused, oracles.fused_views(maps, shape, splits, weight), rtol=0, atol=1e-5)


def test_fusing_without_tiles_is_the_view_itself(random):
    maps = torch.randn(1, 3, 7, 7, generator=random)
    assert torch.equal(fuse_crops(maps, CropGrid(19, 31, 14, tiles=False), 0.5), maps[0])


def test_fusing_half_precision_gives_float32(random):
    maps = torch.randn(2, 3, 7, 7, generator=random).half()
    fused = fuse_crops(maps, CropGrid(14, 14, 14))
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, maps[0].float() + maps[1].float())
