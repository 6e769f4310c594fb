"""From the probabilities of boxes' names to detections, and from these to average precision as LVIS counts it.

The counting is done by the `lvis` package (0.5.3), on a numpy that it does not know yet.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
from jaxtyping import Float, Float32, Int
from torch import Tensor

from eval.lvis.data import FREQUENCIES, Annotations
from textregion.errors import needs

KEPT = 900  # (box, name) pairs of an image, chosen by probability
COUNTED = 300  # of these, by score: what the `lvis` package counts of an image
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
KINDS = {"box": "bbox", "mask": "segm"}
ABSENT = float("nan")


class Detections(NamedTuple):
    """D detections of an image, the best score first: box and category by index, score in [0, 1]."""

    box: Int[Tensor, " D"]
    category: Int[Tensor, " D"]
    score: Float32[Tensor, " D"]


def best_detections(
    probabilities: Float[Tensor, "R K"], detector: Float[Tensor, " R"] | None = None, kept: int = KEPT
) -> Detections:
    """The `kept` most probable of all R * K (box, name) pairs, scored, the best COUNTED of them (method 3.3).

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


def average_precision(
    annotations: Annotations, detections: Sequence[dict], image_ids: Collection[int], kind: str = "box"
) -> dict[str, float]:
    """{"AP": …, "AP50": …, …, "APf": …} in percent; NaN where nothing of that size or frequency is annotated.

    detections: LVIS results, {"image_id", "category_id", "score", and "bbox" (xywh), "segmentation" (RLE)}; none
    is a normal result, and gives 0. kind: "box" or "mask". image_ids: the images that count. At most 300 detections
    of an image count. Time and memory grow with images * categories, every pair of which the package holds, and with
    the detections: with 1203 names and 300 detections an image, 24 ms and 1.1 MB an image and kind (1000 and 2000
    images, 2 cores of an AMD EPYC), so about 8 minutes and 22 GB a kind for LVIS val, most of it given back after.
    """
    if not image_ids:
        return dict.fromkeys(METRICS, ABSENT)
    with lvis_package() as package:
        dataset = annotations.dataset(image_ids)
        images_only = _as_lvis(package, {**dataset, "annotations": []})  # all that results are checked against
        wanted = set(image_ids)
        unused = "segmentation" if kind == "box" else "bbox"  # the package takes a box where there is one
        counted = [{k: v for k, v in one.items() if k != unused} for one in detections if one["image_id"] in wanted]
        if not counted:  # the package cannot read an empty list; this one is of no known category, so it does not count
            first = dataset["images"][0]["id"]
            counted = [{"image_id": first, "category_id": -1, "bbox": [0, 0, 1, 1], "score": 0.0}]
        results = package.LVISResults(images_only, counted)
        evaluation = package.LVISEval(_as_lvis(package, dataset), results, KINDS[kind])
        evaluation.run()
    percent = {name: 100 * float(evaluation.results[name]) for name in METRICS}
    groups = {category.frequency for category in annotations.categories}
    absent = {f"AP{letter}" for letter in FREQUENCIES if letter not in groups}  # else -1 where there is nothing
    return {name: ABSENT if name in absent or value < 0 else value for name, value in percent.items()}


@contextmanager
def lvis_package() -> Iterator[ModuleType]:
    """The module `lvis`, for as long as the body runs with `np.float`, which numpy 1.24 removed and it still uses.

    Its import sets up the root logger; that is undone. InputError when it is not installed.
    """
    handlers = list(logging.root.handlers)
    with patch.object(np, "float", float, create=True):
        with needs("AP by LVIS", layer="eval"):
            import lvis

        logging.root.handlers[:] = handlers
        logging.getLogger("lvis").setLevel(logging.ERROR)  # it warns of every list of results that is no file
        yield lvis


def _as_lvis(package: ModuleType, dataset: Mapping):
    """An `LVIS` object around a data set that is already in memory (its own constructor reads a file)."""
    made = package.LVIS.__new__(package.LVIS)
    made.logger = logging.getLogger("lvis")
    made.dataset = dict(dataset)
    made._create_index()
    return made
