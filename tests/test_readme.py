"""All that README.md and the pages of docs that need no download show is run: commands, Python, named paths."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data
from warm_start import WARM, run_warm

from eval import sweep
from textregion.tiny.scenes import draw_scene

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("programs", "models", "tiny-world", "troubleshooting")  # what README leads to and moves out
ALL = "\n".join([README, *((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in PAGES)])
EXPORTS = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
RESEARCH = (ROOT / "docs" / "research.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str = README) -> list[str]:
    """Every line of every bash block and every command within the text, without the set-up the tests already run in."""
    lines = [line.split(" #")[0].strip() for block in blocks("bash", text) for line in block.splitlines()]
    lines += re.findall(r"`(\.venv/bin/python [^`]+)`", text)
    return list(dict.fromkeys(re.sub(r"^bash setup_env.sh (--tests )?&& ", "", line) for line in lines if line))


@pytest.fixture
def folder(tmp_path):
    """A working folder of the test's own, with the files that the README's examples name."""
    folder = tmp_path / "readme"
    folder.mkdir()
    Image.fromarray(data.chelsea()).resize((151, 101)).save(folder / "photo.jpg")
    Image.fromarray(draw_scene(3).image).save(folder / "scene.png")
    (folder / "queries.yaml").write_text("photo.jpg: [wood, snow]\n")
    (folder / "labels.txt").write_text("wood\nsnow\n")
    (folder / "photos").mkdir()
    Image.fromarray(data.coffee()).resize((131, 97)).save(folder / "photos" / "coffee.png")
    return folder


def run(command: str, folder: Path, **environment) -> subprocess.CompletedProcess:
    """Run a README command from `folder` with this Python and the checkout's programs."""
    python, *words = shlex.split(command)
    assert python == ".venv/bin/python"
    words = [str(ROOT / word) if (ROOT / word).is_file() and word.endswith(".py") else word for word in words]
    return run_warm(words, folder, {**os.environ, "PYTHONPATH": str(ROOT), **environment})


def cheap(command: str) -> str:
    """The same program, quick: the tiny preset instead of real weights, pytest only collecting."""
    if "pytest" in command:
        target = next((word for word in command.split() if word.startswith("tests/")), "tests/test_setup.py")
        rest = " ".join(word for word in command.split() if not word.startswith("tests/"))
        return f"{rest} --collect-only -q -c {ROOT / 'pyproject.toml'} {ROOT / target}"
    if "tiny_tasks --output" in command:
        return f"{command} --scenes 1"
    if "tiny_lvis --output" in command:
        return f"{command} --scenes 2"
    if any(data in command for data in ("cfg_tiny", "data/tiny_tasks", "eval.lvis")):
        return f"{command} --limit 1"
    if command.endswith("--serve") or "utils.screenshot" in command:
        return f"{command} --help"  # tests/utils/web starts both for real
    if command.endswith("tests.fuzz"):
        return f"{command} --count 6 --corpus labels"
    if "tests.soak" in command:
        return command.replace("10000", "12 --warmup 2 --size 64 --scale 96 96 --max-growth 99999 --max-slowdown 99")
    needs_weights = "--image" in command and "--preset" not in command and "--help" not in command
    return f"{command} --preset tiny" if needs_weights and "TextRegionSegmenter.py" in command else command


def test_the_two_commands_are_exactly_these():
    assert "bash setup_env.sh && .venv/bin/python TextRegionSegmenter.py\n" in blocks("bash")[0]
    assert "bash setup_env.sh --tests && .venv/bin/python -m pytest\n" in "".join(blocks("bash"))


@pytest.mark.slow
def test_commands_run_in_the_order_of_the_pages(folder):
    """One test, because later commands read what earlier ones have written. All are tried, also after a failure."""
    failed = {}
    for command in commands(ALL):
        done = run(cheap(command), folder)
        if done.returncode != 0 or not done.stdout:
            failed[command] = f"exit code {done.returncode}, printed {done.stdout!r}, said {done.stderr}"
    assert failed == {}


def expand(command: str, folder: Path) -> str:
    """The command with its patterns replaced by the paths that they match, as a shell does."""
    words = [sorted(path.relative_to(folder) for path in folder.glob(w)) or [w] for w in shlex.split(command)]
    return shlex.join(str(word) for matches in words for word in matches)


@pytest.mark.slow
def test_the_research_page_from_sweep_to_figure(folder, monkeypatch, capsys):
    """One test: each step reads what the one before has written. The drawn world is made smaller.

    The sweep works in this process, so that its runs, which are processes of their own, have their imports behind them.
    """
    monkeypatch.setattr(sweep, "subprocess", WARM)
    grid, published = blocks("yaml", RESEARCH)
    small = "benchmark.scenes: 2\n  benchmark.size: 64\n  model.scale: [192, 96]"
    assert "benchmark.scenes: 12" in grid
    assert "points_per_side: [4, 8, 16]" in grid
    grid = grid.replace("benchmark.scenes: 12", small).replace("[4, 8, 16]", "[4, 16]")
    (folder / "grid.yaml").write_text(grid)
    (folder / "published.yaml").write_text(published)
    for command in [*commands(RESEARCH), ".venv/bin/python -m eval.collect out/ --published published.yaml"]:
        if "-m eval.sweep" in command and "--dry-run" not in command:
            with monkeypatch.context() as patch:
                patch.chdir(folder)
                assert sweep.main(command.split()[3:]) == 0, f"{command}: {capsys.readouterr().err}"
            assert capsys.readouterr().out
            continue
        done = run(expand(command, folder), folder)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout
    assert len((folder / "out/table.csv").read_text().splitlines()) == 1 + 4
    assert (folder / "out/compare/differences.png").is_file()
    monkeypatch.chdir(folder)
    figure = next(block for block in blocks("python", RESEARCH) if "pyplot" in block)
    names: dict = {}
    exec(compile(figure, "docs/research.md", "exec"), names)
    names["pyplot"].close("all")
    assert (folder / "out/points.pdf").stat().st_size > 1000


@pytest.mark.slow
def test_the_page_of_exports(folder):
    """Its commands in their order, with the tiny models and quick masks."""
    for command in commands(EXPORTS):
        done = run(f"{cheap(command)} --masks slic --scale 96 96", folder)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (folder / "outputs" / "dataset" / "labels" / "coffee.txt").read_text()
    assert sorted(path.name for path in (folder / "sets").iterdir()) == [".records", "dataset"]


def test_photo_command_without_weights_says_what_it_wants(folder):
    command = next(c for c in commands() if "--image photo.jpg" in c)
    done = run(command, folder)
    assert done.returncode == 2
    assert done.stderr.startswith("error: weights not found: ")
    assert done.stderr.count("\n") == 1


def test_python_block_runs_and_does_what_its_comments_say(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(compile("\n".join(blocks("python")), "README.md", "exec"), names)
    regions, scores = names["regions"], names["scores"]
    assert scores.shape == (len(regions), 2)
    assert np.allclose(regions.tokens.norm(dim=1), 1, atol=1e-5)
    assert names["result"].labels == ("blue circle", "sky")
    with Image.open(folder / "labels.png") as image:
        assert image.size == (256, 256)


def test_named_paths_exist():
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[\w./-]+`(?:, `[\w./-]+`)*) \| .* \|$", contributing, re.MULTILINE)
    paths = [path for row in rows for path in re.findall(r"`([^`]+)`", row)]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
