"""Evaluate all segmentation benchmarks that are there: python eval_all_semantic.py --presets clip-vit-b16."""

import sys

from eval import start

if __name__ == "__main__":
    sys.exit(start("eval_all_semantic.py", "eval.semantic_cli", "main_all"))
