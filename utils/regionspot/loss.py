"""What training minimises (RegionSpot 2.1)."""

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F

ALPHA = 0.25
GAMMA = 2


def focal_loss(logits: Float[Tensor, "*rows K"], labels: Int[Tensor, "*rows"]) -> Float32[Tensor, "*rows"]:
    """Sigmoid focal loss of every box, summed over the class names.

    logits: scale * cosine with every name's text. labels: 0..K-1. Elementwise a_t (1 - p_t)^2 BCE with the one-hot
    target, a_t = 0.25 for the box's own class and 0.75 for the others. There is no background class.
    """
    logits = logits.float()
    target = F.one_hot(labels, logits.shape[-1]).to(logits)
    missed = torch.where(target > 0, 1 - logits.sigmoid(), logits.sigmoid())
    weight = torch.where(target > 0, ALPHA, 1 - ALPHA)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (weight * missed**GAMMA * entropy).sum(-1)
