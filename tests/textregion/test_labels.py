"""How labels are read from one text, merged, and checked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textregion.errors import InputError
from textregion.labels import LabelPrompts, as_sentence, join_labels, merge_labels, split_labels

WORDS = st.text(st.sampled_from([*"ab ,;\"'#\t\n", "é", "犬", "\u00a0"]), max_size=9)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("red star, sky", ["red star", "sky"]),
        ("red star,sky,", ["red star", "sky"]),
        ('"red, round star", sky', ["red, round star", "sky"]),
        (' "red,\tround  star" ,,sky\n\ngrass;', ["red, round star", "sky", "grass"]),
        ('"say ""a, b"""', ['say "a, b"']),
        ('5" disk, "quoted" word, "', ['5" disk', '"quoted" word', '"']),
        ('"never closed, sky', ['"never closed', "sky"]),
        ("sofa; couch, the dog's bowl", ["sofa; couch", "the dog's bowl"]),
        ("sky, sky", ["sky", "sky"]),
        ("дом,天空、犬", ["дом", "天空、犬"]),
    ],
)
def test_a_text_is_split_at_commas_outside_of_quotes(text, labels):
    assert split_labels(text) == labels


@pytest.mark.parametrize("text", ["", " ", ",", "\n", ";", ' , ;\t; ,""'])
def test_a_text_without_a_label_is_one_line(text):
    with pytest.raises(InputError, match="expected words or phrases, separated by commas"):
        split_labels(text)


def _can_be_read(label: str) -> bool:
    """Labels as `split_labels` gives them: not blank, single spaces, nothing blank at an end."""
    return bool(label) and label == " ".join(label.split()).strip(" ;")


@given(st.lists(WORDS.filter(_can_be_read), min_size=1, max_size=5))
def test_quoting_round_trip(labels):
    assert split_labels(join_labels(labels)) == labels


@given(WORDS)
def test_any_text_gives_clean_labels_or_one_line(text):
    try:
        labels = split_labels(text)
    except InputError:
        assert not text.strip(' ,;"\n\t\u00a0')
        return
    assert all(map(_can_be_read, labels))
    assert split_labels(join_labels(labels)) == labels


def test_labels_of_one_name_become_one_with_all_synonyms():
    assert merge_labels(["sofa;couch", "sky", "sofa; settee", " sky "]) == (
        ("sofa; couch; settee", "sky"),
        ["sofa", "sky"],
    )
    assert merge_labels(["Sky", "sky"]) == (("Sky", "sky"), [])
    assert merge_labels(["a, b"]) == (("a, b",), [])
    with pytest.raises(InputError, match="expected a word or phrase"):
        merge_labels(["sky", " ; "])


@given(st.lists(WORDS.filter(lambda word: word.strip(" ;\t\n\u00a0")), min_size=1, max_size=6))
def test_merged_labels_have_different_names_and_lose_no_query(labels):
    merged, repeated = merge_labels(labels)
    names, before = LabelPrompts.parse(merged).names, LabelPrompts.parse(labels)
    assert names == tuple(dict.fromkeys(before.names))
    assert set(LabelPrompts.parse(merged).queries) == set(before.queries)
    assert set(repeated) == {name for name in names if before.names.count(name) > 1}


def test_a_list_in_python_is_taken_as_it_stands():
    prompts = LabelPrompts.parse(["red star, sky", "sky", "sky"])
    assert prompts.names == ("red star, sky", "sky", "sky")


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("sentence", "kind"), [(["a"], "list"), (("a", "b"), "tuple"), (None, "NoneType"), (b"a", "b")]
)
def test_a_sentence_is_one_string(sentence, kind):
    with pytest.raises(InputError, match=f"got a sentence of type {kind}.*, expected one string"):
        as_sentence(sentence)
    assert as_sentence("the red star, left") == "the red star, left"
