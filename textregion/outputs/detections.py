"""Results as `supervision.Detections`, for that package's annotators, trackers and filters. An optional dependency."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from textregion.errors import needs
from textregion.outputs.annotations import region_scores
from textregion.outputs.region_crops import crop_regions
from textregion.text import LabelPrompts
from textregion.types import RegionTokens

if TYPE_CHECKING:
    from supervision import Detections
else:
    Detections = Any  # the package is imported only when it is asked for


def detections(
    masks: Sequence[Bool[np.ndarray, "H W"]],
    size: tuple[int, int],
    confidence: Sequence[float],
    class_id: Sequence[int],
    names: Sequence[str],
    data: dict[str, Any] | None = None,
) -> Detections:
    """N masks of one image as Detections; boxes are the masks' own, (0, 0, 0, 0) for an empty one.

    names: of all classes, by `class_id`. data: further columns of N values.
    """
    with needs("to_supervision", extra="supervision"):
        import supervision
    stacked = np.stack(masks) if len(masks) else np.zeros((0, *size), bool)
    columns = {"class_name": np.array([names[i] for i in class_id], str), **(data or {})}
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(stacked, "exclusive").astype(np.float32).reshape(-1, 4),
        mask=stacked,
        confidence=np.array(confidence, np.float32),
        class_id=np.array(class_id, int),
        data=columns,
    )


def region_detections(
    tokens: RegionTokens, text: Float[Tensor, "Q D"], labels: "Sequence[str] | LabelPrompts"
) -> Detections:
    """One detection per region with its best label (`RegionTokens.to_supervision`)."""
    prompts, size = LabelPrompts.parse(labels), tuple(tokens.masks.image_size)
    cosine, probability = region_scores(tokens, text, prompts)
    best, masks = cosine.argmax(1), []
    for crop in crop_regions(tokens.masks):
        masks.append(np.zeros(size, bool))
        crop.paint(masks[-1], True)
    each = np.arange(len(tokens))
    data = {"cosine": cosine[each, best], "predicted_iou": tokens.masks.predicted_iou.cpu().numpy(), "region": each}
    return detections(masks, size, probability[each, best].tolist(), best.tolist(), prompts.names, data)
