"""Imported first by programs: open_clip without the package transformers, which would add to every start.

Where transformers is installed, open_clip imports it (0.6 to 1 s) for text towers of transformers' own, which no
backbone of ours has (`backbones.loading` refuses them), and where it is not, goes on without. So while open_clip is
imported, transformers is marked as absent, in Python's own way (None in sys.modules); after that everything can import
it. Nothing happens where one of the two is imported already. For programs alone: `import textregion` in a process of
yours leaves open_clip as it is.
"""

import sys

if "open_clip" not in sys.modules and "transformers" not in sys.modules:
    sys.modules["transformers"] = None  # type: ignore[assignment]
    try:
        import open_clip  # noqa: F401
    finally:
        del sys.modules["transformers"]
