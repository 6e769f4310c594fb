"""python -m eval.bench; its processes find what they run in program.py, which they could not in a main module."""

import sys

from eval import start

if __name__ == "__main__":
    if sys.argv[1:2] in (["search"], ["memory"]):  # programs of their own, with flags of their own
        name = sys.argv.pop(1)
        sys.exit(start(f"python -m eval.bench {name}", f"eval.bench.{name}"))
    sys.exit(start("python -m eval.bench", "eval.bench.program"))
