"""Which images, what a table must say, where a run lies: eval/selection.py."""

import pytest

from eval.journal import Journal
from eval.selection import Selection, default_folder, marks_of
from textregion.errors import InputError

EVERY = ["val/a.png", "val/b.png", "other/b.png", "c.png"]


@pytest.mark.parametrize(
    ("lines", "limit", "chosen"),
    [
        (["val/a.png"], None, ["val/a.png"]),
        (["c", "a"], None, ["val/a.png", "c.png"]),
        (["c.png", "# a comment", "", "c.png", "val/b"], None, ["val/b.png", "c.png"]),
        (["c", "a"], 1, ["val/a.png"]),
    ],
)
def test_a_list_chooses_by_name_in_the_order_of_the_data(lines, limit, chosen, tmp_path):
    (tmp_path / "list").write_text("\n".join(lines))
    assert Selection.of(EVERY, limit, tmp_path / "list").items == chosen


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no image; expected one a line, such as val/a.png"),
        ("a\nnone\n", "1 of 2 names are no image here .none.; expected names such as val/a.png"),
        ("b.png", "b.png may be val/b.png and other/b.png; write the whole name"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(text, said, tmp_path):
    (tmp_path / "list").write_text(text)
    with pytest.raises(InputError, match=said):
        Selection.of(EVERY, None, tmp_path / "list")


def test_what_is_told_depends_on_the_images_and_their_files():
    one, other = Selection.of(EVERY, 2), Selection.of(EVERY, 3)
    digests = dict.fromkeys(EVERY, "x")
    assert one.told(digests) == one.told(digests) != other.told(digests)
    assert one.told(digests)["content"] != one.told({**digests, "val/a.png": "y"})["content"]


def test_marks_say_what_is_not_as_published():
    assert marks_of(Selection.of(EVERY), {"preset": "tiny", "mask_cache": "x"}, {"model.device": "cpu"}) == []
    model = {"random_weights": True, "scale": (3, 2), "clip_checkpoint": "/x.pt"}
    marks = marks_of(Selection.of(EVERY, 2), model, {"benchmark.scenes": 4}, ["code.commit: was a, now b"])
    assert marks == [
        *("first 2 images", "random weights", "scale=3 2", "benchmark.scenes=4", "clip_checkpoint=given"),
        "resumed with another identity",
    ]


def test_default_folders_have_the_identity_and_resume_names_the_difference(tmp_path):
    one, other = {"recipe": "demo"}, {"recipe": "semantic"}
    folder = default_folder(tmp_path, "a/b", one, resume=True)
    assert folder == default_folder(tmp_path, "a/b", one) != default_folder(tmp_path, "a/b", other)
    Journal.start(folder / "journal", one).close()
    assert default_folder(tmp_path, "a/b", one, resume=True) == folder
    with pytest.raises(InputError, match=rf'{folder.name}, was made with others \(recipe: was "demo", now "semantic"'):
        default_folder(tmp_path, "a/b", other, resume=True)
