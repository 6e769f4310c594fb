"""Start and end of the page's server. gradio is imported when it is asked for, never before."""

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from textregion.errors import InputError, needs
from textregion.web.addresses import is_loopback
from textregion.web.cached_segmenter import Limits

try:
    import fcntl
except ImportError:  # Windows, where leftovers stay
    fcntl = None

DEFAULT_PORT = 7860
PORTS_TRIED = 100
FOLDER = "textregion-page-"  # begins the name of the folder with the page's files
BACKLOG = 100  # connections that wait to be taken; asyncio takes so many at a stroke, before older ones are ended


def serve(
    build_segmenter: Callable[[], Any],
    preset: str,
    limits: Limits,
    host: str,
    port: int | None,
    caution: str = "",
    table: Any = None,
) -> None:
    """Serve the page until Ctrl-C. InputError: gradio is missing, the port is taken, and those of `build_segmenter`.

    build_segmenter: makes the TextRegionSegmenter, once the port is had. host, port: where it listens (`listening`).
    caution: what page and files say of every answer. table: a `TableView` to search, or None.
    """
    with temporary_files() as files, listening(host, port) as listener:
        with without_proxies(), needs("the page", layer="web", extra="web"):
            from textregion.web.page import build_app
        segmenter = build_segmenter()  # which may need a proxy, to fetch weights
        if table is not None:
            table.index.share_words(segmenter)
        with without_proxies():
            local = is_loopback(listener.getsockname()[0])
            run_app(build_app(segmenter, preset, limits, files, local, caution, table), listener)


@contextmanager
def temporary_files() -> Iterator[Path]:
    """A folder for everything that is uploaded or made, gone at the end; gradio is told to use it, and to be quiet.

    The end may also be SIGTERM or SIGHUP (a closed terminal). What a killed server left is deleted at the next start.
    These settings are read when gradio is imported, so this comes first.
    """
    with ending_signals():
        clear_leftovers()
        path, lock = locked_folder()
        try:
            with environment(
                GRADIO_TEMP_DIR=str(path),
                GRADIO_EXAMPLES_CACHE=str(path / "examples-cache"),
                GRADIO_ANALYTICS_ENABLED="False",
                HF_HUB_DISABLE_TELEMETRY="1",
            ):
                yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


@contextmanager
def ending_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the body as Ctrl-C does; one that is ignored (`nohup`) stays so."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    wanted = [number for name in names if signal.getsignal(number := getattr(signal, name)) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def locked_folder() -> tuple[Path, int]:
    """A new folder and the open handle whose lock says that its server lives."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=FOLDER)).resolve()
        handle = os.open(path, os.O_RDONLY)
        if not lock_folder(handle) or path.is_dir():  # another start may have taken it for a leftover just now
            return path, handle
        os.close(handle)


def clear_leftovers() -> None:
    """Delete the folders of this user's servers that were killed: no living process holds their lock."""
    for path in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        if fcntl is None or path.is_symlink() or not path.is_dir() or path.stat().st_uid != os.getuid():
            continue
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:  # gone just now
            continue
        if lock_folder(handle):
            shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def lock_folder(handle: int) -> bool:
    """Whether this process has the lock of an open folder now: nobody else has it, and the system has such locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


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
    """Answer requests until Ctrl-C, SIGTERM or SIGHUP."""
    import uvicorn

    from textregion.web.connections import BoundedProtocol, FirstMessages

    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if not is_loopback(host):
        print("note: everybody who can reach this machine can use the page", file=sys.stderr)
    protocol = {"http": BoundedProtocol, "ws": "none", "backlog": BACKLOG}
    config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=1, **protocol)
    server, logger, few = uvicorn.Server(config), logging.getLogger("asyncio"), FirstMessages()
    logger.addFilter(few)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.default_int_handler:
        signal.signal(
            signal.SIGHUP, server.handle_exit
        )  # as uvicorn does with the other two; `ending_signals` undoes it
    with suppress(KeyboardInterrupt):
        print(f"page: http://{shown}:{port}  (Ctrl-C ends it)", flush=True)
        server.run(sockets=[listener])
    logger.removeFilter(few)
    with suppress(OSError):  # the terminal may be closed
        print("ended; all uploaded files are deleted", file=sys.stderr)
