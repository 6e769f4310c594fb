"""From the probabilities of an image's boxes to its detections: chosen first, then scored (method 3.3)."""

from dataclasses import dataclass

from jaxtyping import Float, Float32, Int
from torch import Tensor

KEPT = 900  # (box, name) pairs of an image, chosen by probability
COUNTED = 300  # of these, by score: what the `lvis` package counts of an image


@dataclass(frozen=True)
class Detections:
    """D detections of an image, the best score first: box and category by index, score in [0, 1]."""

    box: Int[Tensor, " D"]
    category: Int[Tensor, " D"]
    score: Float32[Tensor, " D"]


def best_detections(
    probabilities: Float[Tensor, "R K"], detector: Float[Tensor, " R"] | None = None, kept: int = KEPT
) -> Detections:
    """The `kept` most probable of all R * K (box, name) pairs, scored, the best COUNTED of them.

    probabilities: of the K names of each box, in [0, 1]. detector: its score of each box, in [0, 1]: it multiplies
    the probability, but only after the choice. Without: the probability is the score. Of equals the first is taken,
    by box, then by name. Time and memory are O(R * K).
    """
    chosen = probabilities.float().flatten().sort(descending=True, stable=True)
    values, places = chosen.values[:kept], chosen.indices[:kept]
    box, category = places // max(probabilities.shape[1], 1), places % max(probabilities.shape[1], 1)
    scores = values if detector is None else values * detector.float()[box]
    scored = scores.sort(descending=True, stable=True)
    order = scored.indices[:COUNTED]
    return Detections(box[order], category[order], scored.values[:COUNTED])
