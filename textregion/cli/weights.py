"""Fetching the weights of presets for machines without internet.

    python -m textregion weights --preset clip-vit-l14-336 --to weights     # on a machine with internet
    python -m textregion weights --verify weights                           # after copying, anywhere
    python TextRegionSegmenter.py --clip_download_root weights …            # looks there, for SAM 2 too

Environment: TEXTREGION_CLIP and TEXTREGION_SAM2 name a weight file, or a folder made by `--to`, of the
image-text model and of SAM 2. HF_HUB_OFFLINE=1 never asks the network; HF_HOME moves the cache.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from textregion.cli.command_line import Parser, run_program
from textregion.errors import InputError
from textregion.presets import assets_of
from textregion.weights import CHECKSUMS, fetch, verify


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; 0, or 2 after one line on stderr."""
    parser = Parser(prog="python -m textregion weights", description=__doc__)
    parser.add_argument("--preset", nargs="+", metavar="NAME", help="presets whose files are wanted")
    parser.add_argument("--to", metavar="DIR", default="weights", help="folder to put them in (default: weights)")
    parser.add_argument("--verify", metavar="DIR", help="check a folder against its checksums, fetch nothing")
    options = parser.parse_args(arguments)
    return run_program(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if options.verify:
        print(f"{len(verify(options.verify))} files in {options.verify} are as they were fetched")
        return
    if not options.preset:
        raise InputError("nothing to do; give --preset NAME [NAME …] --to DIR, or --verify DIR")
    assets = list(dict.fromkeys(asset for name in options.preset for asset in assets_of(name)))
    if not assets:
        print(f"{', '.join(options.preset)} needs no files: its weights are in the repository")
        return
    for path in fetch(assets, options.to):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    print(f"checksums in {Path(options.to) / CHECKSUMS}; use it with --clip_download_root {options.to}")


if __name__ == "__main__":
    sys.exit(main())
