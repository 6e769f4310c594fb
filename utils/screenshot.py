"""A picture of the page, for the README: python -m utils.screenshot --output docs/page.png

It is taken with the machine's own Chromium, driven by Playwright, as the test of the page is run.
"""

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from textregion.cli.command_line import Parser, run_program
from textregion.errors import InputError, needs
from textregion.storage import write_atomically

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
HOW_TO_INSTALL = "install Debian's chromium (apt-get install chromium), or set TEXTREGION_BROWSER to a Chrome's path"
WIDTH, HEIGHT = 1280, 1010


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
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served() -> Iterator[str]:
    """The address of the page with the tiny models, while the program serves it. InputError: the program's own."""
    command = [sys.executable, "TextRegionSegmenter.py", "--serve", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as program:
        said = ""
        try:
            for said in program.stdout or ():
                if said.startswith("page: "):
                    break
            else:
                raise InputError(said.strip().removeprefix("error: "))
            yield said.split()[1]
        finally:
            program.send_signal(signal.SIGINT)


def photograph(page: Any, address: str) -> bytes:
    """The first drawn scene labelled and one of its regions clicked, as PNG."""
    page.goto(address)
    page.locator("#examples img").first.click()
    page.locator("#legend li").first.wait_for()
    box = page.locator("#result img").bounding_box()
    page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + 0.35 * box["height"])
    page.locator("#scores table").wait_for()
    page.wait_for_function("document.querySelector('#result img').complete")
    page.mouse.move(0, 0)
    return page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT})


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the picture; returns the exit code: 0, or 2 after one line when there is no browser or no gradio."""
    parser = Parser(prog="python -m utils.screenshot", description="A picture of the web page with a drawn scene.")
    parser.add_argument("--output", default="docs/page.png", metavar="FILE", help="the PNG to write (docs/page.png)")

    def body() -> None:
        output, path = Path(parser.parse_args(arguments).output), find_browser()
        if path is None:
            raise InputError(f"no Chromium or Chrome found; {HOW_TO_INSTALL}")
        with served() as address, open_browser(path) as browser:
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            picture = Image.open(io.BytesIO(photograph(page, address))).convert("RGB")
        picture = picture.point(lambda value: value | 3)  # six bits a colour: two thirds of the file, no visible change
        png = io.BytesIO()
        picture.save(png, "PNG")
        write_atomically(output, png.getvalue())
        print(f"wrote {output}, {output.stat().st_size / 1000:.0f} kB")

    return run_program(body)


if __name__ == "__main__":
    sys.exit(main())
