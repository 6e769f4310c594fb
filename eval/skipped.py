"""Moved to eval/results.py."""

from eval.results import NOT_SCORED, SCORED, WRONG, Skipped, skipped_line

__all__ = ["NOT_SCORED", "SCORED", "WRONG", "Skipped", "skipped_line"]
