"""What labels are asked with: 80 templates, class files (method 8.1, 8.6)."""

from collections.abc import Callable
from os.path import isfile
from pathlib import Path

from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from textregion.errors import InputError
from textregion.labels import LabelPrompts as LabelPrompts

TEMPLATES = tuple(OPENAI_IMAGENET_TEMPLATES)
LONGEST_TEMPLATE = max(TEMPLATES, key=lambda template: len(template("")))


def fills_context(label: str, tokenizer: Callable[[list[str]], Tensor]) -> bool:
    """Whether the label's longest prompt reaches the end of the model's context, so that words may be cut off."""
    prompt = LONGEST_TEMPLATE(label)
    plain, longer = tokenizer([prompt, f"{prompt} more"])
    return bool((plain == longer).all())


def read_class_file(path: str | Path) -> list[str]:
    """One label per line, synonyms separated by "; ", UTF-8; blank lines are left out."""
    path = Path(path)
    if not isfile(path):
        raise InputError(f"no class file {path}; expected a text file with one label per line")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is not a UTF-8 text file ({error}); expected one label per line") from error
    return [line.strip() for line in lines if line.strip()]
