"""A score that means something: what words reach in a table of which none is likely to be there.

A cosine of 0.23 says little by itself, for models, words and tables differ. So words of rare things that have nothing
to do with each other are looked for in the same table; a thing that is there stands out above most of them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from textregion.index.store import lance_errors
from textregion.labels import CONTROL_WORDS

if TYPE_CHECKING:
    from textregion.index.region_index import RegionIndex
    from textregion.index.search import Query

QUANTILE = 0.9  # of the control words' best scores: the floor; a few of them may be there after all
ROWS_AT_ONCE = 20_000


def floor(index: "RegionIndex", words: Sequence[str], query: "Query") -> float:
    """The score below which a hit is "probably not there": the QUANTILE of the control words' best scores.

    words: of the query; a control word that shares one with them does not count. The unwanted words of the query count
    for the control words too. Takes a search of the table for every word where it has an index, else one pass over it.
    """
    asked = {part for word in words for part in word.lower().split()}
    control = [word for word in CONTROL_WORDS if not asked & set(word.split())]
    vectors = index.segmenter(words_only=True).encode_text(control).float().cpu().numpy()
    best = _best_by_index(index, vectors) if index.is_indexed() else _best_of_all(index, vectors, query.unwanted)
    return float(np.quantile(best, QUANTILE))


def _best_of_all(index: "RegionIndex", vectors: np.ndarray, unwanted: np.ndarray) -> np.ndarray:
    """(K,) the best score of each of K vectors over all rows: one pass."""
    best = np.full(len(vectors), -2.0, np.float32)
    with lance_errors(f"cannot read {index.tables.path}"):
        table = index.tables.regions.to_lance()
        for batch in table.to_batches(columns=[index.column], batch_size=ROWS_AT_ONCE):
            tokens = tokens_of(batch[index.column])
            scores = tokens @ vectors.T
            if len(unwanted):
                scores -= (tokens @ unwanted.T).max(1, keepdims=True)
            best = np.maximum(best, scores.max(0, initial=-2.0))
    return best


def _best_by_index(index: "RegionIndex", vectors: np.ndarray) -> np.ndarray:
    """(K,) the best score of each vector, by the index; unwanted words are not taken off, which only raises it."""
    best = []
    for vector in vectors:
        with lance_errors(f"cannot search {index.tables.path}"):
            asked = index.tables.regions.search(vector, vector_column_name=index.column).distance_type("cosine")
            (row,) = asked.limit(1).nprobes(20).refine_factor(10).select(["_distance"]).to_list() or [
                {"_distance": 2.0}
            ]
        best.append(1 - row["_distance"])
    return np.array(best, np.float32)


def tokens_of(column) -> np.ndarray:
    """(R, D) float32 of a column of tokens; rows without one are zeros."""
    width = column.type.list_size
    tokens = column.values.to_numpy(zero_copy_only=False).reshape(-1, width).astype(np.float32)
    tokens = tokens[column.offset : column.offset + len(column)] if len(tokens) != len(column) else tokens
    if column.null_count:
        tokens = np.where(np.asarray(column.is_valid())[:, None], tokens, 0)
    return tokens
