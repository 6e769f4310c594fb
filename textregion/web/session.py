"""Images and questions of the page's users, without any gradio: encode each image once, answer from its tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from textregion.errors import InputError
from textregion.grounding import GroundingResult
from textregion.images import load_image
from textregion.labels import LabelPrompts, region_scores
from textregion.types import RegionMasks, RegionTokens, Segmentation
from textregion.web.cache import BoundedCache
from textregion.web.limits import MEGABYTE, Limits, parse_labels, parse_sentence, read_upload

SHOWN_SIDES = (768, 1280)  # the long side of a picture on the page; smaller images are enlarged, larger ones shrunk
ANSWER_BYTES = 128 * MEGABYTE  # of answers kept, so that sliders and switches only draw again


@dataclass(frozen=True)
class Encoded:
    """An image after encoding: its tokens and how the page shows it.

    key: SHA-256 of the file. size: (H, W) of the image. shown: the picture at the size of the page.
    """

    key: str
    size: tuple[int, int]
    shown: UInt8[np.ndarray, "h w 3"]
    regions: RegionTokens

    @property
    def nbytes(self) -> int:
        """Bytes that keeping it needs."""
        return self.shown.nbytes + _tensor_bytes(self.regions) + _tensor_bytes(self.regions.masks)


@dataclass(frozen=True)
class Question:
    """What a user asks of an image: labels for every pixel, or with `sentence` the one region it refers to.

    text: labels separated by commas, or the sentence. threshold: 0..1, less certain pixels get the first label.
    """

    text: str
    sentence: bool = False
    threshold: float = 0.0

    @classmethod
    def of(cls, text: Any, sentence: Any, threshold: Any) -> "Question":
        """From values as a browser sends them, which may be anything. InputError when they cannot be meant."""
        number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
        if not isinstance(text, str) or not number or not 0 <= threshold <= 1:
            raise InputError("got something else than a text and a threshold from 0 to 1; load the page again")
        return cls(text, bool(sentence), 0.0 if sentence else float(threshold))


@dataclass(frozen=True)
class Answer:
    """What the tokens say to a question.

    names: L labels, or the sentence alone. words: what was asked of the model.
    result: at the size asked for; its `region_map` tells what a click hits.
    cosine, probability: of every label for every region. grounding: the region the sentence refers to.
    """

    names: tuple[str, ...]
    words: tuple[str, ...]
    result: Segmentation
    cosine: Float32[np.ndarray, "R L"]
    probability: Float32[np.ndarray, "R L"]
    grounding: GroundingResult | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that keeping it needs."""
        result = self.result
        maps = result.label_map.nbytes + result.confidence.nbytes + result.region_map.nbytes
        return maps + 2 * self.cosine.nbytes + (0 if self.grounding is None else self.grounding.mask.nbytes)

    def region_at(self, point: tuple[float, float]) -> int | None:
        """The region behind a point, given as shares (x, y) of width and height in [0, 1]; None where none lies."""
        height, width = self.result.region_map.shape
        x, y = (min(int(share * side), side - 1) for share, side in zip(point, (width, height), strict=True))
        region = int(self.result.region_map[y, x])
        return None if region < 0 else region


class Workbench:
    """One model and the images of all users. What is kept is found by the content of an image's file alone.

    segmenter: a TextRegionSegmenter. preset: its name, for the page and the files. encodings: images encoded so far.
    """

    def __init__(self, segmenter: Any, preset: str, limits: Limits | None = None) -> None:
        self.segmenter, self.preset, self.limits = segmenter, preset, limits or Limits()
        self.encodings = 0
        self._images: BoundedCache[Encoded] = BoundedCache(self.limits.cache_bytes, lambda image: image.nbytes)
        self._answers: BoundedCache[Answer] = BoundedCache(ANSWER_BYTES, lambda answer: answer.nbytes)

    def open(self, path: str | Path) -> Encoded:
        """An uploaded image, encoded unless the same file was before. InputError: unreadable or above the limits."""
        data = read_upload(path, self.limits.max_bytes)
        key = hashlib.sha256(data).hexdigest()
        return self._images.get(key, lambda: self._encode(key, data))

    def _encode(self, key: str, data: bytes) -> Encoded:
        pixels = decode(data, self.limits.max_pixels)
        regions = self.segmenter.encode_image(pixels)
        self.encodings += 1
        print(
            f"encoded image {self.encodings}: {pixels.shape[1]} x {pixels.shape[0]} pixels, {len(regions)} regions",
            flush=True,
        )
        return Encoded(key, pixels.shape[:2], enlarge(pixels, shown_size(pixels.shape[:2])), regions)

    def pixels(self, path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
        """An uploaded image in its own resolution."""
        return decode(read_upload(path, self.limits.max_bytes), self.limits.max_pixels)

    def ask(self, image: Encoded, question: Question) -> Answer:
        """The answer at the size of the page; never encodes the image again. InputError: no or bad words."""
        return self._answers.get((image.key, question), lambda: self.answer(image, question, image.shown.shape[:2]))

    def answer(self, image: Encoded, question: Question, size: tuple[int, int]) -> Answer:
        """The answer at a size (H, W) in pixels."""
        if question.sentence:
            names = (parse_sentence(question.text, self.limits),)
            words = (names[0].lower().replace(";", ","),)  # lower case as `refer` reads it; ";" would part synonyms
        else:
            names = words = parse_labels(question.text, self.limits)
        result = self.segmenter.segment(image.regions, words, question.threshold, output_size=size)
        cosine, probability = region_scores(image.regions, self.embed(words), words)
        grounding = self.segmenter.refer(image.regions, words[0]) if question.sentence else None
        return Answer(names if question.sentence else result.labels, words, result, cosine, probability, grounding)

    def embed(self, words: Sequence[str]) -> Float[Tensor, "Q D"]:
        """Text embeddings of the words' queries, as textregion/outputs/annotations.py wants them."""
        return self.segmenter.encode_text(LabelPrompts.parse(words).queries)


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


def enlarge(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The image at another size (h, w)."""
    smaller = size[0] < pixels.shape[0]
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def region_mask(masks: RegionMasks, region: int, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Where one region lies, at a size (h, w)."""
    return masks.select(torch.tensor([region])).binary(size, threshold=0.5)[0].cpu().numpy()


def _tensor_bytes(owner: RegionTokens | RegionMasks) -> int:
    values = (getattr(owner, field.name) for field in fields(owner))
    return sum(value.nbytes for value in values if isinstance(value, Tensor))
