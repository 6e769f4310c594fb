"""python -m eval.bench; its processes find what they run in program.py, which they could not in a main module."""

import sys

from eval import start

if __name__ == "__main__":
    sys.exit(start("python -m eval.bench", "eval.bench.program"))
