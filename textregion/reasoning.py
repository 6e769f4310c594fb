"""One described thing against everything else, as reasoning segmentation asks (method 8.5, 11)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from textregion.labeling import label_pixels
from textregion.text import LabelPrompts
from textregion.types import RegionTokens, Segmentation, as_labels

ANYTHING_BUT = "background, anything but {target}"
ANY_OTHER_THING = "background, any other thing"
TARGET = 1  # its label in the result; 0 is everything else


def target_prompts(target: str, others: str | Sequence[str] | None = None) -> LabelPrompts:
    """Two labels: everything else, then the target, in lower case as published.

    others: the words for everything else, in which {target} stands for the target; several are synonyms.
    Default: "background, anything but {target}". InputError for blank words.
    """
    as_labels([target])
    others = [others] if isinstance(others, str) else as_labels(others or [ANYTHING_BUT])
    words = target.lower()
    other_words = [other.replace("{target}", words) for other in others]
    return LabelPrompts((other_words[0], target), (*other_words, words), (*(0 for _ in other_words), TARGET))


def label_target(regions: RegionTokens, text: Float[Tensor, "Q D"], prompts: LabelPrompts) -> Segmentation:
    """Label 1 where the target is, 0 elsewhere, at the image's own size.

    text: embeddings of prompts.queries. Pixels outside all regions get logit 1 for the first query and 0 for the
    others. Labels are decided at the masks' full size and brought to the image's by nearest neighbour.
    """
    uncovered = torch.zeros(len(prompts.queries), device=regions.tokens.device)
    uncovered[0] = 1
    masks = regions.masks
    result = label_pixels(regions.logits(text), masks, prompts, masks.mask_size, uncovered)
    return Segmentation(
        *(nearest(m, masks.image_size) for m in (result.label_map, result.confidence, result.region_map)),
        result.labels,
    )


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) of any type to (H, W): pixel i takes the value at floor(i * h / H), as cv2 and torch do."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, values.shape, strict=True))
    return values[rows[:, None], columns]
