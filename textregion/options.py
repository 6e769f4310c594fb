"""Options of segmenters and mask sources: dataclass fields that carry their own help, from which flags are made."""

from dataclasses import field
from typing import Any


def option(default: Any, help: str, **flag: Any) -> Any:
    """A dataclass field with a default and its help; flag: further arguments of its command-line flag (choices, …)."""
    return field(default=default, metadata={"help": help, "flag": flag})
