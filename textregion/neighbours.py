"""The nearest of very many unit vectors to a few: all of them compared, or, on a CPU, those in the likeliest blocks.

100 regions and a bank of 1,000,000 vectors of 512 numbers are 51 billion multiply-adds: milliseconds for a GPU, a
second for a CPU. So a large bank on a CPU is put into blocks of neighbours (k-means, twice), and looked at in three
steps: the likeliest blocks by their means, the likeliest of their vectors by fewer principal components, the best of
these by all their numbers. All queries take each step together.
"""

from dataclasses import dataclass
from math import ceil, sqrt

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

EXACT_VECTORS = 100_000  # below so many all are compared everywhere
AT_ONCE = 65_536  # vectors compared in one step, and those whose principal directions are taken
BLOCK = 256  # vectors of a block at most
FILLED = 0.75  # of a block, on average: few groups of neighbours then need two
MEAN_COMPONENTS, COMPONENTS = 128, 64  # principal components of the blocks' means, and of their vectors
PROBES = 4  # blocks a query that are looked at
REFINED = 192  # vectors a query that are compared by all their numbers
ROUNDS = 5  # of k-means


def exact_search(
    keys: Float[Tensor, "N C"], queries: Float32[Tensor, "R C"], count: int, without: Int[Tensor, " n"] | None = None
) -> tuple[Float32[Tensor, "R K"], Int[Tensor, "R K"]]:
    """(products, rows) of the K = min(count, N - n) keys with the largest product with each query, largest first.

    without: rows that do not count. Keys of half precision are compared in float32, AT_ONCE at a time.
    """
    scores, rows = queries.new_zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.int64)
    rows, left = rows.to(queries.device), len(keys) - (0 if without is None else len(without))
    for start in range(0, len(keys), AT_ONCE):
        part = queries @ keys[start : start + AT_ONCE].to(queries).T
        if without is not None:
            own = without[(without >= start) & (without < start + AT_ONCE)] - start
            part[:, own] = -torch.inf
        found, places = part.topk(min(count, part.shape[1]))
        scores, rows = torch.cat([scores, found], 1), torch.cat([rows, places + start], 1)
        scores, best = scores.topk(min(count, scores.shape[1]))
        rows = rows.gather(1, best)
    return scores[:, :left], rows[:, :left]


@dataclass(frozen=True)
class Blocks:
    """N keys in B blocks of at most BLOCK neighbours.

    basis: (C, D) the keys' principal directions. means: (B, D) of the blocks. rows: (B, BLOCK) which keys are in each,
    -1 for none. reduced: (B, BLOCK, d) the keys on the first d directions, zeros for none; half precision.
    """

    basis: Float32[Tensor, "C D"]
    means: Float32[Tensor, "B D"]
    rows: Int[Tensor, "B block"]
    reduced: Float[Tensor, "B block d"]

    @classmethod
    def of(cls, keys: Float[Tensor, "N C"], components: int = COMPONENTS, block: int = BLOCK) -> "Blocks":
        """Blocks of keys, the same every time."""
        sample = keys[:: ceil(len(keys) / AT_ONCE)].float()
        basis = torch.linalg.eigh(sample.T @ sample)[1].flip(1)[:, :MEAN_COMPONENTS].contiguous()
        points = torch.cat([(part.float() @ basis).half() for part in keys.split(AT_ONCE)])
        groups = []
        for cell in _members(k_means(keys, ceil(sqrt(len(keys) / block)))):
            within = k_means(keys[cell], ceil(len(cell) / (FILLED * block)))
            groups += [part for group in _members(within) for part in cell[group].split(block)]
        rows = torch.nn.utils.rnn.pad_sequence(groups, batch_first=True, padding_value=-1)
        means = torch.stack([points[group].float().mean(0) for group in groups])
        reduced = torch.where(rows[..., None] >= 0, points[:, :components][rows.clamp(min=0)], 0)
        return cls(basis, means, rows, reduced)

    def search(
        self,
        keys: Float[Tensor, "N C"],
        queries: Float32[Tensor, "R C"],
        count: int,
        without: Int[Tensor, " n"] | None = None,
        probes: int = PROBES,
        refined: int = REFINED,
    ) -> tuple[Float32[Tensor, "R K"], Int[Tensor, "R K"]]:
        """As `exact_search`, of the keys in the `probes` likeliest blocks, the `refined` likeliest of them.

        All are compared where a query would have fewer than `count` of them left.
        """
        own = 0 if without is None else len(without)
        probes, refined = min(probes, len(self.rows)), max(refined, 2 * (count + own))
        here = queries @ self.basis
        near = (here @ self.means.T).topk(probes, sorted=False)[1].flatten()
        rows = self.rows[near].view(len(queries), -1)
        reduced = self.reduced.index_select(0, near).view(len(queries), rows.shape[1], -1)
        likely = _products(reduced, here[:, : reduced.shape[2]]).masked_fill_(rows < 0, -torch.inf)
        if without is not None:
            likely.masked_fill_(torch.isin(rows, without), -torch.inf)
        scores, places = likely.topk(min(refined, likely.shape[1]), sorted=False)
        if bool((scores > -torch.inf).sum(1).amin() < min(count, len(keys) - own)):
            return exact_search(keys, queries, count, without)
        rows = rows.gather(1, places)
        full = keys.index_select(0, rows.clamp(min=0).flatten()).view(*rows.shape, -1)
        exact = _products(full, queries)
        scores, best = exact.masked_fill_(scores == -torch.inf, -torch.inf).topk(min(count, len(keys) - own))
        return scores, rows.gather(1, best)


def _products(vectors: Float[Tensor, "R n d"], queries: Float32[Tensor, "R d"]) -> Float32[Tensor, "R n"]:
    """Of each query with the vectors of its own, in their precision. A row times a matrix is the faster way round."""
    return torch.bmm(queries.to(vectors)[:, None], vectors.transpose(1, 2))[:, 0].float()


def k_means(points: Float[Tensor, "n d"], count: int) -> Int[Tensor, " n"]:
    """The cluster of every point: ROUNDS of Lloyd's algorithm from `count` points, on AT_ONCE points at most."""
    if count <= 1:
        return torch.zeros(len(points), dtype=torch.int64)
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    sample, centres = points[order[:AT_ONCE]].float(), points[order[:count]].float()
    for _ in range(ROUNDS):
        cluster = _nearest_centre(sample, centres)
        sums = torch.zeros_like(centres).index_add_(0, cluster, sample)
        sizes = torch.bincount(cluster, minlength=len(centres))[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return _nearest_centre(points, centres)


def _nearest_centre(points: Float[Tensor, "n d"], centres: Float32[Tensor, "k d"]) -> Int[Tensor, " n"]:
    half_norms = centres.square().sum(1) / 2
    return torch.cat([(part.float() @ centres.T - half_norms).argmax(1) for part in points.split(AT_ONCE // 8)])


def _members(cluster: Int[Tensor, " n"]) -> list[Int[Tensor, " m"]]:
    """Places of the points of every cluster that has any."""
    sizes = torch.bincount(cluster)
    return [group for group in cluster.argsort(stable=True).split(sizes.tolist()) if len(group)]
