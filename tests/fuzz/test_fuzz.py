"""Hundreds of bad inputs end well; and what ends badly is found."""

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from warm_start import run_warm

from tests.fuzz import report
from tests.fuzz.__main__ import main
from tests.fuzz.case import (
    EARLIER,
    FAILURE,
    FAST,
    OUTPUT,
    REFUSED,
    STOPPED,
    WORKS,
    Case,
    Judge,
    call,
    clear_line,
    damaged_files,
    judge_lines,
)
from textregion.errors import InputError
from textregion.labels import LabelPrompts
from textregion.tiny.scenes import draw_scene

ROOT = Path(__file__).parents[2]
CASES = 252


@pytest.mark.slow
def test_hundreds_of_bad_inputs_work_or_end_in_one_clear_line(tmp_path):
    """The command itself, in a process of its own: without the tests' run-time checks of types."""
    code = "import faulthandler, runpy; faulthandler.enable(); runpy.run_module('tests.fuzz', None, '__main__', True)"
    done = run_warm(["-c", code, "--count", str(CASES), "--output", str(tmp_path)], ROOT, os.environ)
    assert (tmp_path / "report.json").is_file(), f"exit code {done.returncode}: {done.stderr[-4000:]}"
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert [f"{r['name']}: {r['message']}" for r in results if r["outcome"] == FAILURE] == []
    assert done.returncode == 0
    outcomes = [result["outcome"] for result in results]
    assert len(outcomes) == CASES
    assert outcomes.count(WORKS) > 50
    assert outcomes.count(REFUSED) > 75
    assert f"| all {CASES} |" in done.stdout


@pytest.mark.parametrize(
    ("code", "error", "outcome"),
    [
        (0, "", WORKS),
        (0, "images:  33%|███▎      | 1/3 [00:01<00:03]\rwarning: a label is cut\n", WORKS),
        (2, "error: no image file at a.png\n", REFUSED),
        (1, "skipped: a.png is damaged\nerror: 1 of 2 images could not be labelled\n", REFUSED),
        (2, "skipped: a.png is damaged\nerror: 2 of 2 images could not be labelled\n", REFUSED),
        (130, "stopped; what was already written is kept\n", STOPPED),
        (0, "something else\n", FAILURE),
        (1, "Traceback (most recent call last):\n  File\nValueError: x\n", FAILURE),
        (2, "", FAILURE),
        (2, "error: one thing and\nanother\n", FAILURE),
        (1, "error: no image file at a.png\n", FAILURE),
        (2, "error: no image \x1b[31mfile\n", FAILURE),
        (2, "error: no\n", FAILURE),
        (130, "", FAILURE),
    ],
)
def test_lines_are_judged(code, error, outcome):
    assert judge_lines(code, error)[0] == outcome


def test_a_clear_line_is_not_endless():
    assert clear_line("x" * 1000)[0] == REFUSED
    assert clear_line("x" * 2000)[0] == FAILURE


@pytest.fixture
def judge(tmp_path):
    """A judge and an image in a folder of the test's own, which the cases may damage."""
    folder = tmp_path / "judge"
    folder.mkdir()
    Image.fromarray(draw_scene(1, 64).image).save(folder / "a.png")
    return Judge(folder, (*FAST, "--image", str(folder / "a.png"), "--labels", "sky"))


def raising(error: Exception):
    def call(segmenter):
        raise error

    return call


def test_what_ends_badly_is_found(judge):
    def damage(segmenter) -> None:
        next(judge.earlier.rglob("*.png")).write_bytes(b"gone")

    def left_over(segmenter) -> None:
        (judge.folder / "output" / "left_over").mkdir()
        (judge.folder / "output" / "left_over" / "a.png").write_bytes(b"half")

    outcomes = {
        "fine": (lambda segmenter: None, WORKS),
        "refused": (raising(InputError("got 3, expected 4")), REFUSED),
        "other error": (raising(ValueError("shapes")), FAILURE),
        "not clear": (raising(InputError("no")), FAILURE),
        "damage": (damage, FAILURE),
        "left_over": (left_over, FAILURE),
    }
    for name, (use, outcome) in outcomes.items():
        assert judge.judge(Case("x", name, None, use)).outcome == outcome, name
    assert judge.judge(Case("x", "should not work", None, lambda s: None, (REFUSED,))).outcome == FAILURE
    assert "ValueError: shapes" in judge.judge(Case("x", "trace", None, raising(ValueError("shapes")))).message


def test_a_command_line_goes_to_its_own_folder_and_is_told(judge):
    picture = str(judge.folder / "a.png")
    good = judge.judge(
        Case("x", "good", (*FAST, "--image", picture, "--labels", "sky", "--output", OUTPUT), finished=1)
    )
    bad = judge.judge(Case("x", "bad", (*FAST, "--image", "absent.png", "--labels", "sky", "--output", EARLIER)))
    assert (good.outcome, bad.outcome) == (WORKS, REFUSED), (good.message, bad.message)
    assert not (judge.folder / "output" / "good").exists()
    assert "absent.png" in report.reproduction(bad, 3, Path("f"))
    assert "--seed 3" in report.reproduction(bad, 3, Path("f"))
    assert report.table([good, bad])[-1] == "| all 2 | 1 | 1 | 0 | 0 | 0 |"


def test_files_that_are_not_whole(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / ".a.json.x").write_text("half")
    (tmp_path / "b.json").write_text("")
    (tmp_path / "c.json").write_text("{}")
    assert [Path(path).name for path in damaged_files(tmp_path)] == [".a.json.x", "a.png", "b.json"]


def parsed(labels: list[str]) -> None:
    prompts = LabelPrompts.parse(labels)
    assert len(prompts.names) == len(labels)
    assert all(query.encode() and "\n" not in query for query in prompts.queries)


@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=9), max_size=4))
def test_any_text_is_a_label_or_refused_in_one_line(labels):
    outcome, message = call(lambda _: parsed(labels), nullcontext, None)
    assert outcome in (WORKS, REFUSED), message


@given(st.text(st.characters(exclude_categories=()), max_size=3000))
def test_any_message_becomes_one_printable_line(message):
    shown = str(InputError(message))
    assert shown.isprintable() or shown == ""
    if len(message) < 1000 and message.isprintable():
        assert shown == message


def test_unknown_case_is_one_line(tmp_path, capsys):
    assert main(["--only", "no such case", "--corpus", "labels", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no case is called 'no such case'")
