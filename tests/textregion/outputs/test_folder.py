"""A result folder is whole or not there, and nothing that was there before is lost."""

import errno
import json
import os
import platform
import resource
import signal
import unicodedata
from pathlib import Path

import pytest

from textregion.outputs.folder import (
    OutputError,
    clear_remains,
    file_names,
    finished_folder,
    json_bytes,
    output_names,
    read_run,
)

NAMES = [
    "..png",
    "...png",
    ".png",
    "....png",
    ".hidden.png",
    "con.png",
    "COM1.a.png",
    "x.old-1.png",
    "a:b.png",
    "a\nb.png",
]
NAMES += [
    "summary.csv.png",
    "SUMMARY.MD.jpg",
    "e\u0301.png",
    "\u00e9.png",
    f"{'x' * 251}.png",
    f"{'x' * 250}y.png",
    "a. .png",
]


def test_every_image_has_a_folder_of_its_own_on_every_system(tmp_path):
    names = output_names([Path(name) for name in NAMES] * 2)
    assert len({unicodedata.normalize("NFC", name.casefold()) for name in names}) == len(names)
    assert not set(names) & {"summary.csv", "summary.md", "con", "x.old-1"}
    for name in names:
        assert not name.startswith(".")
        assert name == name.rstrip(". ")
        folder = tmp_path / name
        write(folder, "one")
        assert write(folder, "two", "g")["kept"] == f"{folder}.old-1"  # there is room for more behind the name
    assert {path.name.removesuffix(".old-1") for path in tmp_path.iterdir()} == set(names)


def test_names_are_numbered_and_else_stay():
    names = ["a.png", "A.jpg", "a_2.png", "a.gif", "my photo (1).png"]
    assert output_names([Path(name) for name in names]) == ["a", "A_2", "a_2_2", "a_3", "my photo (1)"]
    assert output_names([Path("0.png")] * 3000)[-1] == "0_3000"


@pytest.mark.parametrize("name", [".partial-{}-99999999999999999999-0", ".partial-{}-1-x", ".partial-{}-999999999-0"])
def test_what_only_looks_like_remains_stays(tmp_path, name):
    file = tmp_path / name.format(platform.node())
    file.write_text("mine")
    clear_remains(tmp_path)
    assert file.read_text() == "mine"


def write(folder: Path, text: str, fingerprint: str = "f") -> dict:
    run = {"fingerprint": fingerprint}
    with finished_folder(folder, run) as place:
        (place / "sub").mkdir()
        (place / "sub" / "a.txt").write_text(text)
    return run


def content(folder: Path) -> str:
    return (folder / "sub" / "a.txt").read_text()


def test_a_finished_folder_names_its_files(tmp_path):
    write(tmp_path / "x", "one")
    assert read_run(tmp_path / "x") == {"fingerprint": "f", "folder": "x", "files": ["sub/a.txt"]}
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_same_run_is_replaced_and_another_kept(tmp_path):
    write(tmp_path / "x", "one")
    assert "kept" not in write(tmp_path / "x", "two")
    assert content(tmp_path / "x") == "two"
    assert write(tmp_path / "x", "three", "g")["kept"] == str(tmp_path / "x.old-1")
    assert write(tmp_path / "x", "four", "h")["kept"] == str(tmp_path / "x.old-2")
    assert [content(tmp_path / name) for name in ("x", "x.old-1", "x.old-2")] == ["four", "two", "three"]
    assert "kept" not in read_run(tmp_path / "x")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("spoil", ["a file of the user", "a file is missing", "run.json is damaged", "no folder"])
def test_what_is_not_exactly_that_run_is_kept(tmp_path, spoil):
    folder = tmp_path / "x"
    if spoil == "no folder":
        folder.write_text("mine")
    else:
        write(folder, "one")
    if spoil == "a file of the user":
        (folder / "mine.txt").write_text("mine")
    elif spoil == "a file is missing":
        (folder / "sub" / "a.txt").unlink()
    elif spoil == "run.json is damaged":
        (folder / "run.json").write_text('{"fingerprint": "f"')
    assert write(folder, "two")["kept"] == str(tmp_path / "x.old-1")
    assert (tmp_path / "x.old-1").exists()
    assert content(folder) == "two"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_a_failure_leaves_the_earlier_folder_as_it_was(tmp_path, error):
    write(tmp_path / "x", "one")
    expected = OutputError if isinstance(error, OSError) else type(error)

    def fail_half_way():
        with finished_folder(tmp_path / "x", {"fingerprint": "g"}) as place:
            (place / "half.txt").write_text("half")
            raise error

    with pytest.raises(expected) as raised:
        fail_half_way()
    if expected is OutputError:
        assert str(raised.value) == (
            f"cannot write to {tmp_path / 'x'} (No space left on device); free space or choose another --output"
        )
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert content(tmp_path / "x") == "one"


def test_a_disk_that_takes_no_more_bytes(tmp_path):
    """The kernel's own refusal: no file may grow above 4096 bytes."""
    write(tmp_path / "x", "one")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot write to"):
            write(tmp_path / "x", "y" * 9999)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert content(tmp_path / "x") == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def remains(parent: Path, process: int, number: int, run: dict | None, node: str = platform.node()) -> Path:
    folder = parent / f".partial-{node}-{process}-{number}"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    if run is not None:
        (folder / "run.json").write_bytes(json_bytes({"files": ["a.txt"], **run}))
    return folder


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)
    return process


def test_remains_of_dead_processes_are_cleared(tmp_path, dead):
    (tmp_path / "taken").mkdir()
    remains(tmp_path, dead, 0, None)
    remains(tmp_path, dead, 1, {"folder": "taken"})
    remains(tmp_path, dead, 2, {"folder": "free"})
    alive = remains(tmp_path, os.getpid(), 3, None)
    elsewhere = remains(tmp_path, dead, 4, None, node="another-machine")
    clear_remains(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"taken", "free", alive.name, elsewhere.name}
    assert (tmp_path / "free" / "a.txt").read_text() == "a"


def test_summaries_half_written_are_cleared(tmp_path):
    old, new = tmp_path / ".summary.csv.0a1b2c3d", tmp_path / ".summary.md.0a1b2c3d"
    others = [tmp_path / "summary.csv", tmp_path / ".summary.mine", tmp_path / ".other.csv.0a1b2c3d"]
    for file in (old, new, *others):
        file.write_text("half")
        os.utime(file, (1e9, 1e9))
    os.utime(new)  # another run may be writing it now
    clear_remains(tmp_path)
    assert set(tmp_path.iterdir()) == {new, *others}


def test_output_names_are_unique():
    paths = [Path(p) for p in ("a/x.png", "b/x.jpg", "y.png", "x_2.png", "X.gif", "summary.csv.png")]
    assert output_names(paths) == ["x", "x_2", "y", "x_2_2", "X_3", "summary.csv_2"]


def test_json_survives_undecodable_names():
    text = json_bytes({"name": "dög \udcff"})
    assert json.loads(text) == {"name": "dög \udcff"}
    assert "dög".encode() in text


def test_file_names_are_safe_and_short():
    labels = ["red sofa", "../../etc/passwd", "дерево", "犬" * 200, "???", "red sofa"]
    names = list(file_names(labels))
    assert names[:3] == ["00_red_sofa", "01_etc_passwd", "02_дерево"]
    assert names[4:] == ["04", "05_red_sofa"]
    assert all(len(name.encode()) < 100 and "/" not in name for name in names)
    assert list(file_names(["a"] * 1001))[-1] == "1000_a"
