"""The Search tab's answers, without a browser."""

import numpy as np
import pytest
from index_worlds import QUICK, write_scenes

from textregion.errors import InputError
from textregion.index import RegionIndex
from textregion.web.cached_segmenter import Limits
from textregion.web.page import build_page
from textregion.web.search import TableView
from textregion.web.uploads import Uploads


@pytest.fixture
def view(tmp_path) -> TableView:
    index = RegionIndex.create(tmp_path / "t.lance", "tiny", **QUICK)
    index.add(write_scenes(tmp_path / "photos", range(3)))
    return TableView(index, Limits())


def test_hits_are_small_pictures_and_open_their_image(view, tmp_path):
    found = view.search("sky", "", True)
    assert len(found.hits) == len(found.pictures) == 3
    assert all(max(picture.shape) <= 224 for picture, _ in found.pictures)
    assert found.pictures[0][1].startswith(f"{found.hits[0].score:.3f}  ")
    picture, line = view.open(found.hits, 0)
    assert picture.shape == (768, 768, 3)
    assert "64 x 64 pixels" in line
    assert (picture == (255, 214, 10)).all(2).any()
    for number in (3, -1, "0", None):
        with pytest.raises(InputError, match="choose one"):
            view.open(found.hits, number)


def test_words_are_checked_and_images_that_have_changed_are_not_shown(view, tmp_path):
    for words in ("", " ; ", None, 7):
        with pytest.raises(InputError, match="what you look for"):
            view.search(words, "", False)
    with pytest.raises(InputError, match="more than the limit"):
        view.search("x" * 300, "", False)
    write_scenes(tmp_path / "photos", [0], 128)
    found = view.search("sky", "snow", True)
    assert "1 images are gone or have changed" in found.note
    gone = next(n for n, hit in enumerate(found.hits) if hit.image.endswith("/0.png"))
    assert np.unique(found.pictures[gone][0]).tolist() == [225]
    with pytest.raises(InputError, match="has changed since"):
        view.open(found.hits, gone)


def test_the_tab_is_there_with_a_table_only(view, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "True")  # as gradio sets it when it is imported
    from textregion.web.cached_segmenter import CachedSegmenter

    model = CachedSegmenter(view.index.segmenter(), "tiny", Limits())
    uploads = Uploads(tmp_path, Limits())
    assert "search-words" in str(build_page(model, [], uploads, view).config["components"])
    assert "search-words" not in str(build_page(model, [], uploads).config["components"])
