"""Make the label maps the benchmarks need: bash process_dataset.sh [NAME …]."""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("process_dataset.sh", "eval.prepare.__main__"))

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.prepare.converters import ade20k, city_scapes, coco_object, coco_stuff164k, pascal_context, tiny, voc
from textregion.cli.command_line import Parser, run_program
from textregion.errors import InputError

EVERY = (voc, ade20k, city_scapes, coco_stuff164k, coco_object, pascal_context, tiny)
CONVERTERS: dict[str, Callable[[Path], str]] = {converter.__name__: converter for converter in EVERY}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the converters; 0, or 2 when one could not do its work (the others are done nevertheless)."""
    parser = Parser(prog="process_dataset.sh", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CONVERTERS)}; all when left out")
    root, where = os.environ.get("TEXTREGION_DATA", "data"), "where the data lie (default: $TEXTREGION_DATA, else data)"
    parser.add_argument("--data-root", type=Path, default=Path(root), help=where)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in CONVERTERS]
    if unknown:
        print(f"error: got {unknown[0]!r}, expected one of {', '.join(CONVERTERS)}", file=sys.stderr)
        return 2

    def body() -> int:
        failed = 0
        for name in options.names or CONVERTERS:
            try:
                print(f"{name}: {CONVERTERS[name](options.data_root)}", flush=True)
            except (InputError, OSError) as error:
                print(f"error: {name}: {error}", file=sys.stderr)
                failed += 1
        return 2 if failed else 0

    return run_program(body, "the same command makes what is missing")
