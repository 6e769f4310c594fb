"""What the converters share: naming what is missing, converting label maps one file at a time."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from textregion.errors import InputError
from textregion.storage import write_atomically


@dataclass(frozen=True)
class Need:
    """Something that must lie below the data root. where: from where it is to be had."""

    path: str
    where: str


def require(root: Path, needs: Sequence[Need]) -> None:
    """InputError in one line for the needs that are not there."""
    missing = [need for need in needs if not (root / need.path).exists()]
    if missing:
        listed = "; ".join(f"{root / need.path} (from {need.where})" for need in missing)
        raise InputError(f"missing: {listed}")


def files_below(folder: Path, ending: str, what: str) -> list[Path]:
    """All files with an ending, sorted; InputError when there are none."""
    found = sorted(folder.rglob(f"*{ending}"))
    if not found:
        raise InputError(f"{folder} has no {what} (*{ending}); unpack them there")
    return found


def read_map(path: Path) -> UInt8[np.ndarray, "H W"]:
    """A label map as stored (palette indices, not colours); InputError when damaged or not 8 bits, one channel."""
    try:
        with Image.open(path) as image:
            values = np.array(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} is not a readable label map ({error}); unpack it again") from error
    if values.ndim != 2 or values.dtype != np.uint8:
        raise InputError(f"{path} has shape {values.shape}, {values.dtype}; expected one 8-bit channel")
    return values


def write_map(path: Path, values: UInt8[np.ndarray, "H W"]) -> None:
    """Write a label map as PNG in one step."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def lookup_table(pairs: Iterable[tuple[int, int]], others: int | None = None) -> np.ndarray:
    """(256,) int16 from {raw: new}; other raw values become `others`, or -1 (refused) when None."""
    table = np.full(256, -1 if others is None else others, np.int16)
    for raw, new in pairs:
        table[raw] = new
    return table


def translate(values: UInt8[np.ndarray, "H W"], table: np.ndarray, path: Path) -> UInt8[np.ndarray, "H W"]:
    """New labels for raw ones; InputError for raw values the table refuses."""
    new = table[values]
    if (new < 0).any():
        unknown = np.unique(values[new < 0]).tolist()
        raise InputError(f"{path} has unknown labels {unknown}; is it the original file?")
    return new.astype(np.uint8)


def convert(sources: Sequence[Path], target: Callable[[Path], Path], table: np.ndarray, title: str) -> int:
    """Translate label maps file by file with a progress bar; those already there are kept. Returns how many are new.

    A target is written in one step after its source was read, so an interrupted conversion just goes on.
    """
    new = 0
    for source in tqdm(sources, title, unit="map"):
        if not target(source).exists():
            write_map(target(source), translate(read_map(source), table, source))
            new += 1
    return new


def replace_end(old: str, new: str) -> Callable[[Path], Path]:
    """Path to path with another ending."""
    return lambda path: path.with_name(path.name.removesuffix(old) + new)
