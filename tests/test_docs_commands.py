"""Commands of pages that need data, weights, many machines or hours: every program takes the flags it is shown with."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from textregion.cli.command_line import Parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("benchmarks", "performance", "tasks")
LAUNCHERS = re.compile(r"^(srun [^.]*)?\.venv/bin/(python|torchrun --nproc_per_node[ =]\d+) ")


class FlagsReadError(Exception):
    """The program has taken its flags, and is not run."""


def commands(page: str) -> list[str]:
    """Lines of the page's fenced blocks that start a program of ours, continued lines joined."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash)?\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0] for line in lines if LAUNCHERS.match(line)]


def parse(command: str) -> None:
    """Let the program read its words."""
    first, *words = shlex.split(LAUNCHERS.sub("", command))
    if first == "-m":
        module, name = words.pop(0), "main"
    else:  # a file of the top level, which names its module and function
        found = re.search(r"start\((.*)\)", (ROOT / first).read_text(encoding="utf-8"))
        assert found is not None
        _, module, *more = re.findall(r'"([^"]+)"', found[1])
        name = more[0] if more else "main"
    if module == "eval.bench":
        module = "eval.bench.program"
    getattr(import_module(module), name)(words)


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_is_known(page, monkeypatch):
    def parsed(parser, words=None, namespace=None):
        _, unknown = parser.parse_known_args(words, namespace)
        assert unknown == []
        raise FlagsReadError

    monkeypatch.setattr(Parser, "parse_args", parsed)
    found = commands(page)
    assert len(found) >= 4
    for command in found:
        with pytest.raises(FlagsReadError):
            parse(command)
