"""The registry of metrics, and the worked example of docs/research.md as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

from eval.journalled_iou import mean_iou
from eval.metrics import COUNT_METRICS, register_metric
from eval.results import ROOT

PATH = "eval/metrics/frequency_weighted.py"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/research.md").read_text(encoding="utf-8"), re.DOTALL)
EXAMPLE = next(block for block in BLOCKS if block.startswith(f"# {PATH}\n"))
COUNTS = np.array([[6, 2, 0], [1, 1, 0], [0, 0, 0]])


@pytest.fixture(autouse=True)
def registry():
    """The registry as it was, once the test is over."""
    before = dict(COUNT_METRICS)
    yield
    COUNT_METRICS.clear()
    COUNT_METRICS.update(before)


def test_the_example_stands_beside_the_others():
    plain, _ = mean_iou(COUNTS, ("a", "b", "c"))
    module = ModuleType("frequency_weighted")
    exec(compile(EXAMPLE, PATH, "exec"), module.__dict__)
    summary, _ = mean_iou(COUNTS, ("a", "b", "c"))
    assert summary.pop("fwIoU") == pytest.approx(100 * (8 * 6 / 9 + 2 * 1 / 4) / 10)
    assert summary == plain
    assert np.isnan(COUNT_METRICS["fwIoU"](np.zeros((3, 3), int)))


@pytest.mark.parametrize("name", ["mIoU", "aAcc", "mine"])
def test_a_name_is_given_once(name):
    register_metric("mine")(lambda counts: 1.0)
    with pytest.raises(ValueError, match=f"there is a metric '{name}' already"):
        register_metric(name)(lambda counts: 2.0)


def test_a_file_among_the_others_is_found_without_any_edit(tmp_path):
    shutil.copytree(ROOT / "eval", tmp_path / "eval", copy_function=os.symlink)
    (tmp_path / PATH).write_text(EXAMPLE, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT)))}
    command = [sys.executable, "-c", "from eval.metrics import COUNT_METRICS; print(*COUNT_METRICS)"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == "fwIoU\n", done.stderr
