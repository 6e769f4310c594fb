"""Evaluate all segmentation benchmarks that are there: python eval_all_semantic.py --presets clip-vit-b16."""

import sys

from eval.semantic_all import main

if __name__ == "__main__":
    sys.exit(main())
