"""The tasks: semantic segmentation through mmseg, referring expressions, reasoning; and what they share."""

import sys
from importlib import import_module

from textregion.errors import InputError, needs


def start(program: str, module: str, main: str = "main") -> int:
    """Run a module's function; 2 after one line when packages that it runs on are not installed, 130 after Ctrl-C."""
    try:
        with needs(program, layer="eval"):
            body = getattr(import_module(module), main)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was begun", file=sys.stderr)
        return 130
    return body()
