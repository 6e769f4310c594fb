"""From words or a region to the best rows of a table: directions, candidates, exact scores, grouping, a floor.

The score of a region is the largest cosine with any of the words (synonyms), less the largest with any of the words
that are not wanted. With one of each that is the product with one vector, so the table's nearest neighbours of that
vector are the answer; with more, the neighbours of all pairs' differences are candidates, and scored exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32

from textregion.boxes import boxes_inside
from textregion.errors import InputError
from textregion.images import ImageInput, load_image
from textregion.index.absent import tokens_of
from textregion.index.encoding import decode_masks
from textregion.index.schema import TOKEN
from textregion.index.store import lance_errors, quoted
from textregion.labels import as_labels, label_queries
from textregion.masks.prompts import rectangle_masks
from textregion.types import RegionMasks

if TYPE_CHECKING:
    from textregion.index.region_index import RegionIndex

SPARE = 4  # candidates a hit: exact scores reorder them, and grouping leaves some out
MOST_CANDIDATES = 20_000
MOST_HITS = 1000
RERANKED = 100  # hits scored again by their crops
OWN_COLUMNS = ("image", "image_hash", "region", "box", "area", "mask", "predicted_iou", "stability")


@dataclass(frozen=True)
class Effort:
    """How hard an index is searched; more is slower and finds more of the true neighbours.

    probes: of its partitions that are looked at. refine: candidates a result that are compared by their full vectors.
    """

    probes: int = 20
    refine: int = 10


@dataclass(frozen=True)
class Hit:
    """A region that was found.

    image: its path or URI as in the table; image_hash: SHA-256 of the file. region: its number in the image. box: x1 y1
    x2 y2 in pixels. area: share of the image. score: see `search`. crop_score: of its crop, where it was asked for.
    absent: below the floor that control words reach; None where that was not asked. more: the table's other columns.
    """

    image: str
    image_hash: str
    region: int
    box: tuple[float, float, float, float]
    area: float
    score: float
    image_size: tuple[int, int]
    mask_code: dict[str, Any] = field(repr=False)
    crop_score: float | None = None
    absent: bool | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def masks(self) -> RegionMasks:
        """The region as masks of its image, for drawing."""
        return RegionMasks(torch.from_numpy(decode_masks([self.mask_code])), self.image_size)

    @property
    def mask(self) -> Bool[np.ndarray, "H W"]:
        """The region at the image's size; it was stored at the masks' own resolution."""
        return self.masks.binary()[0].numpy()


@dataclass(frozen=True)
class Query:
    """What is looked for: unit vectors of which the best counts, and those whose best is taken off."""

    wanted: Float32[np.ndarray, "P D"]
    unwanted: Float32[np.ndarray, "N D"]

    def scores(self, tokens: Float[np.ndarray, "R D"]) -> Float32[np.ndarray, " R"]:
        """max over wanted of the cosine, less the max over unwanted."""
        tokens = tokens.astype(np.float32)
        scores = (tokens @ self.wanted.T).max(1)
        return scores - (tokens @ self.unwanted.T).max(1) if len(self.unwanted) else scores

    def directions(self) -> Float32[np.ndarray, "K D"]:
        """Vectors whose nearest neighbours are candidates: the wanted ones, less each unwanted one."""
        if not len(self.unwanted):
            return self.wanted
        differences = (self.wanted[:, None] - self.unwanted[None]).reshape(-1, self.wanted.shape[1])
        return differences / np.maximum(np.linalg.norm(differences, axis=1, keepdims=True), 1e-6)


def make_query(
    index: "RegionIndex",
    query: str | Sequence[str],
    like: ImageInput | None,
    box: Sequence[float] | None,
    without: str | Sequence[str],
) -> Query:
    """Words and regions as vectors. InputError for none, for blank ones, for a box outside its image."""
    words, unwanted = split_words(query), split_words(without)
    if not words and like is None:
        raise InputError('got nothing to look for; give words such as "a red mug", or --like IMAGE')
    if box is not None and like is None:
        raise InputError("got a box without an image; add --like IMAGE")
    vectors = []
    if like is not None:
        vectors.append(encode_region(index, like, box))
    vectors.append(encode_words(index, words))
    return Query(np.concatenate(vectors), encode_words(index, unwanted))


def encode_words(index: "RegionIndex", words: Sequence[str]) -> Float32[np.ndarray, "Q D"]:
    """Unit vectors of words; no model is loaded for none."""
    if not words:
        return np.zeros((0, index.encoder.width), np.float32)
    return index.segmenter(words_only=True).encode_text(words).float().cpu().numpy()


def split_words(query: str | Sequence[str]) -> list[str]:
    """All synonyms of some words, each once."""
    texts = [query] if isinstance(query, str) else list(query)
    if not texts or texts == [""]:
        return []
    return list(dict.fromkeys(word for label in as_labels(texts) for word in label_queries(label)))


def encode_region(index: "RegionIndex", image: ImageInput, box: Sequence[float] | None) -> Float32[np.ndarray, "1 D"]:
    """The token of a box of an image, or of all of it."""
    pixels = load_image(image)
    height, width = pixels.shape[:2]
    if box is None:
        segmenter = index.segmenter(words_only=True)
        tokens = segmenter.encode_image(pixels, masks=np.ones((1, height, width), bool))
    else:
        boxes_inside([list(box)], (height, width))
        tokens = index.segmenter().encode_boxes(pixels, [list(box)])
        if not len(tokens):  # the mask is smaller than a patch
            tokens = index.segmenter().encode_image(pixels, masks=rectangle_masks([list(box)], (height, width)))
    if not len(tokens):
        raise InputError("no patch lies in that box; give a larger one")
    return tokens.tokens.float().cpu().numpy()


def best_rows(
    index: "RegionIndex", query: Query, top: int, where: str | None, per_image: int | None, effort: Effort
) -> list[Hit]:
    """The best `top` rows, of one image `per_image` at most. More candidates are fetched until there are enough."""
    count = min(max(SPARE * top, 50), MOST_CANDIDATES)
    while True:
        rows, more_there = candidates(index, query, count, where, effort)
        chosen = grouped(rows, top, per_image)
        if len(chosen) == top or not more_there or count == MOST_CANDIDATES:
            return as_hits(index, chosen)
        count = min(4 * count, MOST_CANDIDATES)


def candidates(
    index: "RegionIndex", query: Query, count: int, where: str | None, effort: Effort
) -> tuple[list[dict], bool]:
    """(rows near any direction, each once, with their score, best first; whether there may be more of them).

    Of a row only what decides the order is read: its number, image and region.
    """
    (regions, _), column = index.tables.data(), index.column
    near = {"column": column, "k": count, "metric": "cosine", "refine_factor": max(1, effort.refine // SPARE)}
    near |= {"minimum_nprobes": effort.probes, "maximum_nprobes": effort.probes}
    found: dict[int, dict] = {}
    more_there = False
    for direction in query.directions():
        told = f"cannot search {index.tables.path}" if where is None else f"cannot search with where {where[:200]!r}"
        with lance_errors(told):
            result = regions.to_table(
                columns=["image", "region", column, "_distance"],
                nearest={**near, "q": direction},
                filter=where,
                prefilter=True,
                with_row_id=True,
            )
        more_there |= len(result) == count
        if not len(result):
            continue
        scores = query.scores(tokens_of(result[column].combine_chunks()))
        rows = result.drop_columns([column, "_distance"]).to_pylist()
        found.update({row["_rowid"]: {**row, "score": float(s)} for row, s in zip(rows, scores, strict=True)})
    return sorted(found.values(), key=lambda row: (-row["score"], row["image"], row["region"])), more_there


def grouped(rows: Sequence[dict], top: int, per_image: int | None) -> list[dict]:
    """The first `top` rows, of one image the first `per_image`."""
    chosen, counts = [], {}
    for row in rows:
        counts[row["image"]] = counts.get(row["image"], 0) + 1
        if per_image is None or counts[row["image"]] <= per_image:
            chosen.append(row)
        if len(chosen) == top:
            break
    return chosen


def as_hits(index: "RegionIndex", rows: Sequence[dict]) -> list[Hit]:
    """Rows as hits, with their other columns and the sizes of their images."""
    if not rows:
        return []
    with lance_errors(f"cannot read {index.tables.path}"):
        columns = _columns(index, [row["_rowid"] for row in rows])
        sizes = _image_sizes(index, list(dict.fromkeys(row["image"] for row in rows)))
    hits = []
    for row in rows:
        if row["image"] not in sizes:
            raise InputError(f"{index.tables.path} has a region of {row['image']} but not the image: a damaged table")
        whole = columns[row["image"], row["region"]]
        more = {name: value for name, value in whole.items() if name not in OWN_COLUMNS}
        told = {name: whole[name] for name in ("image", "image_hash", "region", "area")} | {"score": row["score"]}
        hits.append(
            Hit(**told, box=tuple(whole["box"]), image_size=sizes[row["image"]], mask_code=whole["mask"], more=more)
        )
    return hits


def _columns(index: "RegionIndex", row_ids: Sequence[int]) -> dict[tuple[str, int], dict[str, Any]]:
    """All columns but the tokens of some rows, by image and region."""
    data, _ = index.tables.data()
    names = [name for name in data.schema.names if not name.startswith(TOKEN)]
    rows = data.to_table(columns=names, filter=f"_rowid IN ({', '.join(map(str, row_ids))})").to_pylist()
    return {(row["image"], row["region"]): row for row in rows}


def _image_sizes(index: "RegionIndex", images: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(height, width) of images that are in the table."""
    wanted = f"image IN ({', '.join(map(quoted, images))})"
    _, data = index.tables.data()
    rows = data.to_table(columns=["image", "height", "width"], filter=wanted).to_pylist()
    return {row["image"]: (row["height"], row["width"]) for row in rows}
