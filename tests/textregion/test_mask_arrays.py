import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from textregion import mask_arrays
from textregion.errors import InputError
from textregion.mask_arrays import mask_stack, same_aspect

SIZE = (48, 64)
side = st.integers(2, 40)


def planes(count: int = 2, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Rectangles of different sizes."""
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for n in range(count):
        masks[n, n : n + 3, 2 * n : 3 * n + 5] = True
    return masks


def labels() -> torch.Tensor:
    found = torch.zeros(SIZE, dtype=torch.int64)
    found[2:10, 3:20], found[20:40, 30:60], found[41:47, 2:9] = 1, 2, 3
    return found


# ---------------------------------------------------------------- one plane


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64])
def test_integers_are_a_label_map_and_every_value_is_a_region(dtype):
    expected = torch.stack([labels() == n for n in range(4)])
    assert torch.equal(mask_stack(labels().to(dtype), SIZE), expected)


@pytest.mark.parametrize("values", [[-1, 0, 1], [0, 1, 255], [3, 259], [0, 7], [5], [-1], [2, 65535]])
def test_labels_keep_their_values(values):
    plane = torch.tensor(values).repeat_interleave(torch.arange(1, len(values) + 1))[None]
    found = mask_stack(plane, (1, plane.shape[1]))
    assert found.flatten(1).sum(1).tolist() == list(range(1, len(values) + 1))


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_integers_of_nothing_and_white_are_one_mask(white):
    thing = planes(1)[0]
    for plane in (thing, torch.ones_like(thing), torch.zeros_like(thing)):
        found = mask_stack(plane.to(torch.int32) * white, SIZE)
        assert torch.equal(found, plane[None])


def test_booleans_and_floats_are_one_mask():
    thing = planes(1)[0]
    assert torch.equal(mask_stack(thing, SIZE), thing[None])
    for soft in (thing * 0.7, thing * 255.0, torch.rand(SIZE) * 9 - 3, torch.rand(SIZE) * 1e30, thing.half()):
        assert torch.equal(mask_stack(soft, SIZE), soft[None])


@pytest.mark.parametrize(
    "plane", [labels().double(), labels()[None], labels()[:, :, None].half(), labels()[None] * 1.0]
)
def test_a_label_map_in_the_wrong_form_is_refused(plane):
    with pytest.raises(InputError, match="looks like a label map; give a label map as integers"):
        mask_stack(plane, SIZE)


def test_a_label_map_of_too_many_regions_is_refused_before_its_masks_are_made(monkeypatch):
    monkeypatch.setattr(mask_arrays, "MOST_BYTES", 4 * 48 * 64)
    assert len(mask_stack(labels(), SIZE)) == 4
    with pytest.raises(InputError, match="a label map of 5 regions of 48 x 64 pixels needs more than"):
        mask_stack(labels().index_fill(0, torch.tensor([0]), 9), SIZE)


# ---------------------------------------------------------------- axes


@given(st.tuples(side, side), st.integers(1, 45), st.sampled_from([torch.bool, torch.float32, torch.uint8]))
def test_regions_come_first_or_last(size, count, dtype):
    masks = planes(count, size).to(dtype)
    assert torch.equal(mask_stack(masks, size), masks)
    last = masks.permute(1, 2, 0)
    assume(tuple(last.shape[1:]) != size)  # then it is read as it is documented
    assert torch.equal(mask_stack(last, size), masks)


@given(st.tuples(side, side), st.integers(2, 45), st.sampled_from([(0, 2, 1), (2, 1, 0), (1, 0, 2), (2, 0, 1)]))
def test_other_orders_are_refused_or_read_as_documented(size, count, order):
    given = planes(count, size).permute(order)
    assume(tuple(given.shape[1:]) != size and tuple(given.shape[:2]) != size)
    with pytest.raises(InputError, match="transpose or resize them"):
        mask_stack(given, size)


def test_where_both_orders_fit_the_documented_one_holds():
    cube = torch.rand(5, 5, 5)
    assert torch.equal(mask_stack(cube, (5, 5)), cube)
    assert torch.equal(mask_stack(torch.rand(4, 4, 6).bool(), (4, 4)).sum(), torch.tensor(96))
    assert mask_stack(torch.rand(48, 64, 85).round().bool(), SIZE).shape == (85, 48, 64), "64 x 85 has the aspect, too"


@pytest.mark.parametrize("shape", [(3, 24, 32), (3, 96, 128), (3, 33, 44), (3, 1, 1), (2, 480, 640), (3, 256, 256)])
def test_other_resolutions_of_the_same_aspect_and_squares_are_kept(shape):
    masks = torch.rand(shape)
    assert torch.equal(mask_stack(masks, SIZE), masks)


@pytest.mark.parametrize(
    "shape",
    [
        *[(2, 64, 48), (2, 32, 24), (24, 32, 2), (24, 32, 43), (32, 24, 32), (2, 24, 64), (2, 301, 7), (64, 48, 63)],
        *[(24, 32, 32), (32, 24, 24), (64, 64), (64, 48), (24, 48), (2, 0, 5), (2, 48, 0), (0, 64), (48,)],
        (1, 2, 48, 64),
    ],
)
def test_other_shapes_are_refused(shape):
    for dtype in (torch.bool, torch.float32, torch.int64):
        with pytest.raises(InputError, match=f"got masks of shape \\({shape[0]},"):
            mask_stack(torch.zeros(shape, dtype=dtype), SIZE)


def test_no_mask_at_all():
    for shape in ((0, 48, 64), (0, 5, 7), (48, 64, 0)):
        assert len(mask_stack(torch.zeros(shape), SIZE)) == 0


# ---------------------------------------------------------------- aspects


@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.floats(0.01, 1),
    st.sampled_from([np.floor, np.ceil, lambda x: np.floor(x + 0.5)]),
)
def test_an_image_scaled_and_rounded_has_the_same_aspect(size, scale, rounded):
    scaled = tuple(int(rounded(n * scale)) for n in size)
    assume(min(scaled) >= 1)
    edges = [abs(n * scale * 2 - round(n * scale * 2)) for n in size]
    assume(min(edges) > 1e-6)  # not on the edge of rounding, where floats decide
    assert same_aspect(scaled, size)
    assert same_aspect(size, scaled)


@pytest.mark.parametrize("other", [(640, 480), (480, 480), (240, 324), (236, 320), (481, 640 * 2)])
def test_other_aspects(other):
    assert not same_aspect(other, (480, 640))
