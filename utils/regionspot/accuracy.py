"""How many boxes a head recognises, and how many when SAM's tokens are dealt out among all boxes at random.

The second figure says what CLIP's map alone gives away (which things are in the image, not which is where): only
the gap between both shows that the head uses the tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor
from tqdm import tqdm

from textregion.regionspot.model import RegionSpot
from utils.regionspot.token_cache import TokenCache


@dataclass(frozen=True)
class Score:
    """boxes: how many. names: K. accuracy, shuffled: share recognised, with their own and with shuffled tokens."""

    boxes: int
    names: int
    accuracy: float
    shuffled: float

    def __str__(self) -> str:
        return (
            f"{100 * self.accuracy:.1f} % of {self.boxes} boxes recognised among {self.names} names, "
            f"{100 * self.shuffled:.1f} % with tokens shuffled between images (chance {100 / self.names:.1f} %)"
        )


@torch.inference_mode()
def score(model: RegionSpot, cache: TokenCache, text: Float32[Tensor, "K E"], seed: int = 0) -> Score:
    """Top-1 accuracy on the boxes of a filled cache, the boxes of an image together, as in use.

    text: unit vectors of the data set's names. seed: of the shuffling.
    """
    images = cache.usable()
    tokens = [cache.read(image).tokens for image in images]
    order = torch.randperm(sum(map(len, tokens)), generator=torch.Generator().manual_seed(seed))
    dealt = torch.cat(tokens)[order].split([len(own) for own in tokens])
    text = text.to(model.backbone.device)
    right = torch.zeros(2, dtype=torch.long)
    for image, *choices in tqdm(list(zip(images, tokens, dealt, strict=True)), "scoring", disable=None, leave=False):
        kept = cache.read(image).clip_map
        clip_map = model.clip_map(cache.dataset.path(image)) if kept is None else kept.float().to(text.device)
        for place, own in enumerate(choices):
            found = (model.embed(own.to(text.device), clip_map) @ text.T).argmax(-1).cpu()
            right[place] += (found == torch.from_numpy(image.labels)).sum()
    shares = (right / len(order)).tolist()
    return Score(len(order), len(text), *shares)
