"""python -m tests.fuzz.page: many uploads and half-open connections, and how long a user waits for the page."""

import http.client
import itertools
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.fuzz import report
from textregion.cli.command_line import Parser, positive
from textregion.web.cached_segmenter import MEGABYTE, Limits

HELP = """\
Starts the page with the tiny models, sends it uploads, each in a browser session of its own, and opens connections that
never finish a request. Measured all the while: the bytes in its folder, and how long a user waits for the page. Exit
code 1 when an upload fails, the folder grows above its quota, or the user waits more than 2 s for the connections.
"""
HALVES = (
    b"",
    b"GET / HTTP/1.1\r\nHost: a",
    b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n",
)
PATIENCE = 2.0  # seconds a user may wait
SIZE = 2 * MEGABYTE  # of an upload


@contextmanager
def page(folder: Path) -> Iterator[int]:
    """The port of a page whose files lie in a folder."""
    command = [sys.executable, "TextRegionSegmenter.py", "--serve", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with (folder / "printed").open("wb") as printed:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=printed, text=True, env=environment)
        try:
            found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline() if process.stdout else "")
            if found is None:
                raise RuntimeError(f"the page did not start: {(folder / 'printed').read_text()}")
            yield int(found[1])
        finally:
            process.terminate()
            process.wait(60)


def disk_use(folder: Path) -> int:
    """Bytes of all files below a folder, some of which may go meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(place, name))
            except FileNotFoundError:
                continue
    return total


@contextmanager
def measuring(measure: Callable[[], float], pause: float) -> Iterator[list[float]]:
    """What is measured again and again while the body runs."""
    ended, found = threading.Event(), []

    def again() -> None:
        while not ended.is_set():
            found.append(measure())
            ended.wait(pause)

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def waited(port: int) -> float:
    """Seconds until the page has come; infinite when it has not."""
    start, connection = time.monotonic(), http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        whole = answer.read()
    except OSError:
        return float("inf")
    finally:
        connection.close()
    return time.monotonic() - start if answer.status == 200 and b"</html>" in whole else float("inf")


def upload(port: int, number: int) -> int:
    """The status of an upload of SIZE bytes, no two of which are the same."""
    head = b'--X\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    body = head + number.to_bytes(4, "big").ljust(SIZE, b"\0") + b"\r\n--X--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=X", "Cookie": f"textregion_session={number}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/gradio_api/upload", body, headers)
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
    return answer.status


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = Parser(prog="python -m tests.fuzz.page", description=HELP)
    parser.add_argument("--uploads", type=positive, default=1000, metavar="N", help="of 2 MB each (1000)")
    parser.add_argument("--connections", type=positive, default=1100, metavar="N", help="half open at once (1100)")
    return parser.parse_args(arguments)


def run(args: Namespace) -> bool:
    """Uploads, then connections; prints what was measured; whether all held."""
    quota = Limits().disk_bytes
    with tempfile.TemporaryDirectory() as temporary, page(Path(temporary)) as port:
        folder, start = Path(temporary), time.monotonic()
        with measuring(lambda: disk_use(folder), 0.05) as used, measuring(lambda: waited(port), 0.5) as waits:
            statuses = Counter(upload(port, number) for number in range(args.uploads))
        seconds, sent = time.monotonic() - start, args.uploads * SIZE
        told = ", ".join(f"{number} answered {status}" for status, number in statuses.items())
        print(f"{args.uploads} uploads of {SIZE // MEGABYTE} MB ({sent / 1e9:.1f} GB) in {seconds:.0f} s: {told}")
        most = max(used)
        print(f"disk: at most {most // MEGABYTE} MB at {len(used)} looks, quota {quota // MEGABYTE} MB")
        print(f"a user meanwhile: {len(waits)} times the page, slowest {max(waits):.2f} s")
        with ExitStack() as lines, measuring(lambda: waited(port), 0.1) as waits_more:
            for _, half in zip(range(args.connections), itertools.cycle(HALVES), strict=False):
                line = lines.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
                line.sendall(half)
            opened = len(waits_more)
            time.sleep(15)  # longer than headers may take
        log = (folder / "printed").stat().st_size
        print(f"{args.connections} half-open connections; a user meanwhile: {len(waits_more)} times the page, {opened}")
        print(f"of them while they were opened, slowest {max(waits_more):.2f} s; the page printed {log} bytes")
    return set(statuses) == {200} and most <= quota and max(waits_more) <= PATIENCE and log < MEGABYTE


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns 0, 1 when something did not hold, 2 after one line about bad input."""
    return report.exit_code(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
