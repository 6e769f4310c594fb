"""Finding things: drawn scenes whose truth is known, and what every way of asking does."""

import json
from pathlib import Path

import numpy as np
import pytest
from index_worlds import write_scenes
from PIL import Image

from textregion.cli.main import main
from textregion.errors import InputError
from textregion.index import RegionIndex
from textregion.index.absent import floor
from textregion.index.search import Effort, Query, candidates, grouped, make_query, split_words
from textregion.index.sources import Opener
from textregion.tiny.scenes import Scene, draw_scene
from utils.tiny.search import precision, region_at

SEEDS = (*range(24), *(29, 36, 74, 133, 191, 196))
LEAST = {  # share of right ones among the first 10 (or as many images as have it), each a little below what it is
    **{"red star": 0.15, "red shape": 0.9, "sky": 0.75, "brick": 0.9, "water": 0.8, "wood": 0.9, "snow": 0.8},
    **{"blue shape": 0.85, "green shape": 0.8, "orange shape": 0.9},
}


@pytest.fixture(scope="session")
def scenes() -> dict[str, Scene]:
    return {f"{seed}.png": draw_scene(seed) for seed in SEEDS}


@pytest.fixture(scope="session")
def drawn(tmp_path_factory, scenes) -> Path:
    """photos/ and table.lance, of the tiny models as they are but for fewer clicks. Only read."""
    place = tmp_path_factory.mktemp("drawn")
    (place / "photos").mkdir()
    for name, scene in scenes.items():
        Image.fromarray(scene.image).save(place / "photos" / name)
    RegionIndex.create(place / "table.lance", "tiny", points_per_side=6, device="cpu").add(place / "photos")
    return place


@pytest.fixture(scope="session")
def index(drawn) -> RegionIndex:
    return RegionIndex.open(drawn / "table.lance", device="cpu")


@pytest.mark.parametrize("words", LEAST)
def test_what_is_asked_for_is_found(index, scenes, words):
    share, having = precision(index, scenes, words)
    assert having >= 4
    assert share >= LEAST[words]


def test_the_tiny_models_hardly_know_shapes_but_red_stars_are_red(index, scenes):
    hits = index.search("red star", top=10, per_image=1)
    found = [region_at(scenes[Path(hit.image).name], hit.mask).class_name for hit in hits]
    assert found.count("red shape") >= 8


def test_scores_are_cosines_best_first_and_equal_the_obvious_form(index):
    words = ["red shape", "sky"]
    text = index.segmenter(words_only=True).encode_text(words).numpy()
    rows = index.tables.regions.to_arrow().to_pylist()
    tokens = np.array([row["token"] for row in rows], np.float32)
    scores = (tokens @ text.T).max(1)
    hits = index.search("red shape; sky", top=20)
    assert np.allclose([hit.score for hit in hits], np.sort(scores)[::-1][:20], atol=1e-6)
    named = {(row["image"], row["region"]): score for row, score in zip(rows, scores, strict=True)}
    assert np.allclose([named[hit.image, hit.region] for hit in hits], [hit.score for hit in hits], atol=1e-6)
    without = index.search(["red shape", "sky"], top=20, without="snow; stone")
    unwanted = index.segmenter(words_only=True).encode_text(["snow", "stone"]).numpy()
    margins = scores - (tokens @ unwanted.T).max(1)
    assert np.allclose([hit.score for hit in without], np.sort(margins)[::-1][:20], atol=1e-6)


def test_candidates_of_one_wanted_and_one_unwanted_vector_are_in_the_order_of_the_margin(index):
    query = make_query(index, "sky", None, None, "water")
    rows, more_there = candidates(index, query, 30, None, Effort())
    assert more_there
    tokens = np.array(index.tables.regions.to_arrow()["token"].to_pylist(), np.float32)
    margins = np.sort(tokens @ (query.wanted[0] - query.unwanted[0]))[::-1][:30]
    assert np.allclose([row["score"] for row in rows], margins, atol=1e-5)


def test_filters_and_groups(index):
    large = index.search("sky", top=30, where="area > 0.3")
    assert large
    assert all(hit.area > 0.3 for hit in large)
    single = index.search("sky", top=len(SEEDS), per_image=1)
    assert len({hit.image for hit in single}) == len(single) == len(SEEDS)
    one = index.search("sky", top=5, where="image like '%/3.png'")
    assert {Path(hit.image).name for hit in one} == {"3.png"}
    assert index.search("sky", where="area > 2") == []
    assert grouped([{"image": "a"}, {"image": "a"}, {"image": "b"}], 2, 1) == [{"image": "a"}, {"image": "b"}]


def test_regions_like_one_of_an_image(index, drawn, scenes):
    hit = index.search("sky", top=1)[0]
    again = index.search(like=hit.image, box=hit.box, top=1)[0]
    assert (again.image, again.score > 0.9) == (hit.image, True)
    whole = index.search(like=Image.fromarray(scenes["3.png"].image), top=3)
    assert len(whole) == 3
    with pytest.raises(InputError, match="outside the image"):
        index.search(like=hit.image, box=(0, 0, 999, 10))


def test_a_floor_tells_what_is_there_from_what_is_not(index, scenes):
    there = index.search("blue shape", top=3, absent=True)
    assert [hit.absent for hit in there] == [False] * 3
    low = floor(index, ["submarine"], make_query(index, "submarine", None, None, ()))
    assert -1 < low < there[0].score
    assert all(hit.absent == (hit.score < low) for hit in index.search("submarine", top=5, absent=True))


def test_crops_score_again(index, drawn, tmp_path):
    plain, again = index.search("snow", top=5), index.search("snow", top=5, rerank=True)
    named = {(hit.image, hit.region): hit.score for hit in index.search("snow", top=100)}
    assert again == sorted(again, key=lambda hit: -hit.score)
    assert all(np.isclose(hit.score, (named[hit.image, hit.region] + hit.crop_score) / 2, atol=1e-5) for hit in again)
    assert {hit.crop_score is None for hit in plain} == {True}
    with pytest.raises(InputError, match="reranking looks at the images, and no file"):
        index.search("snow", rerank=True, image_root=tmp_path)


def test_query_scores_by_hand():
    query = Query(np.float32([[1, 0], [0, 1]]), np.float32([[0.6, 0.8]]))
    tokens = np.float32([[1, 0], [0.6, 0.8]])
    assert np.allclose(query.scores(tokens), [1 - 0.6, 0.8 - 1])
    assert np.allclose(Query(query.wanted, np.zeros((0, 2), np.float32)).scores(tokens), [1, 0.8])
    assert np.allclose(np.linalg.norm(query.directions(), axis=1), 1)


def test_words_are_split_as_labels_are():
    assert split_words("dog;  puppy") == ["dog", "puppy"]
    assert split_words(["a red, round mug", "dog; dog"]) == ["a red, round mug", "dog"]
    assert split_words(()) == split_words("") == []
    with pytest.raises(InputError, match="expected a word or phrase"):
        split_words(" ; ")


def test_the_program_prints_and_writes_hits(drawn, index, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["search", str(drawn / "table.lance"), "sky", "--top", "7", "--not", "water", "--absent"]
    assert main([*words, "--rerank", "crops", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    content = json.loads((output / "hits.json").read_text())
    assert content["asked"]["words"] == ["sky"]
    assert [hit["rank"] for hit in content["hits"]] == list(range(1, 8))
    first = content["hits"][0]
    assert f"{first['score']:.4f}" in printed
    assert set(first) >= {"score", "image", "region", "box", "area", "mask", "crop_score", "absent", "image_size"}
    with Image.open(output / "hits.png") as sheet:
        assert sheet.width > 1000


def test_pictures_that_are_gone_are_said(quick, tmp_path, capsys):
    moved = write_scenes(tmp_path / "moved", range(3))
    words = ["search", str(quick), "sky", "--per_image", "1", "--output", str(tmp_path / "out")]
    assert main([*words, "--image_root", str(moved)]) == 1
    assert capsys.readouterr().err.count("no picture: no file") == 3
    assert len(json.loads((tmp_path / "out" / "hits.json").read_text())["hits"]) == 6


def test_an_opener_of_a_table(index, drawn):
    opener = index.opener()
    assert isinstance(opener, Opener)
    assert opener.roots == [str(drawn / "photos")]
