"""docs/tour.ipynb runs, all of it but the cell that asks for real weights."""

import ast
import io
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TOUR = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))


def run_cell(cell: dict, names: dict) -> object:
    """Run a cell as a notebook does; returns the value of its last line where that is an expression."""
    code = ast.parse("".join(cell["source"]), f"cell {cell['id']}")
    last = code.body.pop() if isinstance(code.body[-1], ast.Expr) else None
    exec(compile(code, f"cell {cell['id']}", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), f"cell {cell['id']}", "eval"), names)


def test_the_tour(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.get_fignums())))
    names: dict = {}
    values = {cell["id"]: run_cell(cell, names) for cell in TOUR["cells"] if cell["cell_type"] == "code"}
    plt.close("all")
    assert shown == [1]
    assert repr(values["encode"]).startswith("RegionTokens(")
    for cell in ("alone", "unlabelled", "own"):
        with Image.open(io.BytesIO(values[cell]._repr_png_())) as picture:
            assert picture.size == (256, 256)
    right, bare, found, cosines, left_out = capsys.readouterr().out.splitlines()
    assert float(right.split("%")[0]) > 80
    assert float(bare.split("%")[0]) > 5
    assert found.startswith("GroundingResult(region ")
    assert cosines.startswith("torch.Size([")
    assert left_out == "left out: real weights were not asked for"


def test_a_cell_that_fails_fails():
    with pytest.raises(ZeroDivisionError):
        run_cell({"id": "x", "source": ["a = 1\n", "a / 0"]}, {})


def test_the_notebook_is_one_without_outputs():
    assert (TOUR["nbformat"], TOUR["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in TOUR["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)
    for cell in TOUR["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        assert set(cell) == (keys if cell["cell_type"] == "markdown" else keys | {"execution_count", "outputs"})
        assert cell.get("outputs", []) == []
    assert "colab-badge.svg" in "".join(TOUR["cells"][0]["source"])
