"""The flags of the web page and the limits they set on what a visitor may ask for."""

import argparse
from dataclasses import dataclass

from textregion.cli.command_line import positive
from textregion.errors import at_least

DEFAULT_PORT = 7860
LOOPBACK = ("127.0.0.1", "localhost", "::1")  # values of --host by which only this machine reaches the page
MEGABYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds on what the page's users send and on what is kept for them.

    max_pixels: pixels of an image. max_bytes: bytes of an image file. max_labels: labels of one question.
    max_characters: length of one label or sentence. cache_bytes: memory of the encoded images that are kept.
    queue_size: waiting requests; further ones are turned away.
    """

    max_pixels: int = 24_000_000
    max_bytes: int = 20 * MEGABYTE
    max_labels: int = 50
    max_characters: int = 200
    cache_bytes: int = 1024 * MEGABYTE
    queue_size: int = 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            at_least(name, value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --serve and what belongs to it."""
    add = parser.add_argument_group("web page").add_argument
    add("--serve", action="store_true", help="open a page in the browser for images and labels (preset tiny)")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where it listens (127.0.0.1, this machine only)")
    port_help = f"its port, 0 for any free one (the first free one from {DEFAULT_PORT} on)"
    add("--port", type=port, metavar="N", help=port_help)
    limits = Limits()
    most, kept = limits.max_bytes // MEGABYTE, limits.cache_bytes // MEGABYTE
    for flag, default, text in (
        ("max_pixels", limits.max_pixels, "larger images are refused by the page"),
        ("max_megabytes", most, "larger image files are refused by the page"),
        ("cache_megabytes", kept, "memory for encoded images, so that new labels need no new encoding"),
        ("queue_size", limits.queue_size, "requests that may wait; further ones are turned away"),
    ):
        add(f"--{flag}", type=positive, default=default, metavar="N", help=f"{text} ({default})")


def port(text: str) -> int:
    """Argument type: a port, 0 to 65535."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a port from 1 to 65535, or 0 for any free one")
    return int(text)


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits the command line asks for."""
    return Limits(
        max_pixels=args.max_pixels,
        max_bytes=args.max_megabytes * MEGABYTE,
        cache_bytes=args.cache_megabytes * MEGABYTE,
        queue_size=args.queue_size,
    )
