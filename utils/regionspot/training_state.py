"""Checkpoints of a training run: everything that going on exactly needs, written whole or not at all."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from textregion.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

FOLDER = "checkpoints"
SETTINGS = "settings.json"


def save_state(accelerator: "Accelerator", folder: Path, step: int, settings: dict, keep: int) -> None:
    """Weights, optimizer, gradient scaler and every process's random state after a step; only the last `keep` stay.

    Written beside its place and renamed, so an interruption leaves the checkpoints before it.
    """
    place = folder / FOLDER / f"step_{step:08d}"
    unfinished = place.with_name(f".{place.name}")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(unfinished))
    except OSError as error:
        raise InputError(f"cannot write the checkpoint {place} ({error}); free space, then --resume") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (unfinished / SETTINGS).write_text(json.dumps({"step": step, "settings": settings}, indent=1))
        unfinished.rename(place)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((folder / FOLDER).glob("step_*"))


def load_state(accelerator: "Accelerator", folder: Path, settings: dict) -> int:
    """Go back to the last checkpoint; returns its step, 0 when there is none.

    InputError in one line when it was made with other settings, or is damaged.
    """
    found = checkpoints(folder)
    if not found:
        return 0
    try:
        meta = json.loads((found[-1] / SETTINGS).read_text())
        _compare(found[-1], meta["settings"], json.loads(json.dumps(settings)))
        accelerator.load_state(str(found[-1]))
        return int(meta["step"])
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise InputError(f"{found[-1]} is damaged ({reason}); delete it to go on from the one before") from error


def _compare(path: Path, before: dict, now: dict) -> None:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{path} was made with {name} {before.get(name)!r}, got {now.get(name)!r}; "
                "give the same, or another --output"
            )
