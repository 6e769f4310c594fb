import math

import numpy as np
import pytest
import torch

from textregion.segmenter import TextRegionSegmenter
from textregion.tiny.scenes import draw_scene
from utils.tiny.evaluate import (
    QUESTIONS,
    encode_scenes,
    main,
    mask_ious,
    right_answer,
    score_maps,
    score_masks,
    score_names,
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
    scores = score_names(segmenter, encoded)
    assert scores["colour accuracy"] > 0.85
    assert scores["ground accuracy"] > 0.9


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
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "standard world, 1 scenes"
    assert all(math.isfinite(float(line.split()[-1])) for line in lines)
    assert len(lines) >= 10
