"""What all programs of the checkout that are started as modules have in common."""

import subprocess
import sys

import pytest

from eval.results import ROOT

MODULES = [
    *("eval.lvis", "eval.sweep", "eval.collect", "eval.compare", "eval.prepare", "eval.bench"),
    *("eval.prepare.tiny_lvis", "eval.prepare.tiny_tasks", "utils.regionspot.train", "utils.regionspot.compare"),
    *("utils.tiny.train", "utils.tiny.evaluate"),
]
# Starts a program as `python -m` does; Ctrl-C comes while it imports numpy.
INTERRUPTED = """
import runpy, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", MODULES)
def test_ctrl_c_while_a_program_is_imported_is_one_line(module):
    started = [sys.executable, "-c", INTERRUPTED, module, "--help"]
    done = subprocess.run(started, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped; nothing was begun\n")
