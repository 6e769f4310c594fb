import math

import numpy as np
import pytest
import torch

from utils.tiny.clip_training import clear_patches, contrastive_loss, geometry_targets, pooling_weights
from utils.tiny.data import THINGS, region_shares
from utils.tiny.sam2_training import (
    Pyramid,
    balanced_loss,
    best_mask_loss,
    decode,
    dice_loss,
    draw_batch,
    encode,
    mask_iou,
    pixel_loss,
)

GRASS = len(THINGS) - 8
NONE = [-1] * 7


def checker_crop():
    """A crop of 4 x 4 pixels in patches of 2: an object in the upper left patch and half of the next."""
    ids = torch.zeros(1, 4, 4, dtype=torch.int64)
    ids[0, :2, :3] = 1
    return ids, torch.tensor([[GRASS, 0, *NONE]])


def test_region_shares():
    shares = region_shares(checker_crop()[0], 2)
    assert shares.shape == (1, 9, 4)
    assert shares[0, 1].tolist() == [1, 0.5, 0, 0]
    assert shares.sum(1).tolist() == [[1, 1, 1, 1]]


def test_clear_patches_skip_mixed_ones():
    ids, things = checker_crop()
    chosen, labels = clear_patches(region_shares(ids, 2), things)
    assert chosen.tolist() == [0, 2, 3]
    assert labels.tolist() == [0, GRASS, GRASS]


def test_pooling_weights_sum_to_one_and_skip_cut_off_objects():
    ids, things = checker_crop()
    shares = region_shares(ids, 2)
    crop, weights, labels = pooling_weights(shares, things, torch.ones(1, 9))
    assert crop.tolist() == [0, 0]
    assert labels.tolist() == [GRASS, 0]
    assert weights.sum(1).tolist() == [1, 1]
    assert pooling_weights(shares, things, torch.full((1, 9), 0.1))[2].tolist() == [GRASS]


def test_geometry_points_to_the_centre():
    ids, things = checker_crop()
    targets, chosen = geometry_targets(region_shares(ids, 2), things, 2)
    assert chosen.tolist() == [[True, False, False, False]]
    centre_x = (1.0 * 1 + 0.5 * 3) / 1.5
    expected = [0, (centre_x - 1) / 24, math.log(math.sqrt(1.5) * 2 / 32)]
    assert targets[0, 0].tolist() == pytest.approx(expected)


def test_contrastive_loss_ignores_other_true_pairs():
    images = texts = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    scale = torch.tensor(100.0)
    only_own = torch.eye(3, dtype=torch.bool)
    assert contrastive_loss(images, texts, scale, only_own).item() == pytest.approx(2 / 3 * math.log(2), abs=1e-4)
    also_true = only_own.clone()
    also_true[0, 1] = also_true[1, 0] = True
    assert contrastive_loss(images, texts, scale, also_true).item() == pytest.approx(0, abs=1e-4)


def test_mask_losses_by_hand():
    target = torch.zeros(1, 1, 2, 4)
    target[..., :1] = 1  # two of eight pixels
    logits = torch.zeros(1, 1, 2, 4)
    assert pixel_loss(logits, target).item() == pytest.approx(math.log(2))
    assert balanced_loss(logits, target).item() == pytest.approx(math.log(2))
    assert dice_loss(logits, target).item() == pytest.approx(1 - (2 * 1 + 1) / (4 + 2 + 1))
    right = (target - 0.5) * 100
    assert mask_iou(right, target).item() == pytest.approx(1)
    assert mask_iou(-right, target).item() == pytest.approx(0, abs=1e-5)
    assert dice_loss(right, target).item() == pytest.approx(0, abs=1e-6)


def test_best_of_three_hardly_minds_the_others():
    target = torch.zeros(1, 4, 4, 4)
    target[..., :2] = 1
    good, bad = (target[:, :1] - 0.5) * 20, (0.5 - target[:, :1]) * 20
    one_right = best_mask_loss(torch.cat([good, bad, good, bad], 1), target)
    none_right = best_mask_loss(torch.cat([good, bad, bad, bad], 1), target)
    assert one_right < none_right / 4


def test_decoded_weights_are_those_that_made_the_masks(sam2, scene_set):
    images, points, _ = draw_batch(scene_set, 2, 3, np.random.default_rng(0))
    upscaled = []
    hook = sam2.sam_mask_decoder.output_upscaling[-1].register_forward_hook(lambda *call: upscaled.append(call[-1]))
    with torch.no_grad():
        pyramid = Pyramid(*(level.repeat_interleave(3, 0) for level in encode(sam2, images)))
        masks, iou, mask_weights = decode(sam2, pyramid, points.flatten(0, 1)[:, None])
    hook.remove()
    assert iou.shape == (6, 4)
    expected = torch.einsum("nmk,nkhw->nmhw", mask_weights, upscaled[0])
    torch.testing.assert_close(masks, expected, rtol=1e-4, atol=1e-4)
