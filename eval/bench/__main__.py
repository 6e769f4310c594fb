"""python -m eval.bench; its processes find what they run in program.py, which they could not in a main module."""

import sys

from eval.bench import program, search

if __name__ == "__main__":
    sys.exit(search.main(sys.argv[2:]) if sys.argv[1:2] == ["search"] else program.main())
