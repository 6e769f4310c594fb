"""`python -m textregion` is the console program `textregion`."""

import sys

from textregion.cli.main import main

sys.exit(main())
