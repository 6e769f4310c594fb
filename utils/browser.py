"""The machine's own Chromium, driven by Playwright: for the test of the page and its picture in the README."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from textregion.errors import needs

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOW_TO_INSTALL = "install Debian's chromium (apt-get install chromium), or set TEXTREGION_BROWSER to a Chrome's path"


def find_browser() -> str | None:
    """The path of a Chromium or Chrome: TEXTREGION_BROWSER, else the first of BROWSERS on PATH; None if there is none.

    TEXTREGION_BROWSER=none stands for none, even where one is installed.
    """
    wanted = os.environ.get("TEXTREGION_BROWSER", "")
    if wanted.lower() == "none":
        return None
    return next((path for name in ([wanted] if wanted else BROWSERS) if (path := shutil.which(name))), None)


@contextmanager
def open_browser(path: str) -> "Iterator[Browser]":
    """A headless browser, started with FLAGS besides the ones Playwright needs itself; it ends with the block."""
    with needs("driving a browser", layer="tests"):
        from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()
