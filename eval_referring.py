"""Evaluate referring expressions: python eval_referring.py --input_file_root DIR --image_root DIR."""

import sys

from eval.referring import main

if __name__ == "__main__":
    sys.exit(main())
