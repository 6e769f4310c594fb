"""Which patches make a region's token: weights, global-patch removal, sums and means, recipes (method 5 to 7)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F

from textregion.errors import InputError

EPSILON = 1e-9


def patch_weights(grid_masks: Float32[Tensor, "R Ph Pw"], mask_type: str = "soft") -> Float32[Tensor, "R P"]:
    """Weight of every patch in every region (method 5.1).

    grid_masks: masks on the patch grid, values 0..3. mask_type: "soft" clamps to [0, 1], "hard" takes > 0.
    """
    flat = grid_masks.flatten(1)
    return (flat > 0).float() if mask_type == "hard" else flat.clamp(0, 1)


def difference_scores(features: Float32[Tensor, "P C"], weights: Float32[Tensor, "R P"]) -> Float32[Tensor, " P"]:
    """d_p: how much more alike patch p is to the regions it belongs to than to the others (method 6.1, 6.2).

    The mean similarity of p with the patches of region r is its product with the region's mean unit feature,
    so no P x P matrix is needed: the cost is R * P * C. Values within [-2, 2].
    """
    unit = F.normalize(features, dim=-1)
    inside = (weights > 0).float()
    centres = (inside @ unit) / (inside.sum(1, keepdim=True) + EPSILON)
    affinity = unit @ centres.T
    inside = inside.T
    outside = 1 - inside
    belong = (affinity * inside).sum(1) / (inside.sum(1) + EPSILON)
    apart = (affinity * outside).sum(1) / (outside.sum(1) + EPSILON)
    return belong - apart


def remove_patches(
    weights: Float32[Tensor, "R P"], scores: Float32[Tensor, " P"], threshold: float
) -> Float32[Tensor, "R P"]:
    """Patches with a score strictly below the threshold weigh 0 in every region (method 6.1)."""
    return weights * (scores >= threshold)


def nonempty(weights: Float32[Tensor, "R P"]) -> Bool[Tensor, " R"]:
    """Which regions have any patch left (method 5.2, 6.3)."""
    return weights.sum(1) > 0


def weighted_sum(features: Float32[Tensor, "P C"], weights: Float32[Tensor, "R P"]) -> Float32[Tensor, "R C"]:
    """Soft sum s_r = sum_p m_rp v_p (method 7.1)."""
    return weights @ features


def masked_mean(features: Float32[Tensor, "P C"], weights: Float32[Tensor, "R P"]) -> Float32[Tensor, "R C"]:
    """Mean over the patches with weight > 0: attention pooling with one constant key (method 7.3, 7.4)."""
    inside = (weights > 0).float()
    return (inside @ features) / inside.sum(1, keepdim=True).clamp(min=1)


def mean_over_crops(values: Float[Tensor, "T R C"], patches: Int[Tensor, "T R"]) -> Float32[Tensor, "R C"]:
    """What T crops say of each region, weighted by how many patches of it each has; zeros for none (method 7.7)."""
    shares = patches.float() / patches.sum(0).clamp(min=1)
    return torch.einsum("tr,trc->rc", shares, values.float())


@dataclass(frozen=True)
class PoolingRecipe:
    """The two switches in which the published CLIP programs differ (method 7.2), and the terms of CorrCLIP (7.7).

    PE and SigLIP 2 ignore the first two and have no further terms.
    unit_values: pool v / ||v|| instead of v while global patches are removed.
    mlp_residual: add MLP(LN2(y)) to the out-projected sum y.
    value, spatial, class_token: which terms are summed before the projection: of the last block's values, of the same
        values of the middle blocks' mean, and half of a class token that sees the region alone.
    """

    unit_values: bool
    mlp_residual: bool
    name: str = "own"
    value: bool = True
    spatial: bool = False
    class_token: bool = False

    def __post_init__(self) -> None:
        if not (self.value or self.spatial or self.class_token):
            raise InputError("got a recipe without any term, expected value, spatial or class_token")

    @property
    def further_terms(self) -> bool:
        """Whether anything but the last block's values is wanted."""
        return not self.value or self.spatial or self.class_token

    @classmethod
    def named(cls, name: "str | PoolingRecipe") -> "PoolingRecipe":
        """One of RECIPES by name; a PoolingRecipe passes through. InputError for an unknown name."""
        if isinstance(name, cls):
            return name
        if not isinstance(name, str) or name not in RECIPES:
            raise InputError(f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}")
        return RECIPES[name]


RECIPES = {
    "demo": PoolingRecipe(unit_values=True, mlp_residual=True, name="demo"),
    "semantic": PoolingRecipe(unit_values=False, mlp_residual=False, name="semantic"),
    "semantic-fp32": PoolingRecipe(unit_values=True, mlp_residual=False, name="semantic-fp32"),
    "corrclip": PoolingRecipe(False, False, "corrclip", spatial=True, class_token=True),
    "corrclip-no-value": PoolingRecipe(False, False, "corrclip-no-value", False, spatial=True, class_token=True),
    "corrclip-no-spatial": PoolingRecipe(False, False, "corrclip-no-spatial", class_token=True),
    "corrclip-no-class": PoolingRecipe(False, False, "corrclip-no-class", spatial=True),
}
