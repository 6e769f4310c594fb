"""Data sets for other tools, one file per format; every module here is found by itself."""

from textregion.outputs.export.base import EXPORTERS, Dataset, DatasetImage, LabelledObject, register_exporter
from textregion.plugins import import_all

import_all(__name__, __path__, "textregion.exporters")

__all__ = ["EXPORTERS", "Dataset", "DatasetImage", "LabelledObject", "register_exporter"]
