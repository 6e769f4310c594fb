"""Images are encoded once, kept within bounds and never mixed; answers are what the API says."""

import numpy as np
import pytest
import torch
from PIL import Image

from textregion.errors import InputError
from textregion.labels import region_scores
from textregion.web.cached_segmenter import (
    CachedSegmenter,
    Limits,
    Question,
    array_bytes,
    bounded_cache,
    resize,
    shown_size,
)

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
def counting(model, scene_file):
    """A segmenter that encodes without effort."""
    return CountingSegmenter(model.segmenter, model.open(scene_file).regions)


def test_other_words_and_thresholds_never_encode_again(counting, scene_file, tmp_path):
    model = CachedSegmenter(counting, "tiny", Limits())
    image = model.open(scene_file)
    for question in (Question("sand, brick"), Question("sand", threshold=0.5), Question("The ring", sentence=True)):
        model.ask(image, question)
        model.answer(image, question, image.size)
    copy = tmp_path / "another name.png"
    copy.write_bytes(scene_file.read_bytes())
    assert model.open(copy) is image
    assert (counting.encoded, model.encodings) == ([(256, 256)], 1)


def test_answers_are_the_apis(model, scene_file):
    image = model.open(scene_file)
    answer = model.answer(image, Question(", ".join(LABELS), threshold=0.4), image.size)
    tokens = model.segmenter.encode_image(scene_file)
    expected = model.segmenter.segment(tokens, LABELS, 0.4)
    assert answer.names == tuple(LABELS)
    assert (answer.result.label_map == expected.label_map).all()
    cosine, probability = region_scores(tokens, model.segmenter.encode_text(LABELS), LABELS)
    np.testing.assert_allclose(answer.cosine, cosine, atol=1e-6)
    np.testing.assert_allclose(answer.probability, probability, atol=1e-6)


def test_a_sentence_is_read_as_refer_reads_it(model, scene_file):
    image = model.open(scene_file)
    answer = model.ask(image, Question("  The Black\nRING ", sentence=True))
    expected = model.segmenter.refer(image.regions, "The Black RING")
    assert answer.names == ("The Black RING",)
    assert (answer.grounding.region, answer.grounding.box) == (expected.region, expected.box)
    assert answer.cosine.shape == (len(image.regions), 1)
    assert answer.cosine[expected.region, 0] == pytest.approx(expected.score, abs=1e-6)


def test_a_click_finds_the_region_behind_the_pixel(model, scene_file):
    image = model.open(scene_file)
    answer = model.ask(image, Question(", ".join(LABELS)))
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
    (size,) = {array_bytes(CachedSegmenter(counting, "tiny", Limits()).open(path)) for path in paths}
    assert size > 768 * 768 * 3 + counting.regions.masks.soft.nbytes
    model = CachedSegmenter(counting, "tiny", Limits(cache_bytes=2 * size))
    for path in (paths[0], paths[1], paths[0], paths[2], paths[0]):
        model.open(path)
    assert (model.encodings, model._images.currsize) == (3, 2 * size)
    model.open(paths[1])
    assert model.encodings == 4
    small = CachedSegmenter(counting, "tiny", Limits(cache_bytes=1))
    assert small.open(paths[0]) is small.open(paths[0])


def test_images_of_one_name_are_told_apart(counting, tmp_path, png):
    model, path = CachedSegmenter(counting, "tiny", Limits()), tmp_path / "image.png"
    path.write_bytes(png(11, 96, 64))
    first = model.open(path)
    path.write_bytes(png(20, 64, 96))
    second = model.open(path)
    assert (first.size, second.size) == ((64, 96), (96, 64))
    assert model.ask(first, Question("sand")).result.label_map.shape == first.shown.shape[:2]
    assert model.ask(second, Question("sand")).result.label_map.shape == second.shown.shape[:2]


def test_files_that_cannot_be_used_name_no_path(counting, tmp_path):
    model, path = CachedSegmenter(counting, "tiny", Limits()), tmp_path / "secret name.png"
    with pytest.raises(InputError, match="no longer kept"):
        model.open(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="this file is empty"):
        model.open(path)
    path.write_bytes(b"text")
    with pytest.raises(InputError, match="this file is not an image") as error:
        model.open(path)
    assert "secret" not in str(error.value)
    Image.new("1", (5000, 4801)).save(path)
    with pytest.raises(InputError, match="more than the limit of 24 million"):
        model.open(path)
    path.write_bytes(b"x" * 20_971_521)
    with pytest.raises(InputError, match=r"has 20\.0 MB, more than the limit of 20"):
        model.open(path)
    assert model.encodings == 0


@pytest.mark.parametrize(
    ("size", "shown"),
    [((256, 256), (768, 768)), ((1, 5000), (1, 1280)), ((853, 1024), (853, 1024)), ((7, 5), (768, 549))],
)
def test_pictures_fit_the_page(size, shown):
    assert shown_size(size) == shown
    assert resize(np.zeros((*size, 3), np.uint8), shown).shape == (*shown, 3)


def test_a_region_is_shown_where_it_is(model, scene_file):
    image = model.open(scene_file)
    mask = image.region_mask(0, (256, 256))
    assert (mask == image.regions.masks.select(torch.tensor([0])).binary()[0].numpy()).all()


def test_the_cache_drops_what_was_used_longest_ago():
    cache = bounded_cache(10)
    for name, size in (("a", 4), ("b", 4), ("a", 4), ("c", 4), ("d", 2)):
        if name not in cache:
            cache[name] = np.zeros(size, np.uint8)
        assert cache[name].nbytes == size
    assert (set(cache), cache.currsize) == ({"a", "c", "d"}, 10)
    cache["too large"] = np.zeros(99, np.uint8)
    assert (set(cache), cache["too large"].nbytes) == ({"too large"}, 99)
    cache["e"] = np.zeros(1, np.uint8)
    assert (set(cache), cache.currsize) == ({"e"}, 1)


def test_what_failed_is_not_kept(counting, tmp_path, scene_file):
    model, path = CachedSegmenter(counting, "tiny", Limits()), tmp_path / "image.png"
    path.write_bytes(scene_file.read_bytes()[:20_000])
    for _ in range(2):
        with pytest.raises(InputError, match="this file is damaged"):
            model.open(path)
    image = model.open(scene_file)
    for _ in range(2):
        with pytest.raises(InputError, match="type one or more labels"):
            model.ask(image, Question(" "))
    assert model.ask(image, Question("sand")) is model.ask(image, Question("sand"))


def test_an_answer_counts_its_arrays(model, scene_file):
    answer = model.ask(model.open(scene_file), Question("sand, brick"))
    assert array_bytes(answer) == 768 * 768 * (8 + 4 + 8) + 2 * answer.cosine.nbytes
