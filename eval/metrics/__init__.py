"""Metrics of label maps beyond mIoU, mAcc and aAcc, one file each; every module here is found by itself."""

from eval.metrics.base import COUNT_METRICS, register_metric
from textregion.plugins import import_all

import_all(__name__, __path__, "textregion.metrics")

__all__ = ["COUNT_METRICS", "register_metric"]
