"""Start and end of the page's server. gradio is imported when it is asked for, never before."""

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from textregion.errors import InputError, needs
from textregion.web.cached_segmenter import Limits

DEFAULT_PORT = 7860
PORTS_TRIED = 100
LOOPBACK = ("127.0.0.1", "localhost", "::1")  # values of host by which only this machine reaches the page


def serve(
    build_segmenter: Callable[[], Any], preset: str, limits: Limits, host: str, port: int | None, caution: str = ""
) -> None:
    """Serve the page until Ctrl-C. InputError: gradio is missing, the port is taken, and those of `build_segmenter`.

    build_segmenter: makes the TextRegionSegmenter, once the port is had. host, port: where it listens (`listening`).
    caution: what page and files say of every answer.
    """
    with temporary_files() as files, listening(host, port) as listener:
        with without_proxies(), needs("the page", layer="web", extra="web"):
            from textregion.web.page import build_app
        segmenter = build_segmenter()  # which may need a proxy, to fetch weights
        with without_proxies():
            run_app(build_app(segmenter, preset, limits, files, host in LOOPBACK, caution), listener)


@contextmanager
def temporary_files() -> Iterator[Path]:
    """A folder for everything that is uploaded or made, gone at the end; gradio is told to use it, and to be quiet.

    These settings are read when gradio is imported, so this comes first.
    """
    with tempfile.TemporaryDirectory(prefix="textregion-page-", ignore_cleanup_errors=True) as folder:
        path = Path(folder).resolve()
        with environment(
            GRADIO_TEMP_DIR=str(path),
            GRADIO_EXAMPLES_CACHE=str(path / "examples-cache"),
            GRADIO_ANALYTICS_ENABLED="False",
            HF_HUB_DISABLE_TELEMETRY="1",
        ):
            yield path


def without_proxies() -> AbstractContextManager[None]:
    """No proxy is asked: gradio makes HTTP clients when it is imported, of which bad or SOCKS settings are an error.

    The page asks for nothing but itself, so it needs none.
    """
    return environment(NO_PROXY="*", no_proxy="*")


@contextmanager
def environment(**settings: str) -> Iterator[None]:
    """These environment variables while the body runs; afterwards all is as it was."""
    before = {name: os.environ[name] for name in settings if name in os.environ}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def listening(host: str, port: int | None) -> Iterator[socket.socket]:
    """A socket that listens on the port, by default the first free one from DEFAULT_PORT on. InputError: none can."""
    ports = range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED) if port is None else [port]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in ports:
        try:
            listener = socket.create_server((host, candidate), family=family)
        except OSError as error:
            reason = error
            continue
        if port is None and candidate != DEFAULT_PORT:
            print(f"port {DEFAULT_PORT} is taken; using {candidate}", file=sys.stderr)
        with listener:
            yield listener
        return
    raise InputError(f"cannot listen on {host} port {ports[-1]} ({reason.strerror or reason}); choose another --port")


def run_app(app: Any, listener: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM."""
    import uvicorn

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that the files are deleted then too
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if host not in LOOPBACK:
        print("note: everybody who can reach this machine can use the page", file=sys.stderr)
    config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=1)
    with suppress(KeyboardInterrupt):
        print(f"page: http://{shown}:{port}  (Ctrl-C ends it)", flush=True)
        uvicorn.Server(config).run(sockets=[listener])
    print("ended; all uploaded files are deleted", file=sys.stderr)
