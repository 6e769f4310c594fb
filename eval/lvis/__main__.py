"""Evaluate box recognition: python -m eval.lvis --annotations FILE --image_root DIR."""

import sys

from eval.lvis.cli import main

if __name__ == "__main__":
    sys.exit(main())
