"""The flags that say where the work on many images is done: in this process, or in actors of Ray."""

import argparse

from textregion.cli.command_line import Parser, positive
from textregion.devices import resolve_device
from textregion.engines import ENGINES, Engine

GPU_BATCH = 8  # images encoded together there; a CPU gains nothing from more than one


def add_engine_flags(parser: Parser) -> None:
    """--engine, --address, --workers."""
    add = parser.add_argument_group("where the work is done").add_argument
    add("--engine", choices=ENGINES, default="local", help="this process, or actors of Ray, here or elsewhere (local)")
    add("--address", metavar="ADDRESS", help="of a Ray cluster; auto: the one this machine is in (none: here alone)")
    add("--workers", type=positive, metavar="N", help="Ray's actors (one per GPU, or per CPU where there is none)")


def add_batch_flag(parser: Parser) -> None:
    """--batch, of a program that encodes images together."""
    told = f"images encoded together ({GPU_BATCH} on a GPU, 1 on a CPU)"
    parser.add_argument("--batch", type=positive, metavar="N", help=told)


def engine_of(args: argparse.Namespace) -> Engine:
    """The engine that the flags name. InputError for flags that exclude each other."""
    batch = 1
    if "batch" in args:
        batch = args.batch or (GPU_BATCH if resolve_device(args.device).type != "cpu" else 1)
    return Engine(args.engine, batch, address=args.address, workers=args.workers)
