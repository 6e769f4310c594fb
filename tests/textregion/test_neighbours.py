"""The nearest of many vectors: exact in any number of parts, and by blocks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from textregion import neighbours
from textregion.neighbours import Blocks, exact_search, k_means


def unit(count, width, seed=0):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def slow_search(keys, queries, count, without=()):
    """Every product on its own, sorted."""
    found = []
    for query in queries:
        scored = sorted((-float(key @ query), n) for n, key in enumerate(keys) if n not in without)
        found.append([n for _, n in scored[:count]])
    return found


@given(st.integers(1, 60), st.integers(1, 9), st.sets(st.integers(0, 59)), st.integers(0, 3))
def test_exact_search_is_a_sort_of_all_products(size, count, without, seed):
    keys, queries = unit(size, 7, seed), unit(5, 7, seed + 10)
    own = sorted(n for n in without if n < size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "AT_ONCE", 11)
        scores, rows = exact_search(keys, queries, count, torch.tensor(own, dtype=torch.int64) if own else None)
    assert rows.tolist() == slow_search(keys, queries, count, own)
    torch.testing.assert_close(scores, (keys[rows] * queries[:, None]).sum(2))


def test_half_precision_keys_are_compared_in_full():
    keys, queries = unit(97, 13), unit(3, 13, 1)
    scores, rows = exact_search(keys.half(), queries, 5)
    assert rows.tolist() == slow_search(keys.half().float(), queries, 5)
    assert scores.dtype == torch.float32


@pytest.fixture(scope="module")
def clustered():
    """(keys, queries): 1009 vectors of 31 numbers around 23 centres, half precision."""
    centres, own = unit(23, 31), unit(1009, 31, 1)
    keys = F.normalize(centres[torch.arange(1009) % 23] + 0.4 * own, dim=1)
    return keys.half(), F.normalize(keys[::101] + 0.2 * unit(10, 31, 2), dim=1)


def test_every_key_is_in_one_block(clustered):
    blocks = Blocks.of(clustered[0], components=16, block=32)
    assert blocks.rows.shape[1] <= 32
    assert sorted(blocks.rows[blocks.rows >= 0].tolist()) == list(range(1009))
    assert torch.equal(blocks.reduced[blocks.rows < 0], torch.zeros_like(blocks.reduced[blocks.rows < 0]))
    again = Blocks.of(clustered[0], components=16, block=32)
    assert torch.equal(again.rows, blocks.rows)


def test_all_blocks_find_what_exact_search_finds(clustered):
    keys, queries = clustered
    blocks = Blocks.of(keys, components=31, block=32)
    scores, rows = blocks.search(keys, queries, 7, probes=10_000, refined=2000)
    true_scores, _ = exact_search(keys, queries, 7)
    torch.testing.assert_close(scores, true_scores, atol=2e-3, rtol=0)  # products of half precision
    found = (keys.float()[rows] * queries[:, None]).sum(2)  # it may change the order of equals
    torch.testing.assert_close(found, true_scores, atol=2e-3, rtol=0)
    assert all(len(set(row)) == 7 for row in rows.tolist())


def test_a_few_blocks_find_most_neighbours(clustered):
    keys, queries = clustered
    blocks = Blocks.of(keys, components=16, block=32)
    rows, true = blocks.search(keys, queries, 7, probes=6, refined=64)[1], exact_search(keys, queries, 7)[1]
    assert (rows[:, :, None] == true[:, None]).any(2).float().mean() > 0.8


def test_what_does_not_count_is_never_found(clustered):
    keys, queries = clustered
    blocks, nearest = Blocks.of(keys, components=16, block=32), exact_search(keys, queries, 3)[1]
    without = nearest.unique()
    rows = blocks.search(keys, queries, 7, without)[1]
    assert not torch.isin(rows, without).any()


def test_where_blocks_hold_too_few_all_are_compared(clustered):
    keys, queries = clustered
    blocks = Blocks.of(keys, components=16, block=32)
    scores, rows = blocks.search(keys, queries, 500, probes=1)
    true_scores, true = exact_search(keys, queries, 500)
    assert torch.equal(rows, true)
    assert torch.equal(scores, true_scores)


def test_k_means_finds_clusters_that_lie_apart():
    points = torch.cat([unit(20, 3, n) * 0.1 + torch.eye(3)[n] * 5 for n in range(3)])
    cluster = k_means(points, 3)
    assert len(cluster) == 60
    assert k_means(points, 1).tolist() == [0] * 60
    groups = [set(cluster[start : start + 20].tolist()) for start in (0, 20, 40)]
    assert sum(map(len, groups)) <= 4  # points to start from may lie in one cluster
