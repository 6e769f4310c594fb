"""python -m eval.bench; its processes find what they run in program.py, which they could not in a main module."""

import sys

from eval.bench.program import main

if __name__ == "__main__":
    sys.exit(main())
