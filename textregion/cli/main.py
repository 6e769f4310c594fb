"""The console program `textregion` with its commands; without arguments the drawn scene."""

import sys
from collections.abc import Sequence
from glob import has_magic
from os.path import exists

import textregion.quick_start  # noqa: F401
from textregion.cli.models import presets, weights
from textregion.cli.program import main as label
from textregion.cli.search import index, search

HELP = """usage: textregion [COMMAND] [--help]

Label every pixel of an image with your own words, without training.

  textregion                       a drawn scene and tiny embedded models: try it, no download
  textregion segment IMAGE … -l WORD …      photos, folders or globs: labels, regions, COCO files
  textregion boxes IMAGE … -l WORD … --boxes X1,Y1,X2,Y2 …      what is in given boxes
  textregion index IMAGE … --to TABLE       every region of many images into one table …
  textregion search TABLE WORDS             … to be found by words, or by a region of an image
  textregion serve                 labels, and tables, in the browser, on this machine only
  textregion presets               the table of models
  textregion weights               fetch or check weight files for a machine without a network

`textregion COMMAND --help` tells the flags. Flags without a command are those of segment."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code: 0 all done, 1 something was left out, 2 bad input, 130 stopped."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words in (["--help"], ["-h"]):
        print(HELP)
        return 0
    match words:
        case ["presets", *rest]:
            return presets(rest)
        case ["weights", *rest]:
            return weights(rest)
        case ["index", *rest]:
            return index(rest)
        case ["search", *rest]:
            return search(rest)
        case ["boxes", *rest] if not {"--boxes", "--help", "-h"} & {word.partition("=")[0] for word in rest}:
            print("error: give --boxes x1,y1,x2,y2 … or --boxes FILE; see textregion boxes --help", file=sys.stderr)
            return 2
        case ["boxes", *rest]:
            return label(rest, prog="textregion boxes")
        case ["serve", *rest]:
            words = ["--serve", *rest]
        case ["segment", *rest]:
            words = rest
        case [first, *_] if not (first.startswith("-") or has_magic(first) or exists(first)):
            print(f"error: unknown command {first!r}; textregion --help lists those there are", file=sys.stderr)
            return 2
    return label(words, prog="textregion segment")
