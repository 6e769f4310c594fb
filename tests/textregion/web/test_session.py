"""Images are encoded once, kept within bounds and never mixed; answers are what the API says."""

import numpy as np
import pytest
import torch
from PIL import Image

from textregion.errors import InputError
from textregion.labels import region_scores
from textregion.web.cache import BoundedCache
from textregion.web.limits import Limits
from textregion.web.session import Answer, Question, Workbench, enlarge, region_mask, shown_size

LABELS = ["sand", "brick", "black ring", "white hexagon", "yellow square"]


class CountingSegmenter:
    """Gives every image the tokens of one, and counts how often an image is encoded."""

    def __init__(self, segmenter, regions) -> None:
        self.segmenter, self.regions, self.encoded = segmenter, regions, []

    def __getattr__(self, name: str):
        return getattr(self.segmenter, name)

    def encode_image(self, image):
        self.encoded.append(image.shape[:2])
        return self.regions


@pytest.fixture
def counting(bench, scene_file):
    """A segmenter that encodes without effort."""
    return CountingSegmenter(bench.segmenter, bench.open(scene_file).regions)


def test_other_words_and_thresholds_never_encode_again(counting, scene_file, tmp_path):
    bench = Workbench(counting, "tiny")
    image = bench.open(scene_file)
    for question in (Question("sand, brick"), Question("sand", threshold=0.5), Question("The ring", sentence=True)):
        bench.ask(image, question)
        bench.answer(image, question, image.size)
    copy = tmp_path / "another name.png"
    copy.write_bytes(scene_file.read_bytes())
    assert bench.open(copy) is image
    assert (counting.encoded, bench.encodings) == ([(256, 256)], 1)


def test_answers_are_the_apis(bench, scene_file):
    image = bench.open(scene_file)
    answer = bench.answer(image, Question(", ".join(LABELS), threshold=0.4), image.size)
    tokens = bench.segmenter.encode_image(scene_file)
    expected = bench.segmenter.segment(tokens, LABELS, 0.4)
    assert answer.names == tuple(LABELS)
    assert (answer.result.label_map == expected.label_map).all()
    cosine, probability = region_scores(tokens, bench.segmenter.encode_text(LABELS), LABELS)
    np.testing.assert_allclose(answer.cosine, cosine, atol=1e-6)
    np.testing.assert_allclose(answer.probability, probability, atol=1e-6)


def test_a_sentence_is_read_as_refer_reads_it(bench, scene_file):
    image = bench.open(scene_file)
    answer = bench.ask(image, Question("  The Black\nRING ", sentence=True))
    expected = bench.segmenter.refer(image.regions, "The Black RING")
    assert answer.names == ("The Black RING",)
    assert (answer.grounding.region, answer.grounding.box) == (expected.region, expected.box)
    assert answer.cosine.shape == (len(image.regions), 1)
    assert answer.cosine[expected.region, 0] == pytest.approx(expected.score, abs=1e-6)


def test_a_click_finds_the_region_behind_the_pixel(bench, scene_file):
    image = bench.open(scene_file)
    answer = bench.ask(image, Question(", ".join(LABELS)))
    regions = answer.result.region_map
    for y, x in ((0, 0), (767, 767), (400, 123)):
        expected = None if regions[y, x] < 0 else regions[y, x]
        assert answer.region_at(((x + 0.5) / 768, (y + 0.5) / 768)) == expected
    assert answer.region_at((1.0, 1.0)) == (None if regions[-1, -1] < 0 else regions[-1, -1])


def test_memory_is_bounded_and_the_last_image_is_kept(counting, tmp_path, png):
    paths = []
    for seed in (11, 20, 9):
        paths.append(tmp_path / f"{seed}.png")
        paths[-1].write_bytes(png(seed))
    (size,) = {Workbench(counting, "tiny").open(path).nbytes for path in paths}
    assert size > 768 * 768 * 3 + counting.regions.masks.soft.nbytes
    bench = Workbench(counting, "tiny", Limits(cache_bytes=2 * size))
    for path in (paths[0], paths[1], paths[0], paths[2], paths[0]):
        bench.open(path)
    assert (bench.encodings, bench._images.used) == (3, 2 * size)
    bench.open(paths[1])
    assert bench.encodings == 4
    small = Workbench(counting, "tiny", Limits(cache_bytes=1))
    assert small.open(paths[0]) is small.open(paths[0])


def test_images_of_one_name_are_told_apart(counting, tmp_path, png):
    bench, path = Workbench(counting, "tiny"), tmp_path / "image.png"
    path.write_bytes(png(11, 96, 64))
    first = bench.open(path)
    path.write_bytes(png(20, 64, 96))
    second = bench.open(path)
    assert (first.size, second.size) == ((64, 96), (96, 64))
    assert bench.ask(first, Question("sand")).result.label_map.shape == first.shown.shape[:2]
    assert bench.ask(second, Question("sand")).result.label_map.shape == second.shown.shape[:2]


def test_files_that_cannot_be_used_name_no_path(counting, tmp_path):
    bench, path = Workbench(counting, "tiny"), tmp_path / "secret name.png"
    with pytest.raises(InputError, match="no longer kept"):
        bench.open(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="this file is empty"):
        bench.open(path)
    path.write_bytes(b"text")
    with pytest.raises(InputError, match="this file is not an image") as error:
        bench.open(path)
    assert "secret" not in str(error.value)
    Image.new("1", (5000, 4801)).save(path)
    with pytest.raises(InputError, match="more than the limit of 24 million"):
        bench.open(path)
    path.write_bytes(b"x" * 20_971_521)
    with pytest.raises(InputError, match=r"has 20\.0 MB, more than the limit of 20"):
        bench.open(path)
    assert bench.encodings == 0


@pytest.mark.parametrize(
    "values", [(None, False, 0), ("a", False, -0.1), ("a", False, 2), ("a", False, "0"), (3, 1, True)]
)
def test_questions_that_no_page_sends_are_refused(values):
    with pytest.raises(InputError, match="load the page again"):
        Question.of(*values)


@pytest.mark.parametrize(
    ("size", "shown"),
    [((256, 256), (768, 768)), ((1, 5000), (1, 1280)), ((853, 1024), (853, 1024)), ((7, 5), (768, 549))],
)
def test_pictures_fit_the_page(size, shown):
    assert shown_size(size) == shown
    assert enlarge(np.zeros((*size, 3), np.uint8), shown).shape == (*shown, 3)


def test_a_region_is_shown_where_it_is(bench, scene_file):
    image = bench.open(scene_file)
    mask = region_mask(image.regions.masks, 0, (256, 256))
    assert (mask == image.regions.masks.select(torch.tensor([0])).binary(threshold=0.5)[0].numpy()).all()


def test_the_cache_drops_what_was_used_longest_ago():
    made = []
    cache = BoundedCache(10, len)
    for key in ("aaaa", "bbbb", "aaaa", "cccc", "bbbb"):
        assert cache.get(key, lambda key=key: made.append(key) or key) == key
    assert made == ["aaaa", "bbbb", "cccc", "bbbb"]
    assert (len(cache), cache.used, "aaaa" in cache) == (2, 8, False)
    with pytest.raises(InputError):
        cache.get("bad", lambda: (_ for _ in ()).throw(InputError("no")))
    assert "bad" not in cache
    assert cache.get("x" * 99, lambda: "x" * 99) == "x" * 99
    assert (len(cache), cache.used) == (1, 99)


def test_an_answer_counts_its_arrays(bench, scene_file):
    answer: Answer = bench.ask(bench.open(scene_file), Question("sand, brick"))
    assert answer.nbytes == 768 * 768 * (8 + 4 + 8) + 2 * answer.cosine.nbytes
