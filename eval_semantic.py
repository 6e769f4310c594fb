"""Evaluate one segmentation benchmark: python eval_semantic.py --config configs/cfg_ds/cfg_tiny.py."""

import sys

from eval.semantic_cli import main

if __name__ == "__main__":
    sys.exit(main())
