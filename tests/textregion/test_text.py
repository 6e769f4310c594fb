import pytest
from hypothesis import given
from hypothesis import strategies as st

from textregion.errors import InputError
from textregion.labels import LabelPrompts
from textregion.text import TEMPLATE_SETS, TEMPLATES, read_class_file

words = st.text("abcdefg äß", min_size=1, max_size=9).filter(str.strip)


def test_eighty_templates():
    assert len(TEMPLATES) == len({template("dog") for template in TEMPLATES}) == 80
    assert all("dog" in template("dog") for template in TEMPLATES)


def test_sets_of_templates_are_named_by_their_number():
    for count, templates in TEMPLATE_SETS.items():
        assert len({template("dog") for template in templates}) == count
    assert TEMPLATE_SETS[80] is TEMPLATES
    assert TEMPLATE_SETS[7][0]("dog") == "itap of a dog."
    assert TEMPLATE_SETS[1][0]("dog") == "a photo of a dog."


def test_synonyms_belong_to_their_label():
    prompts = LabelPrompts.parse(["sky; wall ;floor", "cat", "a red cup;mug;"])
    assert prompts.names == ("sky", "cat", "a red cup")
    assert prompts.queries == ("sky", "wall", "floor", "cat", "a red cup", "mug")
    assert prompts.query_label == (0, 0, 0, 1, 2, 2)


def test_without_synonyms_queries_are_names():
    prompts = LabelPrompts.parse([" dog ", "sofa", "dog"])
    assert prompts.names == prompts.queries == ("dog", "sofa", "dog")


@given(st.lists(st.lists(words, min_size=1, max_size=4), min_size=1, max_size=9))
def test_parsing_gives_back_every_word(groups):
    prompts = LabelPrompts.parse(["; ".join(group) for group in groups])
    assert prompts.queries == tuple(" ".join(word.split()) for group in groups for word in group)
    assert prompts.query_label == tuple(i for i, group in enumerate(groups) for _ in group)
    assert len(prompts.names) == len(groups)


def test_parsed_prompts_pass_through():
    prompts = LabelPrompts.parse(["a"])
    assert LabelPrompts.parse(prompts) is prompts


@pytest.mark.parametrize("labels", [[], [""], ["dog", ";"], ["dog", " ; ; "], "dog"])
def test_bad_labels_are_refused(labels):
    with pytest.raises(InputError, match="expected"):
        LabelPrompts.parse(labels)


def test_class_file(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("sky; wall\r\n\n  büroklammer \n\ncat".encode())
    assert read_class_file(path) == read_class_file(str(path)) == ["sky; wall", "büroklammer", "cat"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_no_label_begins_with_a_byte_order_mark(tmp_path, end):
    path = tmp_path / "joined.txt"  # of two files, each with its own mark
    path.write_bytes(end.join(["\ufeffsky; wall", "\ufeffcat", ""]).encode())
    assert read_class_file(path) == ["sky; wall", "cat"]


def test_class_files_that_are_refused(tmp_path):
    with pytest.raises(InputError, match="no file"):
        read_class_file(tmp_path / "missing.txt")
    with pytest.raises(InputError, match="no file"):
        read_class_file(tmp_path)
    (tmp_path / "image.txt").write_bytes(b"\xff\xfe\x00cat")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_class_file(tmp_path / "image.txt")
