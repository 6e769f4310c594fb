"""docs/tour.ipynb runs, and what docs/hosting.md hosts starts."""

import ast
import io
import json
import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image
from starlette.testclient import TestClient

from textregion.web import server

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


def test_the_hosted_page_starts_and_answers(monkeypatch):
    monkeypatch.setenv("PORT", "0")
    answered = {}

    def run_app(app, listener):
        with TestClient(app, base_url="http://demo.example") as client:
            answered.update(
                host=listener.getsockname()[0], page=client.get("/").text, config=client.get("/config").json()
            )

    monkeypatch.setattr(server, "run_app", run_app)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "docs" / "hosting" / "app.py"), run_name="__main__")
    assert ended.value.code == 0
    assert answered["host"] == "0.0.0.0"
    assert "<title>TextRegion</title>" in answered["page"]
    names = {dependency["api_name"] for dependency in answered["config"]["dependencies"]}
    assert {"segment", "refer"} <= names


def test_the_dockerfile_copies_what_is_there():
    text = (ROOT / "docs" / "hosting" / "Dockerfile").read_text(encoding="utf-8")
    sources = [name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert sources
    assert [name for name in sources if not (ROOT / name).exists()] == []
    assert re.findall(r"^ARG (.*)$", text, re.MULTILINE) == ["TORCH=pinned"]
