import oracles
import torch
from hypothesis import given
from hypothesis import strategies as st

from textregion.pooling import (
    difference_scores,
    masked_mean,
    nonempty,
    patch_weights,
    remove_patches,
    weighted_sum,
)

seeds = st.integers(0, 10_000)


def problem(seed: int, regions: int = 5, patches: int = 53, width: int = 17):
    """Features (P, C) and soft weights (R, P), half of them zero."""
    random = torch.Generator().manual_seed(seed)
    weights = torch.rand(regions, patches, generator=random) * (torch.rand(regions, patches, generator=random) > 0.5)
    return torch.randn(patches, width, generator=random), weights


@given(seeds, st.integers(1, 7), st.sampled_from([2, 13, 53]))
def test_difference_scores_equal_the_form_with_all_pairs(seed, regions, patches):
    features, weights = problem(seed, regions, patches)
    weights[:, 0] = 0  # a patch in no region
    weights[:, 1] = 0.5  # a patch in every region
    scores = difference_scores(features, weights)
    torch.testing.assert_close(scores, oracles.difference_scores(features, weights), rtol=0, atol=1e-6)
    assert scores.abs().max() <= 2


def test_a_patch_in_no_region_belongs_to_nothing():
    features = torch.eye(3)
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    # patch 2 is orthogonal to both regions; patch 0 equals its own and is orthogonal to the other
    torch.testing.assert_close(difference_scores(features, weights), torch.tensor([1.0, 1.0, 0.0]))


def test_a_patch_in_every_region_has_nothing_outside():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(difference_scores(features, torch.ones(2, 2)), torch.ones(2))


def test_scores_do_not_depend_on_the_length_of_features():
    features, weights = problem(3)
    scaled = features * torch.linspace(0.1, 9, len(features))[:, None]
    torch.testing.assert_close(difference_scores(scaled, weights), difference_scores(features, weights))


def test_soft_weights_count_as_belonging():
    features, weights = problem(4)
    torch.testing.assert_close(difference_scores(features, weights), difference_scores(features, weights.sign()))


@given(seeds)
def test_weighted_sum_equals_loops(seed):
    features, weights = problem(seed)
    torch.testing.assert_close(
        weighted_sum(features, weights), oracles.weighted_sum(features, weights), rtol=0, atol=2e-5
    )


@given(seeds)
def test_masked_mean_equals_loops(seed):
    features, weights = problem(seed)
    weights[0] = 0
    mean = masked_mean(features, weights)
    torch.testing.assert_close(mean, oracles.masked_mean(features, weights), rtol=0, atol=2e-6)
    assert (mean[0] == 0).all()


def test_no_region_gives_no_row():
    features = torch.ones(7, 3)
    none = torch.zeros(0, 7)
    assert weighted_sum(features, none).shape == masked_mean(features, none).shape == (0, 3)
    assert (difference_scores(features, none) == 0).all()
    assert nonempty(none).shape == (0,)


def test_patch_weights():
    masks = torch.tensor([[[0.0, 0.25, 1.5], [3.0, 1.0, 1e-6]]])
    torch.testing.assert_close(patch_weights(masks), torch.tensor([[0.0, 0.25, 1.0, 1.0, 1.0, 1e-6]]))
    assert patch_weights(masks, "hard").tolist() == [[0, 1, 1, 1, 1, 1]]


def test_only_scores_strictly_below_the_threshold_are_removed():
    weights = torch.full((2, 3), 0.5)
    left = remove_patches(weights, torch.tensor([0.07, 0.0699, -1.0]), float(torch.tensor(0.07)))
    assert left.tolist() == [[0.5, 0, 0], [0.5, 0, 0]]


def test_nonempty():
    assert nonempty(torch.tensor([[0.0, 0.0], [0.0, 1e-9], [1.0, 1.0]])).tolist() == [False, True, True]
