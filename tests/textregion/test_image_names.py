from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textregion.errors import InputError
from textregion.image_names import ListedImages, id_key, name_parts


def listed(*names: str | None, **named: str) -> ListedImages:
    """Images 1, 2, … of these names, and those of a given id."""
    rows = [{"id": n, "file_name": name} for n, name in enumerate(names, 1)]
    return ListedImages("f.json", rows + [{"id": key, "file_name": name} for key, name in named.items()])


@pytest.mark.parametrize(
    ("names", "asked", "expected"),
    [
        (("a.jpg", "b.jpg"), "b.jpg", "2"),
        (("a.jpg", "b.jpg"), "photos/b.jpg", "2"),
        (("cam1/0001.jpg", "cam2/0001.jpg"), "photos/cam1/0001.jpg", "1"),
        (("cam1/0001.jpg", "cam2/0001.jpg"), "/data/cam2/0001.jpg", "2"),
        (("cam1/0001.jpg", "cam2/0001.jpg"), "./cam2//0001.jpg", "2"),
        (("/home/x/set/cam1/0001.jpg", "/home/x/set/cam2/0001.jpg"), "photos/cam2/0001.jpg", "2"),
        (("set/cam1/0001.jpg", "other/cam2/0001.jpg"), "cam2/0001.jpg", "2"),
        (("0001.jpg", "cam1/0001.jpg"), "photos/cam1/0001.jpg", "2"),
        (("0001.jpg", "cam1/0001.jpg"), "0001.jpg", "1"),
        (("images\\2.jpg", "images\\1.jpg"), "images/1.jpg", "2"),
        (("images\\2.jpg", "images\\1.jpg"), Path("1.jpg"), "2"),
        (("C:\\Users\\x\\1.jpg", "C:\\Users\\x\\2.jpg"), "photos/2.jpg", "2"),
        (("images/1.jpg", "images/2.jpg"), "photos\\2.jpg", "2"),
        (("train/1.jpg", "val/2.jpg"), "photos/2.jpg", "2"),  # no two share a base name
        (("../../media/1.jpg", "../../media/2.jpg"), "media/2.jpg", "2"),
        (("caf\u00e9.jpg",), "cafe\u0301.jpg", "1"),
        (("scene", "other"), "photos/scene.png", "1"),
        (("scene.jpg.png", "scene.jpg"), "scene.jpg", "2"),
        (("scene.jpg", "other.jpg"), "scene", "1"),
        (("cam1/scene.v2.jpg", "cam2/scene.v2.jpg"), "x/cam2/scene.v2", "2"),
        (("1.jpg", None), "1.jpg", "1"),
        (("1.jpg", "1.jpg".upper()), "1.JPG", "2"),
    ],
)
def test_an_image_is_found_by_its_path(names, asked, expected):
    assert listed(*names).find(asked) == expected


@pytest.mark.parametrize(
    ("images", "asked", "message"),
    [
        (listed("cam1/0001.jpg", "cam2/0001.jpg"), "0001.jpg", r"2 images that 0001.jpg may be \(cam1/0001.jpg, cam2"),
        (
            listed("cam1/0001.jpg", "cam2/0001.jpg"),
            "cam3/0001.jpg",
            "lists no image cam3/0001.jpg; it lists 2 images: cam1",
        ),
        (listed("cam1/0001.jpg", "cam2/0001.jpg", "cam2/7.jpg"), "cam1/7.jpg", "lists no image cam1/7.jpg"),
        (listed("f.png", **{"51": "f.png"}), "f.png", r"2 images that f.png may be \(f.png; ids 1, 51\)"),
        (listed("f.png", **{"51": "./f.png"}), "x/f.png", "may be"),
        (listed("a/f.png", **{"1": "b/g.png"}), "a/f.png", "the id 1 stands for several images"),
        (listed(**{"3": "cat.jpg"}), "photos/3.jpg", "lists no image photos/3.jpg; it lists 1 images: cat.jpg"),
        (listed("cat.jpg", None), "2.jpg", "lists no image 2.jpg"),
        (listed("a.jpg"), "a.png", "lists no image"),
        (listed("a.jpg", "a.png"), "a", r"2 images that a may be \(a.jpg, a.png"),
        (listed("xa.jpg"), "a.jpg", "lists no image"),
        (listed("a.jpg"), "", "expected a file name"),
        (listed(), "a.jpg", "it lists 0 images: none"),
        (listed(None, None), "7.jpg", "lists no image 7.jpg; it lists 2 images: 1, 2"),
    ],
)
def test_what_is_not_listed_or_ambiguous_is_refused(images, asked, message):
    with pytest.raises(InputError, match=message):
        images.find(asked)


@pytest.mark.parametrize("asked", ["7", "7.jpg", "x/000000000007.png", "0007"])
@pytest.mark.parametrize("key", [7, 7.0, "7", "7.0", "007", " 7 "])
def test_ids_are_names_only_in_a_file_without_names(key, asked):
    assert ListedImages("f.json", [{"id": key}, {"id": 8, "file_name": ""}]).find(asked) == "7"
    assert ListedImages("f.json", [{"id": "scene_1"}, {"id": 1}]).find("a/scene_1.jpg") == "scene_1"


@given(st.integers(-(10**12), 10**12))
def test_an_id_is_the_same_as_number_float_and_text(number):
    forms = [number, float(number), str(number), f"{number}.0"]
    assert {id_key(form) for form in forms} == {str(number)}


def test_ids_that_are_no_whole_numbers_stay_apart():
    assert [id_key(value) for value in (1.5, "1.5", "a1", "1a", "1 2")] == ["1.5", "1.5", "a1", "1a", "1 2"]
    for wrong in (None, [1], {}, float("nan"), float("inf")):
        with pytest.raises(InputError, match="expected a number or text"):
            id_key(wrong)


@pytest.mark.parametrize("row", [7, None, {}, {"file_name": "a.jpg"}, {"id": None}])
def test_a_row_without_an_id_is_refused(row):
    with pytest.raises(InputError, match=r"f\.json: got an image without an id"):
        ListedImages("f.json", [row])


names = st.lists(st.sampled_from(["a", "b", "cam1", "cam2"]), min_size=1, max_size=4).map("/".join)


@given(st.lists(names, min_size=1, max_size=6, unique=True), st.data())
def test_every_listed_path_is_found_as_itself_and_below_a_folder_never_as_another(paths, data):
    images = listed(*paths)
    chosen = data.draw(st.sampled_from(paths))
    assert images.find(chosen) == str(paths.index(chosen) + 1)
    longer = [path for path in paths if path.endswith(f"/{chosen}")]
    if not longer:
        assert images.find(f"elsewhere/{chosen}") == str(paths.index(chosen) + 1)


@given(names, st.booleans())
def test_parts_do_not_depend_on_the_separator(name, windows):
    assert name_parts(name.replace("/", "\\") if windows else name) == tuple(name.split("/"))


def test_one_listed_image_is_not_given_to_two_by_base_name_alone():
    images = listed("z/1.jpg", "z/2.jpg")
    assert images.find("x/1.jpg") == images.find("x/1.jpg") == "1"
    assert images.find("/data/x/1.jpg") == images.find("z/1.jpg") == images.find("1.jpg") == "1"
    with pytest.raises(
        InputError, match=r"lists one image z/1.jpg that x/1.jpg and y/1.jpg may be; give it their fold"
    ):
        images.find("y/1.jpg")
    assert images.find("y/2.jpg") == "2"
