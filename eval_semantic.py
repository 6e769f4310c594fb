"""Evaluate one segmentation benchmark: python eval_semantic.py --config configs/cfg_ds/cfg_tiny.py."""

import sys

from eval import start

if __name__ == "__main__":
    sys.exit(start("eval_semantic.py", "eval.semantic_cli"))
