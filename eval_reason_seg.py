"""Evaluate reasoning segmentation: python eval_reason_seg.py --dataset_dir DIR --interpreted_query_dir DIR."""

import sys

from eval import start

if __name__ == "__main__":
    sys.exit(start("eval_reason_seg.py", "eval.reasoning"))
