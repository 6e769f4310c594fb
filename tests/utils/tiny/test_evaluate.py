import math

import numpy as np
import pytest
import torch

from textregion.segmenter import TextRegionSegmenter
from textregion.tiny.scenes import draw_scene
from utils.tiny.evaluate import (
    QUESTIONS,
    boundary_f,
    encode_scenes,
    exact_tokens,
    inner_point,
    main,
    mask_ious,
    right_answer,
    score_maps,
    score_masks,
    score_names,
    score_prompts,
    three_clicks,
    tiny_segmenter,
)


@pytest.fixture(scope="module")
def segmenter():
    return tiny_segmenter()


@pytest.fixture(scope="module")
def encoded(segmenter):
    return encode_scenes(segmenter, 12)


def test_mask_ious_by_hand():
    first = torch.tensor([[[True, True, False]], [[False, False, False]]])
    second = torch.tensor([[[False, True, True]], [[False, False, False]], [[True, True, False]]])
    assert mask_ious(first, second).flatten().tolist() == pytest.approx([1 / 3, 0, 1, 0, 0, 0])


def test_evaluation_scenes_are_not_training_scenes(encoded):
    assert np.array_equal(encoded[0].scene.image, draw_scene(900_000).image)


def test_the_segmenter_is_the_one_of_the_preset(segmenter, encoded):
    preset = TextRegionSegmenter.from_preset("tiny", device="cpu")
    tokens = preset.encode_image(encoded[0].scene.image)
    torch.testing.assert_close(tokens.tokens, encoded[0].generated.tokens)


def test_every_right_answer_can_be_given():
    for region in draw_scene(3, n_objects=6).regions:
        answers = {question: right_answer(region, question) for question in QUESTIONS}
        assert all(answer is None or answer in QUESTIONS[question] for question, answer in answers.items())
        assert (answers["ground"] is None) == (region.kind == "object")


def test_exact_masks_find_colours_and_grounds(segmenter, encoded):
    scores = score_names(segmenter, exact_tokens(encoded))
    assert scores["colour accuracy"] > 0.85
    assert scores["ground accuracy"] > 0.9
    assert scores["shape accuracy, equal colours"] > 0.2  # chance is 0.1


def square(top, left, side=20):
    mask = np.zeros((64, 64), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_boundary_f_by_hand():
    true = square(10, 10)
    assert boundary_f(true, true) == 1
    assert boundary_f(square(12, 10), true) == 1  # two pixels off are not too many
    assert boundary_f(np.zeros_like(true), true) == 0
    # Three rows off: of the 76 pixels of each outline the sides are near (36), and three at each end of one row.
    assert boundary_f(square(13, 10), true) == pytest.approx((36 + 6) / 76)
    half = np.zeros_like(true)
    half[:, :32] = True
    assert boundary_f(half, half) == 1


def test_clicks_lie_where_they_should():
    mask = square(10, 20) & ~square(10, 20, 6)
    rng = np.random.default_rng(0)
    for _ in range(5):
        first, second, third = three_clicks(mask, (20, 10, 20, 20), rng)
        assert first == inner_point(mask)
        assert mask[second[1], second[0]]
        assert not mask[third[1], third[0]]
        assert 20 <= third[0] < 26
    assert 26 <= inner_point(mask)[0] < 34


def test_prompts_are_scored(segmenter, encoded):
    scores = score_prompts(segmenter.mask_generator, [one.scene for one in encoded[:6]])
    assert set(scores) == {
        f"{kind} {what}" for kind in ("ground click", "box", "click", "three clicks") for what in ("IoU", "boundary F")
    }
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores["click IoU"] > 0.5
    assert scores["ground click IoU"] > 0.8


def test_generated_masks_cover_most_of_the_scene(encoded):
    scores = score_masks(encoded)
    assert scores["ground best IoU"] > 0.7
    assert all(0 <= value <= 1 for value in scores.values())


def test_a_scene_without_masks_has_no_overlap(segmenter, encoded):
    scene = encoded[0].scene
    nothing = segmenter.encode_image(scene.image, scene.masks[:0])
    assert set(score_masks([encoded[0]._replace(generated=nothing)]).values()) == {0.0}


def test_exact_masks_give_a_good_map(segmenter, encoded):
    scores = score_maps(segmenter, encoded[:6])
    assert scores["mean IoU, 17 classes, true masks"] > 0.7
    assert scores["mean IoU, own labels, true masks"] > 0.7


def test_program_prints_every_score(capsys):
    assert main(["--scenes", "1", "--world", "standard"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "standard world, 1 scenes"
    scores = [line for line in lines if line.startswith("  ")]
    assert all(math.isfinite(float(line.split()[-1])) for line in scores)
    assert len(scores) >= 22
    assert {"box IoU", "shape accuracy, equal colours"} < {line[:38].strip() for line in scores}
    assert scores[-1].startswith("  RegionSpot's head, tokens shuffled")
