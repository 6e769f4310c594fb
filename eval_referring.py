"""Evaluate referring expressions: python eval_referring.py --input_file_root DIR --image_root DIR."""

import sys

from eval import start

if __name__ == "__main__":
    sys.exit(start("eval_referring.py", "eval.referring"))
