"""What an array of masks means: which axis is which, and what the values of a single plane (H, W) stand for."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from textregion.devices import dtype_name
from textregion.errors import InputError

WHITE = (1, 255, 65535)  # "in the mask", as 0/1 arrays, 8-bit and 16-bit pictures say it
MOST_BYTES = 2**30  # of masks that a file or a label map may ask for: 1 GiB, up to three times of which are in use
LARGEST_LABEL = 2**31  # whole numbers of floats beyond this are large values, no labels


def same_aspect(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one of two sizes (H, W) becomes the other by one scale for both sides and rounding to whole pixels, both
    to the nearest, both down, or both up.
    """
    return any(
        max((h - less) / height, (w - less) / width) < min((h - less + 1) / height, (w - less + 1) / width)
        for (h, w), (height, width) in ((one, other), (other, one))
        for less in (0.5, 0, 1)
    )


def mask_stack(masks: Shaped[Tensor, "..."], image_size: tuple[int, int]) -> Shaped[Tensor, "R h w"]:
    """Masks of an image of size (H, W) that somebody else made, one plane per region. The rule, alike for arrays, .npy,
    .npz and PNG:

    A single plane (H, W) is
        of booleans           one mask;
        of integers           one mask (what is not 0) if there is no value but 0 and 1, 0 and 255, or 0 and 65535;
                              else a label map: one region per value, ascending, 0 and 255 and negative ones too;
        of floats             one soft mask, 0 outside, 1 inside. Whole numbers with several values above 0 are refused:
                              they are a label map that lost its integers.
    Three axes are (R, H, W), a mask each: what is above 0 is inside. A lone mask (1, H, W) of several whole numbers
    above 0 is refused, as it is most likely a label map.

    Axes are told by the image's size, never guessed: (R, H, W) if the last two are exactly H and W, else (H, W, R) if
    the first two are. Masks of another resolution are (R, h, w) or (h, w) of the image's aspect (`same_aspect`). A
    stack (R, s, s) of squares is the whole image squashed to a square, as SAM 2 and `resize_method="resize"` see it (of
    padded squares cut the padding off). Everything else is refused with InputError: H and W on other axes, other
    aspects, what could as well be (h, w, R) or transposed. So is a label map whose masks would need more than
    MOST_BYTES.
    """
    if masks.ndim not in (2, 3):
        raise InputError(f"got masks of shape {tuple(masks.shape)}, expected (R, h, w) or (h, w)")
    if masks.ndim == 3 and (masks.shape[0] == 0 or masks.shape == (*image_size, 0)):
        return masks.new_zeros(0, *image_size)
    if 0 in masks.shape:
        raise InputError(f"got masks of shape {tuple(masks.shape)}, expected (R, h, w) with h, w >= 1")
    stack = masks[None] if masks.ndim == 2 else _regions_first(masks, image_size)
    size = (stack.shape[1], stack.shape[2])
    if not same_aspect(size, image_size) and (masks.ndim == 2 or size[0] != size[1]):
        raise InputError(_unlike(masks, image_size))
    if len(stack) != 1 or stack.dtype == torch.bool:
        return stack
    plane, several = stack[0], _has_several_labels(stack[0])
    if masks.ndim == 2 and not plane.is_floating_point():
        return _label_stack(plane, image_size) if several else (plane.to(torch.int64) != 0)[None]
    if several:
        raise InputError(
            f"got one mask of {dtype_name(masks.dtype)} of shape {tuple(masks.shape)} with several whole numbers above "
            "0, which looks like a label map; give a label map as integers (H, W), a soft mask as fractions from 0 to 1"
        )
    return stack


def _regions_first(masks: Shaped[Tensor, "a b c"], image_size: tuple[int, int]) -> Shaped[Tensor, "R h w"]:
    """The axes in the order (R, h, w); see `mask_stack`."""
    a, b, c = masks.shape
    if (b, c) == image_size:
        return masks
    if (a, b) == image_size:
        return masks.permute(2, 0, 1).contiguous()
    height, width = image_size
    if image_size in ((a, c), (b, a), (c, a), (c, b)):
        raise InputError(_unlike(masks, image_size))
    if same_aspect((b, c), image_size):
        other = min(a, b) > 1 and (a * width == b * height or b * width == a * height)
    else:
        other = same_aspect((a, b), image_size) or same_aspect((b, a), image_size)
    if other:  # (h, w, R) or (w, h, R) of another resolution
        raise InputError(_unlike(masks, image_size))
    return masks


def _unlike(masks: Tensor, image_size: tuple[int, int]) -> str:
    return (
        f"got masks of shape {tuple(masks.shape)} for an image of {image_size[0]} x {image_size[1]} pixels (H, W), "
        "expected (R, H, W), (H, W, R), or unmistakably (R, h, w) of the same aspect; transpose or resize them"
    )


def _has_several_labels(plane: Shaped[Tensor, "h w"]) -> bool:
    """Whether the values are those of a label map: whole numbers that are not just 0 and one of WHITE.

    Floats: several different ones above 0.
    """
    if plane.is_floating_point():
        above = plane[plane > 0]
        whole = len(above) > 0 and bool((above == above.round()).all()) and bool(above.max() <= LARGEST_LABEL)
        return whole and bool(above.min() != above.max())
    labels = plane.to(torch.int64)
    return not any(bool(((labels == 0) | (labels == white)).all()) for white in WHITE)


def _label_stack(label_map: Shaped[Tensor, "h w"], image_size: tuple[int, int]) -> Shaped[Tensor, "R h w"]:
    """One mask per value, ascending."""
    labels = label_map.to(torch.int64)
    values = labels.unique()
    check_bytes(len(values), (labels.shape[0], labels.shape[1]), "a label map")
    return labels[None] == values[:, None, None]


def check_bytes(count: int, size: tuple[int, int], what: str) -> None:
    """InputError when so many boolean masks of a size (H, W) need more than MOST_BYTES."""
    if count * size[0] * size[1] > MOST_BYTES:
        raise InputError(
            f"{what} of {count} regions of {size[0]} x {size[1]} pixels needs more than {MOST_BYTES >> 30} GiB; "
            "give fewer regions or a smaller image"
        )
