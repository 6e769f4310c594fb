"""The wheel, what it asks for, and the direction of imports."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from email import message_from_bytes
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import networkx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import textregion

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def imported(path: Path) -> set[str]:
    """The packages that a file imports anywhere, by their name as distributions; ours and Python's own left out."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    packages = {module.partition(".")[0] for module in modules} - {"textregion"} - sys.stdlib_module_names
    return {canonicalize_name(distributions().get(package, [package])[0]) for package in packages}


@cache
def distributions() -> Mapping[str, list[str]]:
    """{package: distributions}, of all that is installed; half a second."""
    return packages_distributions()


def test_the_library_declares_what_it_imports_and_no_more():
    found = set().union(*(imported(path) for path in (ROOT / "textregion").rglob("*.py")))
    optional = set().union(*(names(extra) for extra in PROJECT["optional-dependencies"].values()))
    comes_with_gradio = {"fastapi", "uvicorn", "starlette"}
    # Imported by their names alone: sam2's classes and segment-anything's modules; cv2 has two distributions.
    by_name = {"sam2", "segment-anything", "opencv-python-headless", "cachetools"}
    declared = names(PROJECT["dependencies"]) | optional
    assert found - {"opencv-python", *comes_with_gradio} <= declared
    assert declared - by_name <= found


def test_no_module_is_part_of_a_circle():
    graph = grimp.build_graph("textregion", "eval", "utils", exclude_type_checking_imports=True, cache_dir=None)
    edges = [(name, other) for name in graph.modules for other in graph.find_modules_directly_imported_by(name)]
    assert [sorted(c) for c in networkx.strongly_connected_components(networkx.DiGraph(edges)) if len(c) > 1] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built without a network."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: bash setup_env.sh")
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", "-q", *build], check=True)
    (made,) = folder.iterdir()
    return made


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_nothing_else(wheel: Path):
    tracked = subprocess.run(["git", "ls-files", "textregion"], cwd=ROOT, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        version = message_from_bytes(archive.read(metadata))["Version"]
    assert held == set(tracked.stdout.splitlines())
    assert version == textregion.__version__


@pytest.mark.slow
def test_the_wheel_works_in_another_environment_beside_somebodys_utils_and_eval(wheel: Path, tmp_path: Path):
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "environment")], check=True)
    install = ["install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "-q", "--python", str(python), *install], check=True)
    (packages,) = (tmp_path / "environment" / "lib").glob("python*/site-packages")
    shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "shared.pth").write_text("\n".join(shared), encoding="utf-8")
    done = subprocess.run([str(python), str(ROOT / "tests" / "check_wheel.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("program", ["eval_semantic", "eval_all_semantic", "eval_referring", "eval_reason_seg"])
def test_a_program_without_its_layer_says_the_command_in_one_line(program: str):
    door = f"runpy.run_path('{program}.py', run_name='__main__')"
    code = f"import runpy, sys; sys.path.insert(0, '.'); sys.modules['mmengine'] = None; {door}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    line = f"error: {program}.py needs mmengine, which is not installed; run: bash setup_env.sh --eval\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_the_published_class_is_imported_from_a_project_with_packages_of_our_names(tmp_path: Path):
    """Somebody's own utils, eval, configs and tests come first on the path, this checkout after them."""
    for name in ("utils", "eval", "configs", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OWN = True\n", encoding="utf-8")
    lines = [
        "import sys, utils, eval, configs, tests",
        f"sys.path.append({str(ROOT)!r})",
        "from TextRegionSegmenter import TextRegionSegmenter",
        "assert utils.OWN and eval.OWN and configs.OWN and tests.OWN",
        "print(TextRegionSegmenter.from_preset('tiny').config.scale)",
    ]
    (tmp_path / "mine.py").write_text("\n".join(lines), encoding="utf-8")
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
