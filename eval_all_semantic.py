"""Evaluate all segmentation benchmarks that are there: python eval_all_semantic.py --presets clip-vit-b16."""

import sys

from textregion.errors import InputError, needs


def main() -> int:
    """The program of eval/semantic_all.py; 2 after one line when the packages that it runs on are not installed."""
    try:
        with needs("eval_all_semantic.py", layer="eval"):
            from eval import semantic_all
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return semantic_all.main()


if __name__ == "__main__":
    sys.exit(main())
