"""docs/methods.md and docs/region-memory.md: their commands and Python are run, cheaply and in one process."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tiny_transformers
from index_worlds import write_scenes
from PIL import Image

from eval.bench.memory import main as bench
from eval.semantic_cli import all_parser, combinations
from textregion.cli.main import main as textregion
from textregion.concepts import SAM3_CONCEPTS
from utils.tiny.options import main as options_table

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ("methods", "region-memory")
PROGRAM = re.compile(r"^(?: {4})?\.venv/bin/((?:textregion|python) .+)$", re.MULTILINE)
QUICK = ["--masks", "slic", "--resize_method", "resize", "--templates", "1", "--device", "cpu"]
SMALL = ["--rows", "211", "--width", "16", "--regions", "5", "--images", "4", "--labels", "3", "--neighbours", "2"]


def commands(page: str) -> list[str]:
    return PROGRAM.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the files that the pages name."""
    write_scenes(tmp_path / "unlabelled", [3])
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (61, 83, 3), np.uint8)).save(tmp_path / "photo.jpg")
    tiny_transformers.sam3_concepts().save_pretrained(tmp_path / "sam3")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> int:
    """The same program with the tiny models; of the table of options the flags alone, which take minutes."""
    words = shlex.split(command)
    if words[0] == "textregion":
        given = ["tiny" if word.startswith("clip-vit-") else word for word in words[1:]]
        return textregion([*given, *(QUICK if SAM3_CONCEPTS not in words else [])])
    if words[:4] == ["python", "-m", "eval.bench", "memory"]:
        return bench([*words[4:], *SMALL])
    if words[:3] == ["python", "-m", "utils.tiny.options"]:
        with pytest.raises(SystemExit) as ended:
            options_table([*words[3:], "--help"])
        return ended.value.code
    assert words[:2] == ["python", "eval_all_semantic.py"]
    rows = combinations(all_parser().parse_args(words[2:]))
    return 0 if [row.preset for row in rows].count(SAM3_CONCEPTS) == 1 and len(rows) == 17 else 1


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_run(page, folder, capsys):
    found = commands(page)
    assert len(found) >= 3
    for command in found:
        assert run(command) == 0, f"{command}: {capsys.readouterr().err}"
    if page == "methods":
        (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "methods.md").read_text(encoding="utf-8"), re.DOTALL)
        names: dict = {}
        exec(compile(block, "docs/methods.md", "exec"), names)
        assert names["result"].label_map.shape == (61, 83)
        assert names["result"].labels == ("background", "dog", "sofa")
