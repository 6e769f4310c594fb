"""Which images a run measures, what a table must say of it, and where it lies by default."""

import json
from argparse import Action
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from eval.identity import PLACES
from eval.run_folder import differences
from textregion.cli.command_line import positive
from textregion.config import fingerprint
from textregion.errors import InputError
from textregion.storage import read_text

SHOWN = 3  # names that a message lists
DIGITS = 8  # of the identity's hash in the name of a folder


@dataclass(frozen=True)
class Selection:
    """The images of a run, in order. limit, names: as they were asked for."""

    items: list[str]
    limit: int | None = None
    names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, every: Sequence[str], limit: int | None = None, listed: Path | None = None) -> Self:
        """Of all images those named in the file `listed`, then the first `limit`.

        A name is an image's id, or the end of one that no other has ("a.png" of "val/a.png"), with or without the
        file's ending; one a line, "#" begins a comment. InputError for an empty list and for names that are not there.
        """
        if listed is None:
            return cls(list(every)[:limit], limit)
        lines = (line.strip() for line in read_text(listed, "names of images, one a line").splitlines())
        names = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
        if not names:
            example = next(iter(every), "a.png")
            raise InputError(f"--images {listed} names no image; expected one a line, such as {example}")
        known = _names(every)
        if missing := [name for name in names if not known.get(name)]:
            shown = ", ".join(missing[:SHOWN]) + ", …" * (len(missing) > SHOWN)
            raise InputError(
                f"--images {listed}: {len(missing)} of {len(names)} names are no image here ({shown}); "
                f"expected names such as {next(iter(every), 'none')}"
            )
        if unclear := [name for name in names if len(known[name]) > 1]:
            both = " and ".join(known[unclear[0]][:2])
            raise InputError(f"--images {listed}: {unclear[0]} may be {both}; write the whole name")
        chosen = {known[name][0] for name in names}
        return cls([item for item in every if item in chosen][:limit], limit, names)

    def told(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """As results.json has it. digests: of the images' files; `content` is equal where images and files are."""
        images = fingerprint({"images": sorted(self.names)}) if self.names is not None else None
        content = fingerprint({"items": {item: digests.get(item) for item in self.items}})
        return {"limit": self.limit, "images": images, "count": len(self.items), "content": content}


def _names(every: Sequence[str]) -> dict[str, list[str]]:
    """{name: the items that may be meant}: an item's whole name means it alone."""
    known: dict[str, list[str]] = {}
    for item in every:
        parts = Path(item).parts
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            for name in {end, end.removesuffix(Path(item).suffix)}:
                known.setdefault(name, []).append(item)
    return {**known, **{item: [item] for item in every}}


def selection_flags(add: Callable[..., Action]) -> None:
    """The flags that every evaluation has: which images, and how to go on."""
    add("--limit", type=positive, metavar="N", help="only the first N images")
    add("--images", type=Path, metavar="LIST", help="only the images named in this file, one a line")
    add("--resume", action="store_true", help="go on where an interrupted run in the same work dir stopped")
    anyway = "as --resume, though the records there are of another identity: results.json will tell"
    add("--resume-anyway", action="store_true", help=anyway)


def marks_of(
    selection: Selection, model: Mapping[str, Any], options: Mapping[str, Any], differing: Sequence[str] = ()
) -> list[str]:
    """What keeps a run from being one as published; [] for a plain one.

    model: arguments that were given. options: overrides of the config.
    """
    marks = [f"first {selection.limit} images"] * (selection.limit is not None)
    marks += [f"{len(selection.items)} listed images"] * (selection.names is not None)
    marks += ["random weights"] * bool(model.get("random_weights"))
    given = {key: value for key, value in model.items() if key not in (*PLACES, "preset", "random_weights")}
    given |= {key: value for key, value in options.items() if key.rpartition(".")[2] not in PLACES}
    given |= {key: "given" for key in model if key.endswith("_checkpoint")}
    marks += [f"{key}={_short(value)}" for key, value in given.items()]
    return marks + ["resumed with another identity"] * bool(differing)


def _short(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def default_folder(parent: Path, preset: str, identity: Mapping[str, Any], resume: bool = False) -> Path:
    """parent/<preset>-<identity>.

    InputError for --resume when there are runs of other identities alone: in what the last of them differs.
    """
    stem = preset.replace("/", "-")
    folder = parent / f"{stem}-{fingerprint(identity)[:DIGITS]}"
    if not resume or folder.exists():
        return folder
    others = sorted(parent.glob(f"{stem}-*/journal/run*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not others:
        return folder
    with others[-1].open() as file:
        line = file.readline()
    try:
        changed = differences(json.loads(line).get("settings"), json.loads(json.dumps(identity, default=str)))
    except ValueError:
        changed = ["its first line is damaged"]
    raise InputError(
        f"no run of these settings in {parent}; the last there, {others[-1].parents[1].name}, was made with others "
        f"({'; '.join(changed[:SHOWN])}); leave --resume out, or give the folder as --work-dir"
    )
