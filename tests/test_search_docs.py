"""docs/search.md: its tour is run, in its order, on fewer scenes and in one process."""

import re
import shlex
from pathlib import Path

import pytest

from eval.prepare.tiny_lvis import main as draw
from textregion.cli.main import main

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "search.md").read_text(encoding="utf-8")
PREFIX = [".venv/bin/python", "-m"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def run(command: str) -> int:
    words = shlex.split(command)
    assert words[:2] == PREFIX
    if words[2] == "eval.prepare.tiny_lvis":
        return draw([word.replace("40", "3") for word in words[3:]])
    assert words[2] == "textregion"
    return main([*words[3:], *["--points_per_side", "5"] * ("--preset" in words)])


@pytest.mark.slow
def test_the_tour_runs(capsys):
    for command in blocks("bash")[0].splitlines():
        assert run(command) == 0, capsys.readouterr().err
        assert capsys.readouterr().out
    assert Path("outputs/search/hits.png").stat().st_size > 10_000
    names: dict = {}
    exec(compile(blocks("python")[0], "docs/search.md", "exec"), names)
    assert len(names["hits"]) == 5
    assert names["alike"][0].image == names["best"].image
    assert names["best"].mask.any()


def test_links_lead_somewhere():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in target]
    assert [target for target in targets if not (Path(__file__).parents[1] / "docs" / target).exists()] == []
