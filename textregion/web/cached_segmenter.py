"""Images and questions of the page's users, without any gradio: encode each image once, answer from its tokens."""

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from cachetools import LRUCache, cachedmethod
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from textregion.errors import InputError, at_least
from textregion.images import load_image
from textregion.labeling import GroundingResult
from textregion.labels import LabelPrompts, merge_labels, region_scores, split_labels
from textregion.outputs.annotations import is_labelled, no_region_note
from textregion.types import RegionTokens, Segmentation

MEGABYTE = 2**20
GlobalPatches = tuple[Float32[np.ndarray, "Ph Pw"], Bool[np.ndarray, "Ph Pw"]]  # scores, which were removed
SHOWN_SIDES = (768, 1280)  # the long side of a picture on the page; smaller images are enlarged, larger ones shrunk
ANSWER_BYTES = 128 * MEGABYTE  # of answers kept, so that sliders and switches only draw again


@dataclass(frozen=True)
class Limits:
    """Bounds on what the page's users send and on what is kept for them.

    max_pixels: pixels of an image. max_bytes: bytes of an image file. max_labels: labels of one question.
    max_characters: length of one label or sentence. cache_bytes: memory of the encoded images that are kept.
    queue_size: requests that wait while one is answered; further ones are told so. disk_bytes: of all files that are
    kept, sent or made; session_bytes: of one session's uploads. Of both those used longest ago are deleted to make room
    for new ones.
    """

    max_pixels: int = 24_000_000
    max_bytes: int = 20 * MEGABYTE
    max_labels: int = 50
    max_characters: int = 200
    cache_bytes: int = 1024 * MEGABYTE
    queue_size: int = 40
    disk_bytes: int = 512 * MEGABYTE
    session_bytes: int = 128 * MEGABYTE

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            at_least(name, value)
        if self.disk_bytes < (needed := self.made_bytes + 2 * (self.max_bytes + MEGABYTE)):
            told = f"got {self.disk_bytes / MEGABYTE:g} MB of disk (--disk_megabytes)"
            least = f"expected at least {-(-needed // MEGABYTE)}"
            raise InputError(f"{told}, {least} for images of {self.max_pixels} pixels; raise it, or lower --max_pixels")

    @property
    def made_bytes(self) -> int:
        """Of the files that are made for one answer, at most: a PNG of all pixels, or all masks as JSON."""
        return 4 * self.max_pixels + MEGABYTE


@dataclass(frozen=True)
class EncodedImage:
    """An image after encoding: its tokens and how the page shows it.

    key: SHA-256 of the file. size: (H, W) of the image. shown: the picture at the size of the page.
    """

    key: str
    size: tuple[int, int]
    shown: UInt8[np.ndarray, "h w 3"]
    regions: RegionTokens

    def region_mask(self, region: int, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        """Where one region lies, at a size (h, w)."""
        return self.regions.masks.select(torch.tensor([region])).binary(size)[0].cpu().numpy()


@dataclass(frozen=True)
class Question:
    """What a user asks of an image: labels for every pixel, or with `sentence` the one region it refers to.

    text: labels separated by commas, or the sentence. threshold: 0..1, less certain pixels get the first label.
    """

    text: str
    sentence: bool = False
    threshold: float = 0.0

    @property
    def labels(self) -> tuple[tuple[str, ...], list[str]]:
        """The labels, and the names of those that came more than once, as the programs read them (`merge_labels`)."""
        if not self.text.strip(" ,;\n\t"):
            return (), []
        return merge_labels(split_labels(self.text))

    def names(self, limits: Limits) -> tuple[str, ...]:
        """The labels without blanks and repetitions, or the one sentence. InputError: none, too many or too long."""
        if self.sentence:
            names, example = (" ".join(self.text.split()),), "what to look for: the red star"
        else:
            names = self.labels[0]
            example = "one or more labels, separated by commas: dog, sofa, floor"
        if not any(names):
            raise InputError(f"type {example}")
        if len(names) > limits.max_labels:
            raise InputError(f"got {len(names)} labels, more than the limit of {limits.max_labels}; leave some out")
        for name in names:
            if len(name) > (most := limits.max_characters):
                raise InputError(f"got {len(name)} characters in {name[:30]!r}…, more than the limit of {most}")
        return names


@dataclass(frozen=True)
class Answer:
    """What the tokens say to a question.

    names: L labels, or the sentence alone. words: what was asked of the model.
    result: at the size asked for; its `region_map` tells what a click hits.
    cosine, probability: of every label for every region. grounding: the region the sentence refers to.
    note: what the page and its files say of the answer, such as that no region was found. labelled: whether any
    pixel has a label that means anything.
    """

    names: tuple[str, ...]
    words: tuple[str, ...]
    result: Segmentation
    cosine: Float32[np.ndarray, "R L"]
    probability: Float32[np.ndarray, "R L"]
    grounding: GroundingResult | None = None
    note: str = ""
    labelled: bool = True

    def region_at(self, point: tuple[float, float]) -> int | None:
        """The region behind a point, given as shares (x, y) of width and height in [0, 1]; None where none lies."""
        height, width = self.result.region_map.shape
        x, y = (min(int(share * side), side - 1) for share, side in zip(point, (width, height), strict=True))
        region = int(self.result.region_map[y, x])
        return None if region < 0 else region


class CachedSegmenter:
    """One model and the images of all users. What is kept is found by the content of an image's file alone.

    segmenter: a TextRegionSegmenter. preset: its name, for the page and the files. caution: what page and files say of
    every answer; nothing mostly. encodings: images encoded so far.
    """

    def __init__(self, segmenter: Any, preset: str, limits: Limits, caution: str = "") -> None:
        self.segmenter, self.preset, self.limits, self.caution = segmenter, preset, limits, caution
        self.encodings = 0
        self._images, self._answers = bounded_cache(self.limits.cache_bytes), bounded_cache(ANSWER_BYTES)
        self._condition = threading.Condition()

    def open(self, path: str | Path) -> EncodedImage:
        """An uploaded image, encoded unless the same file was before. InputError: unreadable or above the limits."""
        data = read_upload(path, self.limits.max_bytes)
        return self._encode(hashlib.sha256(data).hexdigest(), data)

    @cachedmethod(attrgetter("_images"), lambda self, key, data: key, condition=attrgetter("_condition"))
    def _encode(self, key: str, data: bytes) -> EncodedImage:
        pixels = decode(data, self.limits.max_pixels)
        height, width = pixels.shape[:2]
        regions = self.segmenter.encode_image(pixels)
        self.encodings += 1
        print(f"encoded image {self.encodings}: {width} x {height} pixels, {len(regions)} regions", flush=True)
        return EncodedImage(key, (height, width), resize(pixels, shown_size((height, width))), regions)

    def pixels(self, path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
        """An uploaded image in its own resolution."""
        return decode(read_upload(path, self.limits.max_bytes), self.limits.max_pixels)

    @cachedmethod(
        attrgetter("_answers"), lambda self, image, question: (image.key, question), condition=attrgetter("_condition")
    )
    def ask(self, image: EncodedImage, question: Question) -> Answer:
        """The answer at the size of the page; never encodes the image again. InputError: no or bad words."""
        return self.answer(image, question, image.shown.shape[:2])

    def answer(self, image: EncodedImage, question: Question, size: tuple[int, int]) -> Answer:
        """The answer at a size (H, W) in pixels."""
        names, words = question.names(self.limits), self.words(question)
        result = self.segmenter.segment(image.regions, words, question.threshold, output_size=size)
        cosine, probability = region_scores(image.regions, self.embed(words), words)
        grounding = self.segmenter.refer(image.regions, words[0]) if question.sentence else None
        shown = names if question.sentence else result.labels
        nothing = no_region_note(result, image.regions)
        note, labelled = "; ".join(filter(None, [nothing, self.caution])), is_labelled(result, image.regions)
        return Answer(shown, words, result, cosine, probability, grounding, note, labelled)

    def words(self, question: Question) -> tuple[str, ...]:
        """What the model is asked: the labels, or the sentence. InputError: no or bad words."""
        names = question.names(self.limits)
        if question.sentence:
            return (names[0].lower().replace(";", ","),)  # lower case as `refer` reads it; ";" would part synonyms
        return names

    def embed_new(self, question: Question) -> Iterator[tuple[int, int, float]]:
        """Encode the words that are new, one after the other: (how many are done, of how many, seconds so far)."""
        queries = dict.fromkeys(LabelPrompts.parse(self.words(question)).queries)
        new = [query for query in queries if query not in self.segmenter.remembered_labels]
        start = time.perf_counter()
        for done, query in enumerate(new, start=1):
            self.segmenter.encode_text([query])
            yield done, len(new), time.perf_counter() - start

    def embed(self, words: Sequence[str]) -> Float[Tensor, "Q D"]:
        """Text embeddings of the words' queries, as `region_scores` wants them."""
        return self.segmenter.encode_text(LabelPrompts.parse(words).queries)

    def global_patches(self, image: EncodedImage) -> GlobalPatches | None:
        """The global patches of an image (method 6); None where their removal is off."""
        scores, threshold = image.regions.patch_scores, self.segmenter.config.global_patch_threshold
        if scores is None or threshold is None:
            return None
        scores = scores.cpu().numpy()
        return scores, scores < threshold


def bounded_cache(max_bytes: int) -> LRUCache:
    """Results, those used longest ago dropped first; one of more than `max_bytes` is kept alone."""
    return LRUCache(max_bytes, getsizeof=lambda result: min(array_bytes(result), max_bytes))


def array_bytes(value: Any) -> int:
    """Bytes of an array or tensor, or of all of them in a dataclass and in the dataclasses it holds."""
    if is_dataclass(value):
        return sum(array_bytes(part) for part in vars(value).values())
    return value.nbytes if isinstance(value, (np.ndarray, Tensor)) else 0


def read_upload(path: str | Path, max_bytes: int) -> bytes:
    """The bytes of an uploaded file. InputError when it is gone, empty or too large; its path is never named."""
    try:
        size = Path(path).stat().st_size
        if size > max_bytes:
            raise InputError(f"this file has {size / MEGABYTE:.1f} MB, more than the limit of {max_bytes / MEGABYTE:g}")
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError("this image is no longer kept here; upload it again") from error
    if not data:
        raise InputError("this file is empty; choose a PNG, JPEG or WebP image")
    return data


def decode(data: bytes, max_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of an image file. InputError that speaks of "this file"."""
    try:
        return load_image(data, max_pixels)
    except InputError as error:
        raise InputError(str(error).replace("the given bytes", "this file")) from error


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the picture on the page for an image of (H, W): its long side held within SHOWN_SIDES."""
    long = max(size)
    factor = min(max(long, SHOWN_SIDES[0]), SHOWN_SIDES[1]) / long
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def resize(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The image at another size (h, w)."""
    smaller = size[0] < pixels.shape[0]
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
