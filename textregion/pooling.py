"""Who speaks for a region: patch weights, global-patch removal, weighted sums and means (method 5 to 7)."""

from jaxtyping import Bool, Float32
from torch import Tensor
from torch.nn import functional as F

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
