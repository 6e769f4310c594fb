"""python -m eval.bench; its processes find what they run in program.py, which they could not in a main module."""

import sys

from eval import start

if __name__ == "__main__":
    if sys.argv[1:2] == ["search"]:  # a program of its own, with flags of its own
        del sys.argv[1]
        sys.exit(start("python -m eval.bench search", "eval.bench.search"))
    sys.exit(start("python -m eval.bench", "eval.bench.program"))
