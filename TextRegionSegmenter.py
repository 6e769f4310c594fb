"""The published program, and the class under its published name.

    python TextRegionSegmenter.py --help
    from TextRegionSegmenter import TextRegionSegmenter

The class is textregion/segmenter.py's, the program that of `textregion segment`.
"""

import sys

if __name__ == "__main__":
    import textregion.quick_start  # noqa: F401

from textregion.cli.program import main
from textregion.segmenter import TextRegionSegmenter

__all__ = ["TextRegionSegmenter", "main"]

if __name__ == "__main__":
    sys.exit(main())
