"""`textregion weights`."""

from textregion.weights import main

__all__ = ["main"]
