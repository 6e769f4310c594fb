"""The real server, in a process of its own that notes every address it asks the network for, and a browser."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from textregion.tiny.scenes import draw_scene
from textregion.web.cached_segmenter import CachedSegmenter, Limits
from TextRegionSegmenter import TextRegionSegmenter
from utils.screenshot import HOW_TO_INSTALL, find_browser, open_browser

ROOT = Path(__file__).resolve().parents[3]
WATCHED = """
import runpy, sys
log = open(sys.argv[1], "a", buffering=1)
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        log.write(f"{event} {arguments!r}\\n")
sys.addaudithook(watch)
sys.argv = ["TextRegionSegmenter.py", *sys.argv[2:]]
sys.path.insert(0, ".")
runpy.run_path("TextRegionSegmenter.py", run_name="__main__")
"""


@dataclass
class Server:
    """A running `TextRegionSegmenter.py --serve`."""

    process: subprocess.Popen
    url: str
    output: Path
    network: Path
    temporary: Path

    @property
    def encodings(self) -> int:
        return self.output.read_text().count("encoded image")

    @property
    def files(self) -> Path:
        (folder,) = self.temporary.glob("textregion-page-*")
        return folder


def start_server(folder: Path, *flags: str) -> Server:
    output, network, temporary = folder / "output", folder / "network", folder / "tmp"
    temporary.mkdir(parents=True)
    network.touch()
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WATCHED, str(network), "--serve", "--port", "0", *flags],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(temporary), "http_proxy": "http://192.0.2.1:9"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 180
    while "page: " not in output.read_text():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, f"no page after three minutes: {output.read_text()}"
        time.sleep(0.05)
    url = output.read_text().split("page: ")[1].split()[0]
    return Server(process, url, output, network, temporary)


@pytest.fixture(scope="package")
def server(tmp_path_factory) -> Iterator[Server]:
    """The page with the tiny models and limits that a test can reach; its end is tested too."""
    limits = ["--max_pixels", "250000", "--max_megabytes", "1"]
    running = start_server(tmp_path_factory.mktemp("server"), *limits)
    try:
        yield running
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=120) == 0
        assert running.output.read_text().splitlines()[-1] == "ended; all uploaded files are deleted"
        assert "Traceback" not in running.output.read_text()
        assert list(running.temporary.iterdir()) == []
    finally:
        running.process.kill()
        running.process.wait()


@pytest.fixture(scope="package")
def browser():
    """The machine's Chromium. Without one the test is skipped, in CI it fails."""
    path = find_browser()
    if path is None:
        message = f"no Chromium or Chrome found; {HOW_TO_INSTALL}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with open_browser(path) as running:
        yield running


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """png(seed, width, height): a drawn scene, cut, as a PNG file."""

    def draw(seed: int, width: int = 256, height: int = 256) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(draw_scene(seed, distinct_colours=True).image[:height, :width]).save(buffer, "PNG")
        return buffer.getvalue()

    return draw


@pytest.fixture(scope="session")
def tiny_segmenter():
    """The tiny models."""
    return TextRegionSegmenter.from_preset("tiny")


@pytest.fixture(scope="session")
def model(tiny_segmenter):
    """The tiny models, which keep what they encoded from test to test."""
    return CachedSegmenter(tiny_segmenter, "tiny", Limits())


@pytest.fixture(scope="session")
def scene_file(tmp_path_factory, png) -> Path:
    """The drawn scene 11 as a file."""
    path = tmp_path_factory.mktemp("scene") / "my scene.png"
    path.write_bytes(png(11))
    return path
