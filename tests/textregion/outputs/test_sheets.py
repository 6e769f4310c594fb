"""Words on pictures: nothing cut, nothing drawn as an empty box; sheets of any shape."""

import matplotlib
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from textregion.errors import InputError
from textregion.outputs import pictures
from textregion.outputs.pictures import LONGEST, MARGIN, WIDEST, font, legible, sheet, shorten, with_footer, wrap


@pytest.fixture
def fresh():
    """No font remembered, before and after."""
    caches = (pictures.font, pictures._drawable)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_latin_greek_cyrillic_are_drawn_and_others_named():
    assert legible("Straße été λόγος дерево") == "Straße été λόγος дерево"
    assert legible("犬 dog \U0001fae0") == "\\u72ac dog \\U0001fae0"
    assert legible("a\tb\n\n c\x07\udcff") == "a b c\\x07\\udcff"


def test_different_letters_look_different():
    assert bytes(font(20).getmask("д")) != bytes(font(20).getmask("ж"))


@given(st.text(max_size=30), st.integers(30, 400))
@example("word " * 5000, 90)
@example("x" * 100_000, 30)
def test_shortened_text_fits(text, width):
    short = shorten(text, 16, width)
    assert font(16).getlength(short) <= width
    assert short == legible(text) or short.endswith("…")


def test_text_that_fits_stays():
    assert shorten("red sofa", 16, 400) == "red sofa"


@given(st.lists(st.sampled_from(["a", "word", "longer", "x" * 90]), max_size=30))
def test_wrapped_lines_fit_and_keep_the_words(words):
    lines = wrap(" ".join(words), 15, 120)
    assert all(font(15).getlength(line) <= 120 for line in lines)
    kept = " ".join(lines).split()
    text = legible(" ".join(words)).split()
    assert len(kept) == len(text)
    assert all(k == w or k.endswith("…") for k, w in zip(kept, text, strict=True))


def test_only_the_beginning_of_endless_text_is_measured():
    assert len(legible("a" * 10**6)) == LONGEST


def test_a_font_of_ones_own(monkeypatch, fresh, tmp_path):
    path = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSansMono.ttf"
    fresh_width = font(10).getlength("i")
    pictures.font.cache_clear()
    monkeypatch.setenv("TEXTREGION_FONT", path)
    assert font(10).getlength("i") == font(10).getlength("W") != fresh_width
    pictures.font.cache_clear()
    monkeypatch.setenv("TEXTREGION_FONT", str(tmp_path / "absent.ttf"))
    with pytest.raises(InputError, match="TEXTREGION_FONT"):
        font(10)


def test_sheet_holds_all_panels_and_wraps_the_legend():
    panels = [("one", np.zeros((240, 300, 3), np.uint8)), ("two", np.zeros((120, 120, 3), np.uint8))]
    few = sheet(panels, [(np.zeros(3), "a")])
    many = sheet(panels, [(np.zeros(3), f"label {i}") for i in range(40)])
    assert few.width == 300 + 240 + 3 * 16
    assert many.height > few.height


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_sheet_of_any_shape_is_bounded(size):
    picture = sheet([("title " * 50, np.zeros((*size, 3), np.uint8))] * 2, [(np.zeros(3), "x" * 999)], "note " * 99)
    assert 400 < picture.width <= 2 * (WIDEST + MARGIN) + MARGIN
    assert picture.height < 1200
    edges = np.asarray(picture)[:, [0, 1, -2, -1]]
    assert (edges == 255).all()


def test_footer_grows_with_the_picture():
    small = with_footer(np.zeros((10, 480, 3), np.uint8), [(np.zeros(3), "word")])
    large = with_footer(np.zeros((10, 3000, 3), np.uint8), [(np.zeros(3), "word")])
    assert large.height - 10 > 2 * (small.height - 10)
