"""The registry of metrics of label maps: functions of the counts of (true class, predicted class)."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

Counts = Int[np.ndarray, "K K"]
Metric = Callable[[Counts], float]
COUNT_METRICS: dict[str, Metric] = {}
BUILT_IN = ("mIoU", "mAcc", "aAcc")


def register_metric(name: str) -> Callable[[Metric], Metric]:
    """Function decorator: report `name` beside mIoU, mAcc and aAcc in every segmentation benchmark.

    The function gets the (K, K) int64 pixel counts of all images, rows by true and columns by predicted class, and
    returns one number, NaN where there is nothing to measure. ValueError for a name that is taken.
    """

    def add(metric: Metric) -> Metric:
        if name in (*BUILT_IN, *COUNT_METRICS):
            raise ValueError(f"there is a metric {name!r} already")
        COUNT_METRICS[name] = metric
        return metric

    return add
