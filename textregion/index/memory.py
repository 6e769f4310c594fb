"""A region memory: regions of unlabelled images whose tokens support those of an image (docs/region-memory.md).

With q the unit key of a region, the K keys of the table nearest to it and s = unit(mean of their tokens), the region's
logits become (1 - alpha) own + alpha (s · T): what many regions that look alike say together is steadier than what one
says. A region's key is its token, or the mean of a vision tower's patch features over it (`index/keys.py`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F

from textregion.devices import resolve_device, to_device
from textregion.errors import InputError
from textregion.images import ImageInput
from textregion.index.absent import ROWS_AT_ONCE
from textregion.index.keys import KeyTower, encode_keys, load_tower
from textregion.index.region_index import RegionIndex
from textregion.index.schema import ALIKE, PROBE, Encoder
from textregion.index.sources import content_hash, read_bytes
from textregion.index.store import lance_errors
from textregion.labels import LabelPrompts
from textregion.neighbours import EXACT_VECTORS, Blocks, exact_search
from textregion.text import TEMPLATE_SETS
from textregion.types import RegionTokens

if TYPE_CHECKING:
    from textregion.segmenter import TextRegionSegmenter

OWN_KEYS = "token"  # the key of a region is its token
FOREIGN = "so the image's own regions could not be left out of the memory"
Rows = Int[Tensor, "R K"]


@dataclass(frozen=True)
class Bank:
    """N regions in memory. keys: (N, C) unit. tokens: (N, D) unit of every image-text model, the first the segmenter's.

    image: (N,) which of `hashes` each region is of, on the host. Half precision, but float32 for fewer than
    EXACT_VECTORS on a CPU, where that is faster.
    """

    keys: Float[Tensor, "N C"]
    tokens: Sequence[Tensor]
    image: Int[Tensor, " N"]
    hashes: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    def rows_of(self, image_hash: str) -> Int[Tensor, " n"] | None:
        """The regions of an image, ascending, on the host; None without any."""
        if image_hash not in self._places:
            return None
        return (self.image == self._places[image_hash]).nonzero()[:, 0]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: n for n, name in enumerate(self.hashes)}


@dataclass
class RegionMemory:
    """A bank, how it is searched, and what keeps an image from supporting itself.

    memory = RegionMemory.open("photos.lance"); segmenter.segment("photo.jpg", labels, memory=memory)

    encoder: what made the first column of tokens; None for a bank of somebody's own. words: a segmenter for the words
    of every further image-text model. tower: what makes the keys; None where they are the tokens. own_rows: also take
    the regions of the image itself, which are left out otherwise, by the hash of its file. blocks: of a large bank on
    a CPU. empty: regions of the table that have no key or no token, which are left out.
    """

    name: str
    bank: Bank
    encoder: Encoder | None = None
    words: Sequence["TextRegionSegmenter"] = ()
    tower: KeyTower | None = None
    own_rows: bool = False
    blocks: Blocks | None = None
    empty: int = 0
    _checked: list["TextRegionSegmenter"] = field(default_factory=list, repr=False)

    @classmethod
    def open(
        cls,
        table: str | Path,
        preset: str | None = None,
        key: str = OWN_KEYS,
        *,
        more_presets: Sequence[str] = (),
        own_rows: bool = False,
        key_checkpoint: str | Path | None = None,
        device: str | torch.device = "auto",
        **machine: Any,
    ) -> "RegionMemory":
        """The regions of a table of `textregion index`, read into memory: 2 bytes a number, 4 below 100,000 regions.

        preset: whose tokens, where a second backbone has a column. key: "token", or the name of a timm tower that
        `textregion index --add_keys` has added. more_presets: further columns of tokens whose support is averaged with
        the first's; their text towers are loaded. own_rows: as of the class. key_checkpoint: the tower's weights.
        machine: dtype and where the weights of more_presets are. InputError: no such table, column or weights.
        """
        device = resolve_device(device)
        index = RegionIndex.open(table, preset)
        others = [RegionIndex.open(table, name, device=device, **machine) for name in more_presets]
        columns, tower = [index.column, *(other.column for other in others)], None
        if key != OWN_KEYS:
            column = index.tables.meta.key_column(key, str(table))
            tower = load_tower(key, key_checkpoint, device)
            if index.tables.meta.keys[column] != tower.record:
                raise InputError(f"the keys of {table} were made by other weights of {key} than are here; give those")
            columns = [column, *columns]
        bank, empty = _read(index, columns, tower is not None, device)
        words = [other.segmenter(words_only=True) for other in others]
        return cls(str(table), bank, index.encoder, words, tower, own_rows, _blocks(bank), empty)

    @classmethod
    def from_tokens(
        cls, images: Mapping[str, RegionTokens], name: str = "memory", own_rows: bool = False
    ) -> "RegionMemory":
        """Regions that were encoded here, without a table. images: tokens by the SHA-256 of the image's file."""
        rows = torch.cat([tokens.tokens for tokens in images.values()])
        counts = torch.tensor([len(tokens) for tokens in images.values()])
        if len(rows) == 0:
            raise InputError(f"got {len(images)} images without a region, expected regions for a memory")
        small = rows.device.type == "cpu" and len(rows) < EXACT_VECTORS
        rows = F.normalize(rows.float(), dim=1).to(torch.float32 if small else torch.float16)
        bank = Bank(rows, [rows], torch.arange(len(images)).repeat_interleave(counts), list(images))
        return cls(name, bank, own_rows=own_rows, blocks=_blocks(bank))

    def __repr__(self) -> str:
        key = "their tokens" if self.tower is None else self.tower.name
        how = "by blocks" if self.blocks is not None else "exactly"
        empty = f", {self.empty} without a key left out" * bool(self.empty)
        return f"RegionMemory({self.name!r}, {len(self.bank)} regions{empty}, keys {key}, searched {how})"

    def settings(self) -> dict[str, Any]:
        """All of it that decides results, as JSON has it; alpha and K are the segmenter's options."""
        counts = torch.bincount(self.bank.image, minlength=len(self.bank.hashes)).tolist()
        images = sorted(zip(self.bank.hashes, counts, strict=True))
        return {
            "content": hashlib.sha256(repr(images).encode()).hexdigest()[:16],
            "regions": len(self.bank),
            "encoder": self.encoder and self.encoder.fingerprint,
            "key": self.tower and [self.tower.name, self.tower.weights],
            "more": [segmenter.backbone.name for segmenter in self.words],
            "own_rows": self.own_rows,
        }

    def overlap(self, images: Sequence[str | Path]) -> list[str]:
        """Those of some image files that are in the bank, by the hash of their content; unreadable ones are not."""
        known, found = set(self.bank.hashes), []
        for image in images:
            try:
                if content_hash(read_bytes(str(image))) in known:
                    found.append(str(image))
            except InputError:  # told where the image is read to be labelled
                continue
        return found

    # ------------------------------------------------------------------ one image

    def logits(
        self,
        segmenter: "TextRegionSegmenter",
        regions: RegionTokens,
        prompts: LabelPrompts,
        text: Float32[Tensor, "Q D"],
        source: ImageInput | None = None,
    ) -> Float32[Tensor, "R Q"]:
        """Region logits with the support of the bank: (1 - alpha) own + alpha support, as the segmenter's config says.

        Bit-equal to the regions' own for alpha 0. text: embeddings of the prompts' queries. source: the image's file or
        its bytes; pixels do where own_rows is on. A region without a key, and an image that alone is in the bank, keep
        their own logits. InputError: a segmenter of another model than the bank's, no file.
        """
        own, config = regions.logits(text), segmenter.config
        if config.memory_alpha == 0 or len(regions) == 0:
            return own
        self.check(segmenter)
        keys = self.keys(regions, source)
        rows = self.nearest(keys, config.memory_neighbours, self.left_out(source))
        if rows.shape[1] == 0:
            return own
        texts = [text, *(segmenter.encode_text(prompts.queries) for segmenter in self.words)]
        cosines = [token @ other.to(token).T for token, other in zip(self.supports(rows), texts, strict=True)]
        support = torch.stack(cosines).mean(0).to(own) * regions.logit_scale + regions.logit_bias
        alpha = config.memory_alpha * (keys.norm(dim=1, keepdim=True) > 0).to(own)
        return (1 - alpha) * own + alpha * support

    def keys(self, regions: RegionTokens, source: ImageInput | None = None) -> Float32[Tensor, "R C"]:
        """Unit keys of an image's regions, zeros for one that has none. InputError where a tower needs the image."""
        if self.tower is None:
            return F.normalize(regions.tokens.float(), dim=1).to(self.bank.keys.device)
        if source is None:
            raise InputError(
                f"the keys of {self.name} are of {self.tower.name}, which needs the image; give source=FILE"
            )
        return encode_keys(self.tower, source, regions.masks)

    def left_out(self, source: ImageInput | None) -> Int[Tensor, " n"] | None:
        """Rows that must not support an image: its own, by the hash of its file; InputError when there is no file."""
        if self.own_rows:
            return None
        if not isinstance(source, (str, Path, bytes)):
            raise InputError(
                f"got pixels without their file, {FOREIGN}; give source=FILE, or open it with own_rows=True"
            )
        data = source if isinstance(source, bytes) else read_bytes(str(source))
        return self.bank.rows_of(content_hash(data))

    def nearest(self, keys: Float32[Tensor, "R C"], count: int, without: Int[Tensor, " n"] | None = None) -> Rows:
        """Rows of the `count` nearest keys of each, nearest first; fewer where the bank has fewer."""
        without = None if without is None else without.to(keys.device)
        if self.blocks is None:
            return exact_search(self.bank.keys, keys, count, without)[1]
        return self.blocks.search(self.bank.keys, keys, count, without)[1]

    def supports(self, rows: Rows) -> list[Float32[Tensor, "R D"]]:
        """unit(mean of the tokens of some rows), of every image-text model."""
        return [F.normalize(tokens[rows].float().mean(1), dim=1) for tokens in self.bank.tokens]

    def recall(self, keys: Float32[Tensor, "R C"], count: int) -> float:
        """Share of the true nearest that `nearest` finds, 1 where it is exact."""
        found, true = self.nearest(keys, count), exact_search(self.bank.keys, keys, count)[1]
        return float((found[:, :, None] == true[:, None, :]).any(2).float().mean())

    def check(self, segmenter: "TextRegionSegmenter") -> None:
        """InputError, in one line, for a segmenter whose tokens are not comparable with the bank's; once for each."""
        if any(known is segmenter for known in self._checked):
            return
        backbone, width = segmenter.backbone, self.bank.tokens[0].shape[1]
        if backbone.width != width:
            raise InputError(
                f"{self.name} has tokens of {width} numbers, {backbone.name} of {backbone.width}; {REMEDY}"
            )
        if (made := self.encoder) is not None:
            if made.recipe != segmenter.config.recipe.name:
                here = segmenter.config.recipe.name
                raise InputError(f"{self.name} was made with --recipe {made.recipe}, this run has {here}; {REMEDY}")
            templates = TEMPLATE_SETS[made.settings["config"]["templates"]]
            probe = backbone.encode_labels([PROBE], templates)[0].float().cpu().numpy()
            if float(probe @ made.embedding) < ALIKE * float(np.linalg.norm(made.embedding)):
                raise InputError(f"{self.name} was made by other weights than {backbone.name} has here; {REMEDY}")
        self._checked.append(segmenter)


REMEDY = "label with those, or index the photographs anew"


def _blocks(bank: Bank) -> Blocks | None:
    return Blocks.of(bank.keys) if bank.keys.device.type == "cpu" and len(bank) >= EXACT_VECTORS else None


def _read(index: RegionIndex, columns: Sequence[str], own_keys: bool, device: torch.device) -> tuple[Bank, int]:
    """(the rows of a table that have all of these columns, the number of the others).

    own_keys: the first column is the key, else the first tokens are.
    """
    vectors: dict[str, list[Tensor]] = {column: [] for column in columns}
    places: dict[str, int] = {}
    image, empty = [], 0
    dtype = torch.float32 if device.type == "cpu" and len(index) < EXACT_VECTORS else torch.float16
    with lance_errors(f"cannot read {index.tables.path}"):
        for batch in index.tables.regions.to_lance().to_batches(
            columns=["image_hash", *columns], batch_size=ROWS_AT_ONCE
        ):
            there = np.logical_and.reduce([np.asarray(batch[column].is_valid()) for column in columns])
            empty += int((~there).sum())
            chosen = batch.filter(there)
            for column in columns:
                values = chosen[column].flatten().to_numpy(zero_copy_only=False)
                part = torch.from_numpy(values.reshape(len(chosen), batch[column].type.list_size).copy()).float()
                vectors[column].append(F.normalize(part, dim=1).to(dtype))
            image += [places.setdefault(name, len(places)) for name in chosen["image_hash"].to_pylist()]
    if not image:
        raise InputError(f"{index.tables.path} has no region with {', '.join(columns)}; index photographs first")
    joined = []
    for column in columns:
        whole = torch.cat(vectors.pop(column))
        if not bool(whole.isfinite().all()):
            raise InputError(f"{index.tables.path} has {column} that are no finite numbers: a damaged table")
        joined.append(to_device(whole, device))
    keys, tokens = joined[0], joined[1:] if own_keys else joined
    return Bank(keys, tokens, torch.tensor(image), list(places)), empty
