"""The page as a hosted demo, as Hugging Face Spaces and others start it: docs/hosting.md."""

import os
import sys

from textregion.cli.program import main

preset, port = os.environ.get("PRESET", "tiny"), os.environ.get("PORT", "7860")
sys.exit(main(["--serve", "--host", "0.0.0.0", "--port", port, "--preset", preset]))
