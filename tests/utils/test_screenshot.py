"""The picture of the page for the README."""

import io

import numpy as np
import pytest
from PIL import Image

from utils.screenshot import HEIGHT, WIDTH, main, photograph


def test_the_picture_shows_an_answered_page(browser, server):
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    picture = np.array(Image.open(io.BytesIO(photograph(page, server.url))).convert("RGB"))
    page.close()
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
