"""The picture of the page for the README."""

import os
import subprocess
import sys

import numpy as np
import pytest
from kills import long_form
from PIL import Image

from textregion.errors import InputError
from utils.screenshot import HEIGHT, WIDTH, find_browser, main, served


@long_form  # the page in a browser: tests/textregion/web/test_browser.py
@pytest.mark.skipif(find_browser() is None and not os.environ.get("CI"), reason="no Chromium or Chrome found")
def test_the_picture_shows_an_answered_page(pytestconfig, tmp_path):
    path = tmp_path / "page.png"
    command = [sys.executable, "-m", "utils.screenshot", "--output", str(path)]
    done = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {path}, {path.stat().st_size / 1000:.0f} kB\n"
    picture = np.array(Image.open(path))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 5000


@pytest.mark.parametrize("flags", [["--output"], ["--nonsense"]])
def test_bad_flags_are_one_line(flags, capsys):
    with pytest.raises(SystemExit):
        main(flags)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_no_browser_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("TEXTREGION_BROWSER", "none")
    assert main([]) == 2
    assert "install Debian's chromium" in capsys.readouterr().err


def test_a_page_that_cannot_be_served_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError(name='gradio')")
    with pytest.raises(InputError, match="the page needs gradio, which is not installed; run"), served():
        pass


def test_the_browser_is_the_named_one_or_none(monkeypatch, tmp_path):
    monkeypatch.setenv("TEXTREGION_BROWSER", "none")
    assert find_browser() is None
    monkeypatch.setenv("TEXTREGION_BROWSER", str(tmp_path / "absent"))
    assert find_browser() is None
    chrome = tmp_path / "google-chrome"
    chrome.write_text("#!/bin/sh\n")
    chrome.chmod(0o755)
    monkeypatch.setenv("TEXTREGION_BROWSER", str(chrome))
    assert find_browser() == str(chrome)
    monkeypatch.delenv("TEXTREGION_BROWSER")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_browser() == str(chrome)
