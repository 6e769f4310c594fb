"""A picture of the page, for the README: python -m utils.screenshot --output docs/page.png"""

import io
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from textregion.cli.command_line import Parser, run_program
from textregion.errors import InputError
from textregion.storage import write_atomically
from textregion.web.downloads import encode_png
from textregion.web.gate import LOCAL_NAMES
from textregion.web.server import build_app, check_gradio, listening, temporary_files
from textregion.web.session import Workbench
from utils.browser import HOW_TO_INSTALL, find_browser, open_browser

WIDTH, HEIGHT = 1280, 1010


@contextmanager
def served() -> Iterator[str]:
    """The address of the page with the tiny models, served by a thread of this process."""
    with temporary_files() as files, listening("127.0.0.1", 0) as listener:
        check_gradio()
        import uvicorn

        from textregion.segmenter import TextRegionSegmenter

        bench = Workbench(TextRegionSegmenter.from_preset("tiny"), "tiny")
        app = build_app(bench, files, LOCAL_NAMES)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


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
        write_atomically(output, encode_png(picture))
        print(f"wrote {output}, {output.stat().st_size / 1000:.0f} kB")

    return run_program(body)


if __name__ == "__main__":
    sys.exit(main())
