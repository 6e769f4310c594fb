"""The one reader of YAML: plain values come back, what is hostile or broken is one line and takes no time."""

from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from textregion import yaml_files
from textregion.errors import InputError
from textregion.yaml_files import read_yaml


def read(tmp_path, text: str | bytes):
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_yaml(path, "a list")


def refused(tmp_path, text: str | bytes) -> str:
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    assert str(tmp_path / "x.yaml") in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.png: [dog, cat]", {"a.png": ["dog", "cat"]}),
        ("", None),
        ("\ufeffa: 1", {"a": 1}),
        ("all: &all [dog]\na: *all\nb: *all", {"all": ["dog"], "a": ["dog"], "b": ["dog"]}),
        ("base: &b {x: 1}\nown: {<<: *b, y: 2}", {"base": {"x": 1}, "own": {"x": 1, "y": 2}}),
        ("base: &b {x: 1}\nown: {<<: *b, x: 2}", {"base": {"x": 1}, "own": {"x": 2}}),
        ("1: a\n'1': b", {1: "a", "1": "b"}),
        ("{x: [{x: 1}, {x: 2}]}", {"x": [{"x": 1}, {"x": 2}]}),
    ],
)
def test_plain_files_with_aliases_and_merge_keys(tmp_path, text, value):
    assert read(tmp_path, text) == value


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=plain)
def test_what_is_dumped_is_read(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("yaml") / "x.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    assert read_yaml(path, "a value") == value


@given(text=st.text(alphabet="ab&*<:{}[],-!?|>%@'\"# \n\t0.~\\", max_size=60))
def test_any_text_is_read_or_refused_in_one_line(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("yaml") / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with suppress(InputError):
        read_yaml(path, "a value")


def nested(depth: int, line: str) -> str:
    """`line` names the part before (`{before}`) and this one (`{own}`), `depth` times."""
    return "a0: &a0 {x: [q]}\n" + "".join(line.format(own=f"a{n}", before=f"a{n - 1}") for n in range(1, depth))


@pytest.mark.parametrize("depth", [9, 40])
@pytest.mark.parametrize(
    "line",
    [
        "{own}: &{own} {{<<: [*{before}, *{before}, *{before}, *{before}, *{before}, *{before}]}}\n",
        "{own}: &{own} [*{before}, *{before}, *{before}, *{before}, *{before}, *{before}]\n",
    ],
)
def test_what_multiplies_is_refused_before_it_does(tmp_path, line, depth, monkeypatch):
    def construct(*_):
        raise AssertionError("the document was made")

    monkeypatch.setattr(yaml.SafeLoader, "construct_document", construct)
    assert "stands for more than 2000000 values" in refused(tmp_path, nested(depth, line))


def test_the_bounds_are_exact(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("[&a [1, 2], *a]")  # 1 + 2 * (1 + 2)
    assert read_yaml(tmp_path / "a.yaml", "a list", 7) == [[1, 2], [1, 2]]
    with pytest.raises(InputError, match="stands for more than 6 values"):
        read_yaml(tmp_path / "a.yaml", "a list", 6)
    monkeypatch.setattr(yaml_files, "DEEPEST", 3)
    assert read(tmp_path, "[[1]]") == [[1]]
    assert "nested deeper than 3 levels" in refused(tmp_path, "[[[1]]]")
    monkeypatch.setattr(yaml_files, "LARGEST", 5)
    assert read(tmp_path, "[123]") == [123]
    assert "is larger than" in refused(tmp_path, "[1234]")


@pytest.mark.parametrize("text", ["[" * 60 + "]" * 60, "[" * 50_000, "- " * 60 + "x", "- " * 5000 + "x"])
def test_deep_nesting(tmp_path, text):
    assert "not valid YAML" in refused(tmp_path, text)


def test_a_chain_of_aliases_counts_as_depth(tmp_path):
    assert "nested deeper" in refused(tmp_path, nested(200, "{own}: &{own} [*{before}]\n"))


@pytest.mark.parametrize("text", ["&a [*a]", "a: &a {b: *a}", "a: &a {<<: *a}", "&a {b: [1, {c: *a}]}"])
def test_an_alias_within_itself(tmp_path, text):
    assert "alias within the very part" in refused(tmp_path, text)


@pytest.mark.parametrize("text", ["a: " + "1" * 5000, "- " + "1:" * 3000 + "1", "x: 1." + "0" * 1000])
def test_numbers_of_thousands_of_digits(tmp_path, text):
    assert "has a number of" in refused(tmp_path, text)


def test_a_key_that_is_there_twice(tmp_path):
    assert "has the key 'a.png' twice in one mapping" in refused(tmp_path, "a.png: [x]\nb.png: [x]\na.png: [y]")


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2",
        "2020-99-99: [a]",
        "!!timestamp now",
        "!!bool maybe",
        "!!int ''",
        "!!float x",
        "? [a]\n: b",
        "*nothing",
        "a: 1\n---\nb: 2",
        "!!python/object/apply:os.system ['true']",
        "\x01",
        "{<<: 3}",
    ],
)
def test_what_is_no_plain_yaml(tmp_path, text):
    assert "is not valid YAML" in refused(tmp_path, text)


def test_missing_or_not_text(tmp_path):
    assert "is not UTF-8 text" in refused(tmp_path, b"\xff\xfea")
    with pytest.raises(InputError, match=r"no file .*gone\.yaml; expected a list"):
        read_yaml(tmp_path / "gone.yaml", "a list")
