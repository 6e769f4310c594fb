"""A program's open_clip goes without transformers, and nothing else does."""

import importlib
import runpy
import sys

import pytest

import textregion.quick_start

STAND_IN = """
try:
    import transformers
except ImportError:
    transformers = None
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the module in an environment whose open_clip and transformers are stand-ins that are not imported yet."""
    (tmp_path / "open_clip.py").write_text(STAND_IN)
    (tmp_path / "transformers.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("open_clip", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # so that what is imported here is taken out again
        del sys.modules[name]
    return lambda: runpy.run_path(textregion.quick_start.__file__)


def test_open_clip_is_imported_without_transformers_which_can_be_imported_after(run):
    run()
    assert sys.modules["open_clip"].transformers is None
    assert "transformers" not in sys.modules
    assert importlib.import_module("transformers").__file__ is not None


@pytest.mark.parametrize("name", ["open_clip", "transformers"])
def test_what_is_imported_already_stays(run, name):
    found = importlib.import_module(name)
    before = dict(sys.modules)
    run()
    assert sys.modules[name] is found
    assert sys.modules.keys() == before.keys()
