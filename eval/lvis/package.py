"""The `lvis` package (0.5.3), which does the counting, on a numpy that it does not know yet."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

import numpy as np

from textregion.errors import needs


@contextmanager
def lvis_package() -> Iterator[ModuleType]:
    """The module `lvis`, for as long as the body runs with `np.float`, which numpy 1.24 removed and it still uses.

    Its import sets up the root logger; that is undone. InputError when it is not installed.
    """
    restores = not hasattr(np, "float")
    handlers = list(logging.root.handlers)
    if restores:
        np.float = float
    try:
        with needs("AP by LVIS", layer="eval"):
            import lvis

        logging.root.handlers[:] = handlers
        logging.getLogger("lvis").setLevel(logging.ERROR)  # it warns of every list of results that is no file
        yield lvis
    finally:
        if restores:
            del np.float


def as_lvis(package: ModuleType, dataset: Mapping):
    """An `LVIS` object around a data set that is already in memory (its own constructor reads a file)."""
    made = package.LVIS.__new__(package.LVIS)
    made.logger = logging.getLogger("lvis")
    made.dataset = dict(dataset)
    made._create_index()
    return made
