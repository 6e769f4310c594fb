"""Masks kept on disk, so that the second backbone on a benchmark does not run SAM 2, or another source, again.

One file per image: the masks as they are stored, as far as they decide anything, losslessly compressed, with everything
they depend on in the name: the image's pixels, the model's weights, the generator's options, sizes and arithmetic.
"""

import hashlib
import json
import logging
import zlib
from dataclasses import replace
from os.path import isfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from textregion.devices import dtype_name
from textregion.errors import InputError
from textregion.masks.base import MaskGenerator, describe_source
from textregion.storage import load_tensors, save_tensors
from textregion.types import LOGIT_CUT, MAX_SOFT_VALUE, RegionMasks

KIND = "CachedMasks"
FORMAT = 3
LEVEL = 6
SMALL = ("group", "boxes", "predicted_iou", "stability")
RgbImage = UInt8[np.ndarray, "h w 3"]
Size = tuple[int, int] | None
logger = logging.getLogger(__name__)


class CachedMasks:
    """A mask generator that remembers.

    generator: what makes masks that are not there yet. folder: where they are kept; may be shared by any number
    of processes and benchmarks. A damaged or foreign file is made again; where a file cannot be written (a full disk, a
    network drive that went away) masks are used without being kept, which is told once.
    """

    def __init__(self, generator: MaskGenerator, folder: str | Path) -> None:
        self.generator = generator
        self.folder = Path(folder)
        self.hits = 0
        self.misses = 0
        self.unkept = 0  # that could not be written
        self._identity: str | None = None

    def to(self, device: torch.device | str) -> "CachedMasks":
        """Move the generator; returns self."""
        self.generator.to(device)
        self._identity = None
        return self

    def generate(self, image: RgbImage, image_size: Size = None, mask_size: Size = None) -> RegionMasks:
        """As MaskGenerator.generate; all that is made of the masks equals, bit by bit, what the wrapped generator's
        give (see `decisive`).
        """
        key = self.key(image, image_size, mask_size)
        path = self.folder / key[:2] / f"{key}.safetensors"
        if isfile(path):
            try:
                masks = load_masks(path, key)
            except (InputError, OSError) as error:
                logger.warning("mask cache: %s; made again", error)
            else:
                self.hits += 1
                return masks.to(getattr(self.generator, "device", "cpu"))
        self.misses += 1
        masks = decisive(self.generator.generate(image, image_size=image_size, mask_size=mask_size))
        try:
            save_masks(path, masks, key)
        except OSError as error:  # no reason to skip an image, whose masks are there
            if not self.unkept:
                logger.warning("mask cache: cannot write %s (%s); masks are made without it", path, error)
            self.unkept += 1
        return masks

    def key(self, image: RgbImage, image_size: Size, mask_size: Size) -> str:
        """Hash of all that the masks depend on."""
        if self._identity is None:
            self._identity = generator_identity(self.generator)
        sizes = [list(image.shape), list(image_size or ()), list(mask_size or ())]
        digest = hashlib.sha256(json.dumps([FORMAT, self._identity, sizes]).encode())
        digest.update(np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()


def decisive(masks: RegionMasks) -> RegionMasks:
    """The same masks, with one value for all logits that decide nothing, so that files stay small.

    A pixel resized from four logits is positive only if one of them is. So where a logit and its eight neighbours are
    not positive it may be any negative number, and where all nine are, what is above 3 may be 3 (method 9.6, 9.11).
    """
    if masks.cut != LOGIT_CUT or not masks.soft.is_floating_point() or len(masks) == 0:
        return masks
    on = (masks.soft > LOGIT_CUT).float()[:, None]
    near, surrounded = ((F.max_pool2d(sign * on, 3, 1, 1)[:, 0] == sign) for sign in (1, -1))
    soft = masks.soft.where(near, -1.0)
    return replace(masks, soft=soft.where(~surrounded, soft.clamp(max=MAX_SOFT_VALUE)))


def save_masks(path: Path, masks: RegionMasks, key: str) -> None:
    """Write masks compressed, in one step. OSError passes through."""
    soft = masks.soft.detach().cpu().contiguous()
    planes = soft.view(torch.uint8).numpy().reshape(-1, soft.element_size()).T  # all first bytes, all second bytes, …:
    packed = zlib.compress(np.ascontiguousarray(planes).tobytes(), LEVEL)  # long runs, which compress well
    small = {name: getattr(masks, name).detach().cpu() for name in SMALL}
    meta = {
        "kind": KIND,
        "key": key,
        "soft": [dtype_name(soft.dtype), list(soft.shape)],
        "checksum": _checksum(soft, *small.values()),
        "image_size": masks.image_size,
        "mask_size": masks.mask_size,
        "hard": masks.hard,
        "cut": masks.cut,
    }
    save_tensors(path, {"soft": torch.from_numpy(np.frombuffer(packed, np.uint8).copy()), **small}, meta)


def load_masks(path: Path, key: str) -> RegionMasks:
    """Read what `save_masks` wrote; InputError when damaged, of another kind, or made for something else."""
    tensors, meta = load_tensors(path, KIND)
    if meta.get("key") != key:
        raise InputError(f"{path} was made for another image or with other options")
    try:
        name, shape = meta["soft"]
        dtype = getattr(torch, name)
        packed = zlib.decompress(tensors["soft"].numpy().tobytes())
        planes = np.frombuffer(packed, np.uint8).reshape(dtype.itemsize, -1)
        soft = torch.from_numpy(planes.T.copy().reshape(-1)).view(dtype).reshape(shape)
        small = {name: tensors[name] for name in SMALL}
        if _checksum(soft, *small.values()) != meta["checksum"]:
            raise ValueError("checksum")
        sizes = {name: tuple(meta[name]) for name in ("image_size", "mask_size")}
        return RegionMasks(soft, **sizes, hard=meta["hard"], cut=meta["cut"], **small)
    except (zlib.error, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error})") from error


def _checksum(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(map(_bytes, tensors))).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    """The stored bytes of a tensor of any dtype (numpy knows no bfloat16)."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def generator_identity(generator: MaskGenerator) -> str:
    """Hash of all that decides a generator's masks (`describe_source`), of its device type and its model's weights."""
    device = torch.device(getattr(generator, "device", "cpu")).type
    described = {"class": type(generator).__name__, "device": device, **describe_source(generator)}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    if (model := getattr(generator, "model", None)) is not None:
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()
