"""Start and end of the page's server. gradio is imported when it is asked for, never before."""

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textregion.cli.settings import segmenter_options
from textregion.errors import InputError, needs
from textregion.web.arguments import DEFAULT_PORT, LOOPBACK, limits_of

if TYPE_CHECKING:
    import argparse

PORTS_TRIED = 100


def serve(args: "argparse.Namespace", segmenter_class: type) -> None:
    """Serve the page until Ctrl-C. InputError: gradio is missing, the port is taken, no such preset, …"""
    limits = limits_of(args)
    if args.image_list or args.image_query_cfg or args.labels:
        raise InputError("with --serve images and labels are given on the page; leave --image, --labels, … out")
    with temporary_files() as files, listening(args.host, args.port) as listener:
        with needs("the page", layer="web", extra="web"):
            from textregion.web.page import build_app
        preset = args.preset or "tiny"
        segmenter = segmenter_class.from_preset(preset, **segmenter_options(args))
        run_app(build_app(segmenter, preset, limits, files, args.host), listener)


@contextmanager
def temporary_files() -> Iterator[Path]:
    """A folder for everything that is uploaded or made, gone at the end; gradio is told to use it, and to be quiet.

    These settings are read when gradio is imported, so this comes first.
    """
    with tempfile.TemporaryDirectory(prefix="textregion-page-", ignore_cleanup_errors=True) as folder:
        path = Path(folder).resolve()
        settings = {
            "GRADIO_TEMP_DIR": str(path),
            "GRADIO_EXAMPLES_CACHE": str(path / "examples-cache"),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        before = {name: os.environ[name] for name in settings if name in os.environ}
        os.environ.update(settings)
        try:
            yield path
        finally:
            for name in settings:
                del os.environ[name]
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
