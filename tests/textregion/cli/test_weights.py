"""The program that fetches weights: what it prints, and one line for what is wrong."""

import os

from warm_start import run_warm

from textregion.cli.models import weights
from textregion.weights import write_checksums


def test_the_program_prints_one_line_and_stops_with_two(tmp_path):
    environment = dict(os.environ, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    command = ["-m", "textregion", "weights", "--preset", "clip-vit-b16", "--to", str(tmp_path / "to")]
    done = run_warm(command, tmp_path, environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: weights not found: open_clip_model.safetensors of timm/")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_the_program_checks_a_folder(tmp_path, capsys):
    (tmp_path / "a.pt").write_text("x")
    write_checksums(tmp_path)
    assert weights(["--verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"1 files in {tmp_path} are as they were fetched\n"
    assert weights([]) == 2
    assert capsys.readouterr().err.startswith("error: nothing to do")
    assert weights(["--preset", "tiny"]) == 0
    assert "in the repository" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("textregion.weights._fetch_one", full)
    assert weights(["--preset", "clip-vit-b16", "--to", str(tmp_path / "to")]) == 2
    assert capsys.readouterr().err == (
        f"error: cannot write to {tmp_path / 'to'} ([Errno 28] No space left on device); give another folder as --to\n"
    )
