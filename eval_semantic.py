"""Evaluate one segmentation benchmark: python eval_semantic.py --config configs/cfg_ds/cfg_tiny.py."""

import sys

from textregion.errors import InputError, needs


def main() -> int:
    """The program of eval/semantic_cli.py; 2 after one line when the packages that it runs on are not installed."""
    try:
        with needs("eval_semantic.py", layer="eval"):
            from eval import semantic_cli
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return semantic_cli.main()


if __name__ == "__main__":
    sys.exit(main())
