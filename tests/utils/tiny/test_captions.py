import numpy as np

from textregion.tiny.models import known_token_ids, unknown_words
from textregion.tiny.scenes import CLASS_NAMES, draw_scene
from utils.tiny.data import (
    LABEL_SETS,
    THING_INDEX,
    THINGS,
    bank_phrases,
    caption,
    in_template,
    mention_ground,
    mention_object,
    mention_of,
    vocabulary,
)

RNG = np.random.default_rng(0)
GRASS = next(index for index, thing in enumerate(THINGS) if thing.name == "grass")


def test_every_region_is_a_thing():
    for region in draw_scene(1, n_objects=6).regions:
        assert THINGS[THING_INDEX[region]] == region
    assert len(THINGS) == 10 * 9 * 4 + 8


def test_mentions_match_what_they_say():
    red = mention_of(colour="red")
    assert red.phrase == "red shape"
    assert {THINGS[index].colour for index in np.flatnonzero(red.matches)} == {"red"}
    assert red.matches.sum() == 40
    full = mention_of(shape="star", colour="red", texture="striped")
    assert full.phrase == "red striped star"
    assert full.matches.sum() == 1


def test_random_mentions_are_true_of_their_thing():
    for thing in range(0, 360, 7):
        assert mention_object(thing, RNG).matches[thing]
    assert mention_ground(GRASS, RNG).matches.tolist() == [index == GRASS for index in range(len(THINGS))]


def test_caption_without_template(monkeypatch):
    monkeypatch.setattr("utils.tiny.data.TEMPLATE_SHARE", 0.0)
    red, grass = mention_of(colour="red"), mention_ground(GRASS, RNG)
    assert caption([red, red], [grass], RNG) == "red shape and a red shape on grass"
    assert caption([], [grass, grass], RNG) == "grass and grass"


def test_label_sets_name_things_rightly():
    phrases = bank_phrases(RNG)
    assert [len(labels.rows) for labels in LABEL_SETS] == [18, 98, 17, 4]
    for thing in range(0, len(THINGS), 11):
        words = [THINGS[thing].shape, THINGS[thing].name, THINGS[thing].colour, THINGS[thing].texture]
        for labels, word in zip(LABEL_SETS, words, strict=True):
            if word and THINGS[thing].kind == "object":
                assert word in phrases[labels.rows[labels.of_thing[thing]]]
    assert [labels.of_thing[GRASS] for labels in LABEL_SETS] == [10, 90, 9, -1]


def test_all_that_is_said_is_in_the_shipped_vocabulary():
    assert set(vocabulary().tolist()) == known_token_ids()
    said = [in_template(mention_object(thing, RNG).phrase, RNG) for thing in range(0, 360, 3)]
    assert unknown_words([*said, *bank_phrases(RNG), *CLASS_NAMES]) == []
