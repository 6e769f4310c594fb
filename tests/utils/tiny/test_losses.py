import itertools
import math

import numpy as np
import pytest
import torch

from textregion.crops import CropGrid
from textregion.tiny.painting import SHAPES
from utils.tiny import data
from utils.tiny.clip_training import (
    WholeScenes,
    clear_patches,
    contrastive_loss,
    encode_texts,
    geometry_targets,
    pooling_weights,
    same_colour_logits,
    whole_scenes,
)
from utils.tiny.data import THINGS, region_shares
from utils.tiny.sam2_training import (
    EDGE_WEIGHT,
    Prompts,
    Pyramid,
    best_mask_loss,
    box_prompts,
    corrections,
    decode,
    draw_batch,
    encode,
    mask_iou,
    mask_losses,
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


def test_pooling_weights_are_shares_and_skip_cut_off_objects():
    ids, things = checker_crop()
    shares = region_shares(ids, 2)
    crop, weights, labels = pooling_weights(shares, things, torch.ones(1, 9))
    assert crop.tolist() == [0, 0]
    assert labels.tolist() == [GRASS, 0]
    assert weights.tolist() == [[0, 0.5, 1, 1], [1, 0.5, 0, 0]]
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
    target = torch.zeros(1, 1, 2, 5)
    target[..., :1] = 1  # two of ten cells, four of them at the outline
    pixels, balanced, dice = mask_losses(torch.zeros(1, 1, 2, 5), target)
    assert pixels.item() == pytest.approx(math.log(2))
    assert balanced.item() == pytest.approx(math.log(2))
    assert dice.item() == pytest.approx(1 - (2 * 1 + 1) / (5 + 2 + 1))
    right = (target - 0.5) * 100
    assert mask_iou(right, target).item() == pytest.approx(1)
    assert mask_iou(-right, target).item() == pytest.approx(0, abs=1e-5)
    assert mask_losses(right, target)[2].item() == pytest.approx(0, abs=1e-6)


def test_an_error_at_an_outline_counts_more():
    target = torch.zeros(1, 1, 1, 8)
    target[..., :4] = 1
    errors = torch.zeros(8)
    for place in range(8):
        logits = (target - 0.5) * 40
        logits[..., place] *= -1
        errors[place] = mask_losses(logits, target)[0]
    expected = torch.full((8,), 20 / (8 + 2 * EDGE_WEIGHT))
    expected[3:5] *= 1 + EDGE_WEIGHT
    torch.testing.assert_close(errors, expected)


def test_best_of_three_hardly_minds_the_others():
    target = torch.zeros(1, 4, 4, 4)
    target[..., :2] = 1
    good, bad = (target[:, :1] - 0.5) * 20, (0.5 - target[:, :1]) * 20
    one_right = best_mask_loss(torch.cat([good, bad, good, bad], 1), target)
    none_right = best_mask_loss(torch.cat([good, bad, bad, bad], 1), target)
    assert one_right < none_right / 4


def test_decoded_weights_are_those_that_made_the_masks(sam2, scene_set):
    images, points, *_ = draw_batch(scene_set, 2, 3, np.random.default_rng(0))
    upscaled = []
    hook = sam2.sam_mask_decoder.output_upscaling[-1].register_forward_hook(lambda *call: upscaled.append(call[-1]))
    with torch.no_grad():
        pyramid = Pyramid(*(level.repeat_interleave(3, 0) for level in encode(sam2, images)))
        asked = Prompts(points.flatten(0, 1)[:, None], torch.ones(6, 1, dtype=torch.int))
        masks, iou, mask_weights = decode(sam2, pyramid, asked)
    hook.remove()
    assert iou.shape == (6, 4)
    expected = torch.einsum("nmk,nkhw->nmhw", mask_weights, upscaled[0])
    torch.testing.assert_close(masks, expected, rtol=1e-4, atol=1e-4)


def test_a_prompt_can_be_told_a_mask(sam2, scene_set):
    images, points, *_ = draw_batch(scene_set, 2, 1, np.random.default_rng(0))
    labels, told = torch.ones(2, 1, dtype=torch.int), torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        pyramid = encode(sam2, images)
        untold = decode(sam2, pyramid, Prompts(points, labels)).logits
        second = decode(sam2, pyramid, Prompts(points, labels, told, torch.tensor([False, True]))).logits
    torch.testing.assert_close(second[0], untold[0])
    assert not torch.allclose(second[1], untold[1])


def test_drawn_boxes_surround_their_regions(scene_set):
    picks = draw_batch(scene_set, 3, 4, np.random.default_rng(2))
    for (point, box), target in zip(
        zip(picks.points.flatten(0, 1), picks.boxes.flatten(0, 1), strict=True), picks.target[:, 0], strict=True
    ):
        assert (point >= box[0]).all()
        assert (point < box[1]).all()
        rows, columns = (axis.flatten() for axis in torch.nonzero(target > 0, as_tuple=True))
        assert [columns.min() * 4, rows.min() * 4] == [side // 4 * 4 for side in box[0].tolist()]
        assert [columns.max() * 4, rows.max() * 4] == [(side - 1) // 4 * 4 for side in box[1].tolist()]


def test_box_prompts_are_a_little_off_and_inside_the_image():
    boxes = torch.tensor([[[0.0, 100], [200, 256]]]).expand(400, 2, 2)
    points, labels, *_ = box_prompts(boxes, 256, np.random.default_rng(0))
    assert labels.unique(dim=0).tolist() == [[2, 3]]
    assert (points.min(), points.max()) == (0, 256)
    off = (points - boxes).std(0)
    assert off[1, 0].item() == pytest.approx(0.04 * 200, rel=0.15)
    assert off[0, 1].item() == pytest.approx(0.04 * 156, rel=0.15)


def test_corrections_lie_where_the_answer_is_wrong():
    target = torch.zeros(40, 1, 8, 8)
    target[..., :4] = 1
    logits = torch.where(torch.arange(8) < 2, 1.0, -1.0).expand(40, 1, 8, 8)  # columns 2 and 3 are missing
    points, labels, masks, masked = corrections(torch.ones(40, 1, 2), logits, target, np.random.default_rng(0))
    assert points.shape == (*labels.shape, 2)
    assert (labels == 1).all()
    columns = points[:, 1:, 0] // 4
    assert columns.max() < 4
    assert 0.75 < (columns >= 2).float().mean() < 0.95  # two thirds, and half of a third
    assert masks is logits
    assert 0.3 < masked.float().mean() < 0.7
    outside = corrections(torch.ones(40, 1, 2), torch.ones(40, 1, 8, 8), target, np.random.default_rng(0))
    assert torch.equal(outside.labels[:, 1:] == 0, outside.points[:, 1:, 0] >= 16)


def test_names_of_one_colour_differ_in_the_shape_alone():
    phrases = list(itertools.chain(*data._ALTERNATIVES.values()))
    bank = torch.eye(len(phrases))  # each phrase a direction of its own
    things = torch.tensor([GRASS, *range(0, len(THINGS) - 8, 37)])
    features = torch.rand(len(things), len(phrases))
    logits, shapes = same_colour_logits(features, things, bank, torch.tensor(2.0))
    for row, thing in enumerate(things[1:].tolist()):
        names = [f"{THINGS[thing].colour} {shape}" for shape in SHAPES]
        assert names[shapes[row]] == THINGS[thing].name
        torch.testing.assert_close(logits[row], 2 * features[row + 1, [phrases.index(name) for name in names]])


def test_texts_without_their_common_padding_are_the_same(clip):
    model, tokenize = clip
    tokens = tokenize(["a photo of a red star.", "stone"])
    with torch.no_grad():
        torch.testing.assert_close(encode_texts(model, tokens), model.encode_text(tokens, normalize=True))


def test_values_of_whole_scenes_are_fused_and_summed():
    grid = CropGrid(4, 4, 2)  # the picture and 2 x 2 tiles, one patch each
    shares = torch.tensor([[[1.0, 0, 0, 0], [0, 0.5, 1, 1]]])
    whole = WholeScenes(torch.zeros(5, 3, 2, 2), shares, torch.tensor([[0, 1]]), grid)
    values = torch.tensor([10.0, 1, 2, 3, 4]).view(5, 1, 1)
    assert whole.fuse(values).flatten().tolist() == [11, 6 + 13 + 14]


def test_whole_scenes_are_cut_as_the_segmenter_cuts_them(scene_set):
    whole = whole_scenes(scene_set, 2, 96, 12, np.random.default_rng(0))
    assert whole.crops.shape == (10, 3, 96, 96)
    assert whole.shares.shape == (2, 9, 256)
    torch.testing.assert_close(whole.shares.sum(1), torch.ones(2, 256))
    present = whole.shares.sum(2) > 0
    assert (whole.things[present] >= 0).all()
