"""The set-up script and the requirement files. Nothing here installs anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "setup_env.sh"
REQUIREMENT_FILES = sorted((ROOT / "configs" / "requirements").glob("*.txt"))
SUPPORTED_PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def read_requirements(path: Path) -> list[Requirement]:
    """The requirements of a file, one a line, comments and empty lines left out."""
    lines = (line.strip() for line in path.read_text(encoding="ascii").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def run_setup(*args: str, script: Path = SCRIPT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run setup_env.sh with only PATH, HOME and `environment` set; unless that says so, it looks for no browser."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    inherited["TEXTREGION_BROWSER"] = "none"
    return subprocess.run(
        ["bash", str(script), *args],
        env=inherited | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def empty_checkout(tmp_path: Path) -> Path:
    """The script and the requirement files alone, in a folder with a blank in its name."""
    folder = tmp_path / "a checkout"
    shutil.copytree(ROOT / "configs" / "requirements", folder / "configs" / "requirements")
    shutil.copy(SCRIPT, folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def fake_python(folder: Path, body: str) -> str:
    """An executable named python in `folder` that runs `body`, in bash; returns its path."""
    path = folder / "python"
    path.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


class Rehearsal:
    """setup_env.sh run with a Python that only notes what venv and pip are asked to do."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.checkout = checkout
        self.log = folder / "log"
        self.pip_fails = folder / "pip fails on this"
        self.python = fake_python(
            folder,
            f"""
            case "$1 $2 $3" in
              "-m venv --clear")
                echo "${{*:2:$#-2}}" >> "{self.log}"
                rm -rf "${{!#}}" && mkdir -p "${{!#}}/bin" && cp "$0" "${{!#}}/bin/python" ;;
              "-m pip install")
                echo "pip ${{*:8}}" >> "{self.log}"
                if [ -e "{self.pip_fails}" ]; then case "$*" in *$(cat "{self.pip_fails}")*) exit 1 ;; esac; fi ;;
              "-m pip --version") ;;
              "-W ignore -c" | "-W ignore -m") ;;
              "-W ignore -") echo "torch 9, torchvision 9" ;;
              *) exec "{sys.executable}" "$@" ;;
            esac""",
        )

    def run(self, *flags: str, **environment: str) -> tuple[int, list[str], str]:
        """The exit code, what venv and pip were asked to do, and the output, of one run."""
        self.log.write_text("", encoding="utf-8")
        done = run_setup(*flags, script=self.checkout / "setup_env.sh", **environment)
        asked = self.log.read_text(encoding="utf-8").replace(f"{self.checkout.resolve()}/configs/requirements/", "")
        return done.returncode, asked.splitlines(), done.stdout + done.stderr

    def edit(self, name: str) -> None:
        """Change a requirement file."""
        with (self.checkout / "configs" / "requirements" / name).open("a", encoding="ascii") as file:
            file.write("another==1.0\n")


@pytest.fixture
def rehearsal(empty_checkout: Path, tmp_path: Path) -> Rehearsal:
    """A rehearsal in an empty checkout."""
    return Rehearsal(empty_checkout, tmp_path)


AFTER_TORCH = [
    "pip --no-build-isolation -r core.txt",
    "pip --no-deps --no-build-isolation -r sam2.txt",
    "pip --no-deps --no-build-isolation -e .",
]
BASE = ["pip -r build.txt", "pip -r torch.txt -c core.txt", *AFTER_TORCH]
WEB = ["pip -r web.txt -c core.txt"]
SEARCH = ["pip -r search.txt -c core.txt"]
CLUSTER = ["pip -r cluster.txt -c core.txt"]
GEO = ["pip -r geo.txt -c core.txt"]
EVAL = ["pip -r eval.txt -c core.txt", "pip --no-deps -r eval_no_deps.txt"]
TRANSFORMERS = ["pip -r transformers.txt -c core.txt"]
DEV = ["pip -r dev.txt -c core.txt"]


def test_the_requirement_files_are_the_ones_the_script_installs():
    script = SCRIPT.read_text(encoding="utf-8")
    names = {path.name for path in REQUIREMENT_FILES}
    assert set(re.findall(r"\$requirements/(\w+\.txt)", script)) == names
    hashed = re.findall(r'^    \w+\) echo "([\w. ]+)" ;;$', script, re.MULTILINE)
    assert sorted(" ".join(hashed).split()) == sorted(names)


@pytest.mark.parametrize("path", REQUIREMENT_FILES, ids=lambda path: path.name)
def test_every_requirement_is_one_exact_version(path: Path):
    assert "://" not in path.read_text(encoding="ascii")
    for requirement in read_requirements(path):
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), f"{path.name}: {requirement}"
        assert requirement.url is None


@pytest.mark.parametrize("version", SUPPORTED_PYTHONS)
def test_each_python_gets_each_package_once_and_in_one_version(version: str):
    wanted: dict[str, set[str]] = {}
    for path in REQUIREMENT_FILES:
        here = [r for r in read_requirements(path) if not r.marker or r.marker.evaluate({"python_version": version})]
        names = [canonicalize_name(r.name) for r in here]
        assert sorted(names) == sorted(set(names)), path.name
        for name, requirement in zip(names, here, strict=True):
            wanted.setdefault(name, set()).add(str(requirement.specifier))  # layers may share a package
    assert {name: versions for name, versions in wanted.items() if len(versions) > 1} == {}
    assert {"torch", "torchvision", "numpy", "open-clip-torch", "sam2", "mmengine", "gradio", "pytest"} <= set(wanted)
    assert "opencv-python-headless" in wanted
    assert "opencv-python" not in wanted


def test_the_script_is_valid_bash():
    checked = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_help_documents_the_variables():
    helped = run_setup("--help")
    assert helped.returncode == 0
    for word in (
        "--web",
        "--eval",
        "--transformers",
        "--tests",
        "PYTHON",
        "TEXTREGION_TORCH",
        "TEXTREGION_BROWSER",
        "chromium",
        "none",
        "pinned",
        "system",
        "unset",
        "--index-url",
    ):
        assert word in helped.stdout


@pytest.mark.parametrize("flags", [["--hlep"], ["--web", "--hlep"]])
def test_an_unknown_argument_is_refused_in_one_line(flags: list[str]):
    refused = run_setup(*flags)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "setup_env.sh: does not know '--hlep'; see bash setup_env.sh --help\n"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (None, "was not found"),
        ("exit 1", "does not run"),
        # Answers the version test with no, and the question for its version with 3.9.
        ('case "$2" in "") ;; *sys.exit*) exit 1 ;; *) echo 3.9 ;; esac', "is Python 3.9"),
        ('case "$2" in *ensurepip*) exit 1 ;; esac', "has no venv module"),
    ],
    ids=["missing", "broken", "old", "without venv"],
)
def test_a_python_that_does_not_fit_gives_one_line_and_exit_code_2(
    empty_checkout: Path, tmp_path: Path, body: str | None, complaint: str
):
    python = str(tmp_path / "python") if body is None else fake_python(tmp_path, body)
    refused = run_setup(script=empty_checkout / "setup_env.sh", PYTHON=python)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert len(refused.stderr.splitlines()) == 1
    assert f"{python} {complaint}" in refused.stderr
    assert "PYTHON" in refused.stderr.partition("is needed:")[2]
    assert not (empty_checkout / ".venv").exists()


def test_system_torch_that_is_not_there_is_said_before_anything_is_made(empty_checkout: Path, tmp_path: Path):
    # -S -E leave site-packages and PYTHONPATH out, so that no torch is there to import.
    python = fake_python(tmp_path, f'exec "{sys.executable}" -S -E "$@"')
    refused = run_setup(script=empty_checkout / "setup_env.sh", PYTHON=python, TEXTREGION_TORCH="system")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert len(refused.stderr.splitlines()) == 1
    assert "torch cannot be imported (ModuleNotFoundError" in refused.stderr
    assert not (empty_checkout / ".venv").exists()


def test_a_first_run_installs_torch_before_what_needs_it_and_a_second_run_nothing(rehearsal: Rehearsal):
    code, asked, said = rehearsal.run(PYTHON=rehearsal.python)
    assert (code, asked) == (0, ["venv --clear", *BASE]), said
    assert [line.split(maxsplit=1)[0] for line in said.splitlines()[:3]] == ["[1/5]", "[2/5]", "[3/5]"]
    assert said.splitlines()[-1].startswith("Ready after ")
    for environment in ({}, {"PYTHON": rehearsal.python}, {"TEXTREGION_TORCH": "pinned"}):
        code, asked, said = rehearsal.run(**environment)
        assert (code, asked) == (0, []), said
        assert said == f"Nothing to do: {rehearsal.checkout.resolve()}/.venv is up to date.\n"


@pytest.mark.parametrize(
    ("flags", "layers"),
    [
        (["--eval", "--web"], [*EVAL, *WEB]),
        (["--tests", "--web"], [*WEB, *SEARCH, *CLUSTER, *GEO, *EVAL, *TRANSFORMERS, *DEV]),
    ],
    ids=["two", "all"],
)
def test_flags_add_layers_which_later_runs_keep(rehearsal: Rehearsal, flags: list[str], layers: list[str]):
    code, asked, said = rehearsal.run(*flags, PYTHON=rehearsal.python)
    assert (code, asked) == (0, ["venv --clear", *BASE, *layers]), said
    for again in (flags[:1], []):
        assert rehearsal.run(*again)[:2] == (0, [])


def test_layers_can_be_added_one_by_one_and_each_counts_its_steps(rehearsal: Rehearsal):
    for flags, expected, total in (
        ([], ["venv --clear", *BASE], 5),
        (["--web"], WEB, 2),
        (["--eval"], EVAL, 2),
        (["--search", "--cluster", "--geo"], [*SEARCH, *CLUSTER, *GEO], 4),
        (["--transformers"], TRANSFORMERS, 2),
        (["--tests"], DEV, 3),
        (["--web", "--eval"], [], 0),
    ):
        code, asked, said = rehearsal.run(*flags, PYTHON=rehearsal.python)
        assert (code, asked) == (0, expected), said
        assert re.findall(r"^\[(\d)/(\d)\]", said, re.MULTILINE) == [(str(n), str(total)) for n in range(1, total + 1)]


@pytest.mark.parametrize(("failing", "first"), [("torch.txt", BASE[:2]), ("eval_no_deps.txt", [*BASE, *WEB, *EVAL])])
def test_an_interrupted_run_is_carried_on_in_the_same_environment(rehearsal: Rehearsal, failing: str, first: list[str]):
    rehearsal.pip_fails.write_text(failing, encoding="utf-8")
    code, asked, said = rehearsal.run("--web", "--eval", PYTHON=rehearsal.python)
    assert (code, asked) == (2, ["venv --clear", *first])
    assert said.splitlines()[-1].startswith("setup_env.sh: pip could not install this")
    rehearsal.pip_fails.unlink()
    rest = EVAL if first[-1:] == EVAL[-1:] else [*BASE, *WEB, *EVAL]
    assert rehearsal.run()[:2] == (0, rest)
    assert rehearsal.run()[:2] == (0, [])


@pytest.mark.parametrize(
    ("name", "expected"), [("core.txt", BASE), ("web.txt", WEB), ("eval.txt", []), ("dev.txt", [])]
)
def test_a_changed_requirement_is_installed_into_the_same_environment(
    rehearsal: Rehearsal, name: str, expected: list[str]
):
    rehearsal.run("--web", PYTHON=rehearsal.python)
    rehearsal.edit(name)
    assert rehearsal.run()[:2] == (0, expected)
    assert rehearsal.run()[:2] == (0, [])


def test_another_entry_point_is_installed_and_another_setting_of_a_tool_is_not(rehearsal: Rehearsal):
    rehearsal.run(PYTHON=rehearsal.python)
    project = rehearsal.checkout / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    project.write_text(f"{text}\n[tool.another]\nsetting = 1\n", encoding="utf-8")
    assert rehearsal.run()[:2] == (0, [])
    project.write_text(text.replace("[project.scripts]\n", '[project.scripts]\nanother = "a:b"\n'), encoding="utf-8")
    assert rehearsal.run()[:2] == (0, BASE)


def test_another_torch_gets_a_new_environment_and_is_remembered(rehearsal: Rehearsal):
    rehearsal.run("--web", PYTHON=rehearsal.python)
    words = "torch==2.11.0 torchvision==0.26.0 --index-url mine*"
    code, asked, said = rehearsal.run(PYTHON=rehearsal.python, TEXTREGION_TORCH=words)
    expected = ["venv --clear", "pip -r build.txt", f"pip {words}", *AFTER_TORCH, *WEB]
    assert (code, asked) == (0, expected), said
    assert rehearsal.run()[:2] == (0, [])

    system = {"PYTHON": rehearsal.python, "TEXTREGION_TORCH": "system"}
    code, asked, said = rehearsal.run(**system)
    expected = ["venv --clear --system-site-packages", "pip -r build.txt", *AFTER_TORCH, *WEB]
    assert (code, asked) == (0, expected), said
    assert rehearsal.run()[:2] == (0, [])


def test_a_moved_checkout_gets_a_new_environment(rehearsal: Rehearsal):
    rehearsal.run(PYTHON=rehearsal.python)
    rehearsal.checkout = rehearsal.checkout.rename(rehearsal.checkout.with_name("moved"))
    code, asked, said = rehearsal.run(PYTHON=rehearsal.python)
    assert (code, asked[0]) == (0, "venv --clear"), said


class Machine:
    """The commands of a machine of which nothing is known but what is put here: no browser, and a noting apt-get."""

    def __init__(self, folder: Path, user: int, apt_works: bool) -> None:
        self.folder, self.log = folder / "commands", folder / "apt log"
        self.folder.mkdir()
        for name in ("bash", "cat", "cp", "dirname", "env", "grep", "mkdir", "mv", "rm", "sed", "tail", "touch"):
            (self.folder / name).symlink_to(str(shutil.which(name)))
        self.add("id", f"echo {user}")
        done = f"echo > '{self.folder}/chromium'; {shutil.which('chmod')} +x '{self.folder}/chromium'"
        installs = f"case $1 in install) {done} ;; esac" if apt_works else "exit 100"
        self.add("apt-get", f'echo "$*" >> "{self.log}"; {installs}')

    def add(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f"#!{shutil.which('bash')}\n{body}\n", encoding="utf-8")
        path.chmod(0o755)

    @property
    def apt(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []

    def environment(self, rehearsal: Rehearsal, browser: str = "", ci: str = "true") -> dict[str, str]:
        return {"PYTHON": rehearsal.python, "PATH": str(self.folder), "TEXTREGION_BROWSER": browser, "CI": ci}


APT = ["update -qq", "install -qq --yes --no-install-recommends chromium"]


def test_root_in_ci_gets_debians_chromium_once(rehearsal: Rehearsal, tmp_path: Path):
    machine = Machine(tmp_path, user=0, apt_works=True)
    code, asked, said = rehearsal.run("--tests", **machine.environment(rehearsal))
    layers = [*WEB, *SEARCH, *CLUSTER, *GEO, *EVAL, *TRANSFORMERS, *DEV]
    assert (code, asked[1:], machine.apt) == (0, [*BASE, *layers], APT), said
    assert said.splitlines()[-2] == f"      {machine.folder}/chromium"
    code, asked, said = rehearsal.run(**machine.environment(rehearsal))
    assert (code, asked, machine.apt) == (0, [], APT)
    assert said == f"Nothing to do: {rehearsal.checkout.resolve()}/.venv is up to date.\n"


@pytest.mark.parametrize("flags", [[], ["--web"], ["--eval"]])
def test_other_layers_never_ask_for_a_browser(rehearsal: Rehearsal, tmp_path: Path, flags: list[str]):
    machine = Machine(tmp_path, user=0, apt_works=True)
    code, _, said = rehearsal.run(*flags, **machine.environment(rehearsal))
    assert (code, machine.apt) == (0, [])
    assert "browser" not in said


def test_a_browser_is_added_to_an_environment_that_is_ready(rehearsal: Rehearsal, tmp_path: Path):
    assert rehearsal.run("--tests", PYTHON=rehearsal.python)[0] == 0
    machine = Machine(tmp_path, user=0, apt_works=True)
    code, asked, _ = rehearsal.run(**machine.environment(rehearsal))
    assert (code, asked, machine.apt) == (0, [], APT)


def test_a_browser_that_cannot_be_installed_is_no_failure_and_not_tried_again(rehearsal: Rehearsal, tmp_path: Path):
    machine = Machine(tmp_path, user=0, apt_works=False)
    for attempt in ("first", "second"):
        code, _, said = rehearsal.run("--tests", **machine.environment(rehearsal))
        assert (code, machine.apt) == (0, APT[:1])
        assert ("will be skipped" in said) == (attempt == "first")
        assert ("apt-get install chromium" in said) == (attempt == "first")


@pytest.mark.parametrize(
    ("user", "browser", "ci", "hint"),
    [
        (0, "", "", True),
        (0, "", "false", True),
        (1000, "", "true", True),
        (0, "none", "true", False),
        (0, "/no/such/chrome", "true", True),
    ],
)
def test_no_browser_is_installed_out_of_ci_without_root_or_against_the_users_word(
    rehearsal: Rehearsal, tmp_path: Path, user: int, browser: str, ci: str, hint: bool
):
    machine = Machine(tmp_path, user, apt_works=True)
    code, _, said = rehearsal.run("--tests", **machine.environment(rehearsal, browser, ci))
    assert (code, machine.apt) == (0, [])
    assert ("will be skipped" in said) == hint


def test_a_browser_that_is_there_is_taken(rehearsal: Rehearsal, tmp_path: Path):
    machine = Machine(tmp_path, user=0, apt_works=True)
    machine.add("google-chrome", "exit 1")
    code, _, said = rehearsal.run("--tests", **machine.environment(rehearsal))
    assert (code, machine.apt) == (0, [])
    assert said.splitlines()[-2] == f"      {machine.folder}/google-chrome"


def test_a_second_run_in_this_environment_changes_nothing():
    stamp = ROOT / ".venv" / "textregion-stamp"
    if not stamp.is_file() or "base " not in stamp.read_text(encoding="ascii"):
        pytest.skip("this .venv was not made, or not completed, by setup_env.sh")
    if any(path.stat().st_mtime > stamp.stat().st_mtime for path in [*REQUIREMENT_FILES, ROOT / "pyproject.toml"]):
        pytest.skip("the requirement files are newer than this .venv: run setup_env.sh first")
    before = stamp.stat().st_mtime_ns
    again = run_setup()
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"Nothing to do: {ROOT}/.venv is up to date.\n"
    assert stamp.stat().st_mtime_ns == before


ODD_NAMES = ["it's", 'a "b"', "back\\slash \\", "ä 犬", "x[1]", "$HOME `x`", "#a%20", "-n", "a*?", "(1) & co;"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_of_any_name_is_set_up_and_a_second_run_finds_it_ready(
    empty_checkout: Path, tmp_path: Path, name: str
):
    checkout = empty_checkout.rename(tmp_path / name)
    rehearsal = Rehearsal(checkout, tmp_path)
    code, asked, said = rehearsal.run("--web", PYTHON=rehearsal.python)
    assert (code, asked) == (0, ["venv --clear", *BASE, *WEB]), said
    assert (checkout / ".venv" / "bin" / "python").is_file()
    code, asked, said = rehearsal.run()
    assert (code, asked) == (0, []), said
    assert f"Nothing to do: {checkout.resolve()}/.venv is up to date." in said
    assert ("only python runs" in said) == any(mark in name for mark in '"$`')


def test_a_colon_in_the_folders_name_is_refused_in_one_line(empty_checkout: Path, tmp_path: Path):
    checkout = empty_checkout.rename(tmp_path / "a:b")
    refused = run_setup(script=checkout / "setup_env.sh")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"setup_env.sh: the folder {checkout} has a colon in its name, with which no .venv can be made: rename it\n"
    )


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_data_script_runs_from_a_folder_of_any_name(tmp_path: Path, name: str):
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(ROOT / "process_dataset.sh", folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    fake_python(folder / ".venv" / "bin", 'printf "%s\\n" "$PYTHONPATH" "$@"')
    done = subprocess.run(
        ["bash", str(folder / "process_dataset.sh"), "a b", "--data-root", name],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [str(folder.resolve()), "-m", "eval.prepare", "a b", "--data-root", name]


def test_every_script_is_checked_out_with_the_line_ends_that_bash_reads():
    """Whatever git's settings are (core.autocrlf of Git for Windows)."""
    listed = subprocess.run(
        ["git", "-c", "core.autocrlf=true", "ls-files", "--eol"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    rows = [
        (*line.partition("\t")[0].split(maxsplit=2), line.partition("\t")[2]) for line in listed.stdout.splitlines()
    ]
    assert len(rows) > 200
    for _, _, attributes, name in rows:
        expected = "attr/-text" if Path(name).suffix in (".png", ".npz", ".safetensors", ".ttf") else "eol=lf"
        assert expected in attributes, name
    assert {index for index, _, _, _ in rows} <= {"i/lf", "i/-text", "i/none"}
