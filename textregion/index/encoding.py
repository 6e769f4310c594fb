"""From the path of an image to its regions as columns: what the engines run, in this process or in an actor."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from pycocotools import mask as coco_mask
from torch import Tensor

from textregion.errors import InputError, out_of_memory
from textregion.images import load_image
from textregion.index.schema import TOKEN, UNREADABLE, Encoder, Regions
from textregion.index.sources import content_hash, read_bytes, stamp
from textregion.masks.coco_masks import pixels_covered
from textregion.segmenter import TextRegionSegmenter
from textregion.types import RegionMasks, RegionTokens


@dataclass(frozen=True)
class Wanted:
    """An image to index. known: hash of what the table has of it; its stamp is new, its content may be the same."""

    image: str
    known: str = ""


@dataclass(frozen=True)
class Loaded:
    """An image in memory; pixels are None where it needs no encoding."""

    result: Regions
    pixels: UInt8[np.ndarray, "H W 3"] | None = None


SAME = "same"  # status of an image whose content is what the table has


class RegionWorker:
    """Encodes images with a segmenter. Whatever is wrong with one image is its result, not an error of the run."""

    def __init__(self, segmenter: TextRegionSegmenter) -> None:
        self.segmenter = segmenter

    def load(self, wanted: Wanted) -> Loaded:
        """Read, hash and decode."""
        image, told = wanted.image, {"image": wanted.image, "image_hash": "", "stamp": ""}
        try:
            told["stamp"] = stamp(image)
            data = read_bytes(image)
            told["image_hash"] = content_hash(data)
            if told["image_hash"] == wanted.known:
                return Loaded(Regions(**told, status=SAME))
            pixels = load_image(data)
        except InputError as error:
            reason = str(error).replace("the given bytes", image)
            return Loaded(Regions(**told, status=UNREADABLE, reason=reason))
        height, width = pixels.shape[:2]
        return Loaded(Regions(**told, width=width, height=height), pixels)

    def work(self, loaded: Sequence[Loaded]) -> list[Regions]:
        """Encode those that need it, together; one by one where something is wrong with one of them."""
        results = {n: entry.result for n, entry in enumerate(loaded)}
        pending = {n: entry.pixels for n, entry in enumerate(loaded) if entry.pixels is not None}
        try:
            encoded = dict(zip(pending, self.segmenter.encode_images(list(pending.values())), strict=True))
        except InputError:
            encoded = {}
            for n, pixels in pending.items():
                try:
                    encoded[n] = self.segmenter.encode_image(pixels)
                except InputError as error:
                    if out_of_memory(error):  # says nothing about the image: the run ends, and goes on when run again
                        raise
                    told = {name: getattr(results[n], name) for name in ("image", "image_hash", "stamp")}
                    results[n] = Regions(**told, status=UNREADABLE, reason=str(error))
        for n, tokens in encoded.items():
            results[n].rows.update(region_columns(tokens))
        return [results[n] for n in range(len(loaded))]


def region_columns(tokens: RegionTokens) -> dict[str, Any]:
    """Columns of `regions` but for the image's: arrays (R, …), masks as run-length codes at their own resolution."""
    masks = tokens.masks.to("cpu")
    counts, area = encode_masks(masks)
    height, width = masks.soft.shape[1:]
    return {
        "region": np.arange(len(tokens), dtype=np.int32),
        "box": masks.boxes.float().numpy(),
        "area": area,
        "mask": [{"height": height, "width": width, "counts": code} for code in counts],
        "predicted_iou": masks.predicted_iou.float().numpy(),
        "stability": masks.stability.float().numpy(),
        TOKEN: tokens.tokens.float().cpu().numpy().astype(np.float16),
    }


def encode_masks(masks: RegionMasks) -> tuple[list[bytes], np.ndarray]:
    """(run-length codes, share of the image) of every region at the resolution its parts are stored in."""
    union = stored_masks(masks)
    planes = np.asfortranarray(union.numpy().transpose(1, 2, 0))
    codes = coco_mask.encode(planes) if len(masks) else []
    return [code["counts"] for code in codes], union.float().mean((1, 2)).numpy()


def stored_masks(masks: RegionMasks) -> UInt8[Tensor, "R h w"]:
    """Every region at the resolution its parts are stored in, their union: 1 inside, 0 outside."""
    on = (masks.soft > masks.cut).to(torch.uint8)
    union = on.new_zeros(len(masks), *on.shape[1:])
    return union.scatter_reduce_(0, masks.group.long()[:, None, None].expand(on.shape), on, "amax")


def decode_masks(rows: Sequence[dict]) -> np.ndarray:
    """(R, h, w) bool of rows of the mask column. InputError for codes that do not fit their size."""
    planes = []
    for row in rows:
        height, width = int(row["height"]), int(row["width"])
        if not (0 < height <= 1 << 14 and 0 < width <= 1 << 14):
            raise InputError(f"got a mask of {width} x {height}, expected at most {1 << 14} on a side: a damaged table")
        try:
            covered = pixels_covered(row)
        except ValueError as error:
            raise InputError(f"got a damaged mask ({error}): a damaged table") from error
        if covered != height * width:
            raise InputError("got a damaged mask (its runs do not add up): a damaged table")
        planes.append(coco_mask.decode({"size": [height, width], "counts": row["counts"]}).astype(bool))
    return np.stack(planes) if planes else np.zeros((0, 1, 1), bool)


def segmenter_of(encoder: Encoder, words_only: bool = False, **machine: Any) -> TextRegionSegmenter:
    """The segmenter that an encoder describes. words_only: without its mask source, for text and crops.

    machine: where it runs and where its weights are: device, dtype, clip_checkpoint, …
    """
    options = {**encoder.options, **machine}
    if words_only:
        options = {key: value for key, value in options.items() if key not in ("sam2_checkpoint", "model_cfg")}
        options["mask_generator"] = None
    return TextRegionSegmenter.from_preset(encoder.preset, **options)


def build_worker(encoder: Encoder, **machine: Any) -> RegionWorker:
    """A worker, made where it runs."""
    return RegionWorker(segmenter_of(encoder, **machine))


def worker_builder(encoder: Encoder, **machine: Any) -> partial[RegionWorker]:
    """What an engine is given."""
    return partial(build_worker, encoder, **machine)
