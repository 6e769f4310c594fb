"""SAM's box tokens kept on disk: one safetensors file per image, made once before training.

SAM is frozen, so its tokens are computed once instead of in every step (RegionSpot 2.4). CLIP's maps can be kept
too; without augmentation they never change either. A file says what it was made from; what is damaged or was made from
something else is made again, so an interrupted or outdated cache completes itself.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from tqdm import tqdm

from textregion.errors import InputError
from textregion.images import load_image
from textregion.regionspot.model import RegionSpot
from textregion.storage import complete, load_tensors, save_tensors
from utils.regionspot.data import BoxDataset, BoxImage

KIND = "RegionSpotTokens"
PROMPT = "box, single mask"  # the one way of prompting; another one would need another word here
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedImage:
    """What training needs of one image. tokens: (n, T). labels: (n,). clip_map: (L, D) float16, or None if not kept."""

    tokens: Float32[Tensor, "n T"]
    labels: Int64[Tensor, " n"]
    clip_map: Float[Tensor, "L D"] | None


class TokenCache:
    """The files of one data set.

    folder: of all data sets' caches. model: its SAM makes the tokens, its CLIP the maps; the head is not used.
    keep_maps: keep CLIP's maps too (float16: 0.3 MB an image for ViT-B/16, 1.2 MB for ViT-L/14 at 336).
    """

    def __init__(self, folder: str | Path, dataset: BoxDataset, model: RegionSpot, keep_maps: bool = False) -> None:
        self.folder = Path(folder) / dataset.name
        self.dataset = dataset
        self.model = model
        self.keep_maps = keep_maps

    def path(self, image: BoxImage) -> Path:
        """The file of an image; spread over 256 folders, as there may be millions."""
        digest = hashlib.sha256(str(image.id).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[:32]}.safetensors"

    def read(self, image: BoxImage) -> CachedImage:
        """What `fill` wrote. InputError when it is not there or damaged."""
        tensors, _ = load_tensors(self.path(image), KIND)
        with complete(self.path(image), KIND):
            clip_map = tensors["clip_map"] if self.keep_maps else None
            return CachedImage(tensors["tokens"], torch.from_numpy(image.labels), clip_map)

    def fill(self, images: Sequence[BoxImage], quiet: bool = False) -> Counter[str]:
        """Make what is not there yet, image by image, and tell {"made", "kept", "unusable": how many}.

        Images that are missing, unreadable or smaller than the file says are told in the log and left out; `usable`
        gives the others. InputError when the folder cannot be written.
        """
        counts: Counter[str] = Counter()
        for image in tqdm(images, f"tokens of {self.dataset.name}", unit="image", disable=True if quiet else None):
            counts[self._ensure(image)] += 1
        return counts

    def _ensure(self, image: BoxImage) -> str:
        """Make one image's file unless it is there: "made", "kept" or "unusable"."""
        try:
            source = self.dataset.path(image)
            if self._is_current(image, source):
                return "kept"
            tensors, meta = self._compute(image, source)
        except (InputError, OSError) as error:
            logger.warning("%s: image %s is left out: %s", self.dataset.name, image.id, error)
            self.path(image).unlink(missing_ok=True)  # an older one would be taken for good
            return "unusable"
        try:
            save_tensors(self.path(image), tensors, meta)
        except OSError as error:
            raise InputError(f"cannot write the token cache {self.folder} ({error}); free space") from error
        return "made"

    def usable(self) -> list[BoxImage]:
        """The images that have a file. InputError when none has."""
        found = [image for image in self.dataset.images if self.path(image).is_file()]
        if not found:
            raise InputError(f"{self.dataset.name}: none of its {len(self.dataset)} images could be used; see the log")
        return found

    def _models(self) -> dict[str, str | int | bool]:
        """What made the tensors."""
        model = self.model
        clip = {"clip": model.backbone.name, "side": model.side, "antialias": model.antialias}
        return {"sam": model.box_tokens.name, "prompt": PROMPT, **(clip if self.keep_maps else {})}

    def _is_current(self, image: BoxImage, source: Path) -> bool:
        """Whether the file was made from this image, these boxes and these models.

        The image is hashed only when its size or time of change is another than it was.
        """
        if not self.path(image).is_file():
            return False
        try:
            tensors, meta = load_tensors(self.path(image), KIND)
            with complete(self.path(image), KIND):
                same = np.array_equal(tensors["boxes"], image.boxes)
                same = same and np.array_equal(tensors["category_ids"], image.category_ids)
                made_by = meta["models"]
                stamp, digest = meta["stamp"], meta["source"]
                whole = {"tokens", "clip_map"} <= tensors.keys() if self.keep_maps else "tokens" in tensors
        except InputError as error:
            logger.warning("%s; made again", error)
            return False
        if not (whole and same and self._models().items() <= made_by.items()):
            return False
        return stamp == _stamp(source) or digest == _digest(source)

    def _compute(self, image: BoxImage, source: Path) -> tuple[dict[str, Tensor], dict]:
        """Content of one file and what it says of itself. InputError: unreadable image, boxes outside it."""
        meta = {"kind": KIND, "source": _digest(source), "stamp": _stamp(source), "models": self._models()}
        pixels = load_image(source)
        found, _ = self.model.box_tokens.encode(pixels, image.boxes)
        tensors = {"boxes": torch.from_numpy(image.boxes), "category_ids": torch.from_numpy(image.category_ids)}
        tensors["tokens"] = found.tokens.float()
        if self.keep_maps:
            tensors["clip_map"] = self.model.clip_map(pixels).half()
        return tensors, meta


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
