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

from PIL import Image

from textregion.cli.program import segmenter_options
from textregion.errors import InputError, needs
from textregion.tiny.scenes import draw_scene
from textregion.web.arguments import DEFAULT_PORT, limits_of
from textregion.web.gate import LOCAL_NAMES, Gate
from textregion.web.session import Workbench
from textregion.web.views import LABELS, SENTENCE

if TYPE_CHECKING:
    import argparse

PORTS_TRIED = 100
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# (seed, mode, text): None stands for all names in the drawn scene.
EXAMPLES = (
    (11, LABELS, None),
    (19, LABELS, None),
    (15, SENTENCE, "the green hexagon"),
    (18, LABELS, "blue shape, orange shape, pink shape, yellow shape, brick, grass"),
    (9, SENTENCE, "the yellow ring"),
    (20, LABELS, None),
)


def serve(args: "argparse.Namespace", segmenter_class: type) -> None:
    """Serve the page until Ctrl-C. InputError: gradio is missing, the port is taken, no such preset, …"""
    limits = limits_of(args)
    if args.image or args.image_list or args.image_query_cfg or args.labels:
        raise InputError("with --serve images and labels are given on the page; leave --image, --labels, … out")
    with temporary_files() as files, listening(args.host, args.port) as listener:
        check_gradio()
        preset = args.preset or "tiny"
        segmenter = segmenter_class.from_preset(preset, **segmenter_options(args))
        app = build_app(Workbench(segmenter, preset, limits), files, allowed_hosts(args.host))
        run_app(app, listener)


def check_gradio() -> None:
    """InputError with the remedy when gradio is not installed."""
    with needs("the page", layer="web", extra="web"):
        import gradio  # noqa: F401 (its absence is the question)


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
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            yield path
        finally:
            os.environ.update({name: value for name, value in before.items() if value is not None})
            for name in (name for name, value in before.items() if value is None):
                del os.environ[name]


def draw_examples(files: Path) -> list[list[str]]:
    """The example scenes as PNG files in a folder: (file, mode, text) each."""
    rows = []
    for seed, mode, text in EXAMPLES:
        scene = draw_scene(seed, distinct_colours=True)
        path = files / f"scene_{seed}.png"
        Image.fromarray(scene.image).save(path)
        rows.append([str(path), mode, text or ", ".join(scene.labels)])
    return rows


def build_app(bench: Workbench, files: Path, hosts: tuple[str, ...] | None) -> Gate:
    """The ASGI app: the page behind its gate. files: see `temporary_files`; hosts: see `Gate`."""
    import gradio as gr
    from fastapi import FastAPI

    from textregion.web.page import CSS, build_page, theme

    page = build_page(bench, draw_examples(files))
    page.queue(max_size=bench.limits.queue_size, default_concurrency_limit=1, api_open=False)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        theme=theme(),
        css=CSS,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=bench.limits.max_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )
    page.has_launched = True  # else gradio takes any path of this machine for an uploaded file
    return Gate(app, files, bench.limits.max_bytes, hosts)


def allowed_hosts(host: str) -> tuple[str, ...] | None:
    """Names the page may be asked for by: local ones if it listens to this machine only, any otherwise."""
    return LOCAL_NAMES if host in LOOPBACK else None


@contextmanager
def listening(host: str, port: int | None) -> Iterator[socket.socket]:
    """A socket that listens on the port, by default the first free one from DEFAULT_PORT on. InputError: none can."""
    ports = range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED) if port is None else [port]
    for candidate in ports:
        try:
            listener = socket.create_server((host, candidate), family=family_of(host))
        except OSError as error:
            reason = error
            continue
        if port is None and candidate != DEFAULT_PORT:
            print(f"port {DEFAULT_PORT} is taken; using {candidate}", file=sys.stderr)
        with listener:
            yield listener
        return
    raise InputError(f"cannot listen on {host} port {ports[-1]} ({reason.strerror or reason}); choose another --port")


def family_of(host: str) -> socket.AddressFamily:
    """IPv4 or IPv6, whichever the host is."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


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
