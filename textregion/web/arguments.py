"""The flags of the web page."""

import argparse

from textregion.cli.command_line import positive
from textregion.web.limits import MEGABYTE, Limits

DEFAULT_PORT = 7860


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --serve and what belongs to it."""
    default = Limits()
    add = parser.add_argument_group("web page").add_argument
    add("--serve", action="store_true", help="open a page in the browser for images and labels (preset tiny)")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where it listens (127.0.0.1, this machine only)")
    add(
        "--port",
        type=port,
        metavar="N",
        help=f"its port, 0 for any free one (the first free one from {DEFAULT_PORT} on)",
    )
    add(
        "--max_pixels",
        type=positive,
        default=default.max_pixels,
        metavar="N",
        help=f"larger images are refused by the page ({default.max_pixels})",
    )
    add(
        "--max_megabytes",
        type=positive,
        default=default.max_bytes // MEGABYTE,
        metavar="N",
        help=f"larger image files are refused by the page ({default.max_bytes // MEGABYTE})",
    )
    add(
        "--cache_megabytes",
        type=positive,
        default=default.cache_bytes // MEGABYTE,
        metavar="N",
        help=f"memory for encoded images, so that new labels need no new encoding ({default.cache_bytes // MEGABYTE})",
    )
    add(
        "--queue_size",
        type=positive,
        default=default.queue_size,
        metavar="N",
        help=f"requests that may wait; further ones are turned away ({default.queue_size})",
    )


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
