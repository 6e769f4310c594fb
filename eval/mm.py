# ruff: noqa: F401 (what is used of mmseg is taken from here)
"""mmseg, made importable beside mmcv-lite. What is used of it is taken from here; `mmseg.apis` works after it.

mmseg (1.2.2; also its fork onedl-mmsegmentation 1.4.2) imports `mmcv.ops`, whose functions live in a compiled module
that mmcv-lite lacks and that cannot be built against current torch. None of them is used here, so a stand-in is there
while mmseg is imported, and only then. An mmcv with its compiled module is left alone. mmengine 0.10.7 asks
`pkgutil.find_loader`, which Python 3.14 no longer has, whether the compiled module is there.
"""

import importlib.util
import pkgutil
import sys
import types
import warnings
from collections.abc import Callable
from contextlib import ExitStack

COMPILED = "mmcv._ext"


def _absent(name: str) -> Callable:
    """A function of the compiled module that says, when it is called, why it is not there."""
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*_: object, **__: object) -> None:
        raise RuntimeError(f"mmcv.ops needs {name} of the compiled mmcv; mmcv-lite is installed")

    return absent


if not hasattr(pkgutil, "find_loader"):
    pkgutil.find_loader = importlib.util.find_spec

with ExitStack() as stack:
    if COMPILED not in sys.modules and importlib.util.find_spec(COMPILED) is None:
        sys.modules[COMPILED] = stand_in = types.ModuleType(COMPILED)
        stand_in.__getattr__ = _absent
        stack.callback(sys.modules.pop, COMPILED)
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    import mmseg.engine
    import mmseg.models
    import mmseg.visualization
    from mmseg.datasets import PascalContextDataset
    from mmseg.evaluation import IoUMetric
    from mmseg.registry import DATA_SAMPLERS, DATASETS, LOOPS, METRICS, MODELS, TRANSFORMS
    from mmseg.structures import SegDataSample
