"""What lets an evaluation run in several processes and be interrupted: its process group and its journal.

The group works with torchrun and Slurm, on GPUs (nccl) and on CPUs (gloo; mmengine's own start needs a GPU). No
gradients are exchanged, so the model is not wrapped; the processes only meet at `gather` and `wait`.

A journal is a folder of JSON-lines files. Every process of every run appends to a file of its own; a line is
on disk (flushed, fsynced) before the next item begins. After kill -9 at most the item in flight is lost: a
torn last line is ignored. Any number of processes may resume what any other number began.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Self, TypeVar

from mmengine import dist
from torch import distributed

from textregion.devices import process_device
from textregion.errors import InputError, one_of
from textregion.storage import flush_to_disk, reading, set_aside

Item = TypeVar("Item")
LAUNCHERS = ("none", "pytorch", "slurm")
PATIENCE = timedelta(days=2)  # the slowest process decides; a dead one is ended by its launcher


@dataclass(frozen=True)
class Processes:
    """This process among `count`: its number, and the device it should use."""

    number: int = 0
    count: int = 1
    device: str = "auto"

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes the results."""
        return self.number == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Every count-th item, from this process's number on: shares are disjoint, complete, equal by one."""
        return list(items[self.number :: self.count])

    def gather(self, value: Item) -> list[Item]:
        """The (picklable) value of every process, in the order of the processes, on each of them."""
        return dist.all_gather_object(value)

    def wait(self) -> None:
        """Until every process is here."""
        dist.barrier()


@contextmanager
def processes(launcher: str = "none", device: str = "auto", local_rank: int | None = None) -> Iterator[Processes]:
    """The process group for as long as the body runs.

    launcher: "none", "pytorch" (torchrun) or "slurm" (srun); the address comes from its environment.
    device: "auto" gives each process the GPU of its local number, or the CPU; others are taken as they are.
    local_rank: number on this machine, for launchers that pass it as an argument; else from the environment.
    InputError when the launcher's environment is not there.
    """
    one_of("launcher", launcher, LAUNCHERS)
    number, count, local = (0, 1, 0) if launcher == "none" else _environment(launcher, local_rank)
    if count == 1:
        yield Processes(device=device)
        return
    device, backend = process_device(device, local, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    distributed.init_process_group(backend, rank=number, world_size=count, timeout=PATIENCE)
    try:
        yield Processes(number, count, device)
    finally:
        distributed.destroy_process_group()


def _environment(launcher: str, local_rank: int | None) -> tuple[int, int, int]:
    """(number, count, number on this machine) as torchrun or Slurm tell them."""
    names, program = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), "torchrun --nproc_per_node=N"
    if launcher == "slurm":
        names, program = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"), "srun"
    missing = [name for name in names[:2] if name not in os.environ]
    if missing:
        raise InputError(f"--launcher {launcher}, but {missing[0]} is not set; start it with {program}")
    number, count = (int(os.environ[name]) for name in names[:2])
    if launcher == "slurm" and count > 1:  # its tasks meet at the first host, at a port of the job's own
        if "MASTER_ADDR" not in os.environ:
            hosts = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "localhost"))
            os.environ["MASTER_ADDR"] = _first_host(hosts)
        job = int(os.environ.get("SLURM_JOB_ID", 0)) * 31 + int(os.environ.get("SLURM_STEP_ID", 0))
        os.environ.setdefault("MASTER_PORT", str(20000 + job % 40000))
        tasks = os.environ.get("SLURM_NTASKS_PER_NODE", os.environ["SLURM_NTASKS"])
        os.environ.setdefault("LOCAL_WORLD_SIZE", tasks)
    return number, count, int(os.environ.get(names[2], local_rank or 0))


def _first_host(hosts: str) -> str:
    if "[" not in hosts:
        return hosts.split(",")[0]
    try:
        listed = subprocess.check_output(["scontrol", "show", "hostnames", hosts], stderr=subprocess.PIPE, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"scontrol cannot tell the hosts {hosts} ({error}); set MASTER_ADDR") from error
    return listed.split()[0]


# ---------------------------------------------------------------------- the journal


def fingerprint(settings: Mapping) -> str:
    """Short hash of JSON-able settings, independent of the order of their keys."""
    return hashlib.sha256(_canonical(settings).encode()).hexdigest()[:16]


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


class Journal(AbstractContextManager):
    """Records of finished items by id; `with Journal.start(...) as journal:` in every process.

    folder: where the files lie. settings: everything that decides the numbers (not: where, how fast).
    done: {item id: record} of earlier runs; `add` extends it with this process's own.
    """

    def __init__(self, folder: str | Path, settings: Mapping) -> None:
        self.folder = Path(folder)
        self.settings = json.loads(_canonical(settings))
        self.done: dict[str, dict] = {}
        self.own: dict[str, dict] = {}
        self._file = None

    @classmethod
    def start(cls, folder: str | Path, settings: Mapping, resume: bool = False, group: Processes | None = None) -> Self:
        """Read what is there (resume) or set it aside, then open a file of one's own.

        Called by all processes of the group together. InputError: made with other settings, or damaged.
        """
        group = group or Processes()
        journal = cls(folder, settings)
        if resume:
            journal.done = journal.read()
        elif group.is_first and journal.folder.exists():
            set_aside(journal.folder)
        group.wait()  # nobody opens a file while others still read or move
        journal.folder.mkdir(parents=True, exist_ok=True)
        runs = count()
        while journal._file is None:
            with suppress(FileExistsError):
                name = f"run{next(runs):03d}-process{group.number:03d}.jsonl"
                journal._file = (journal.folder / name).open("xb")
        journal._write({"fingerprint": fingerprint(journal.settings), "settings": journal.settings})
        return journal

    def read(self) -> dict[str, dict]:
        """All records on disk. InputError for other settings or a damaged line that is not the last."""
        records = {}
        for path in sorted(self.folder.glob("run*.jsonl")):
            with reading(path):
                whole = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn, or nothing
            for number, line in enumerate(whole, start=1):
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"line {number} of {path} is damaged; delete that file") from error
                if not isinstance(record, dict) or (number > 1 and not isinstance(record.get("id"), str)):
                    raise InputError(f"line {number} of {path} is no record with an id; delete that file")
                if number > 1:
                    records[record.pop("id")] = record
                elif record.get("fingerprint") != fingerprint(self.settings):
                    changed = differences(record.get("settings", {}), self.settings)
                    raise InputError(
                        f"{path.parent} was made with other settings ({'; '.join(changed[:3]) or 'unknown'}); "
                        "resume with the same ones or give another --work-dir"
                    )
        return records

    def add(self, item: str, record: Mapping) -> None:
        """Keep one finished item; it is on disk when this returns."""
        record = json.loads(_canonical(record))
        self._write({"id": item, **record})
        self.own[item] = record

    def _write(self, line: Mapping) -> None:
        if self._file is None:
            raise RuntimeError("this journal is not open; use Journal.start")
        self._file.write(_canonical(line).encode() + b"\n")
        self._file.flush()
        flush_to_disk(self._file.fileno(), self._file.name)

    def collect(self, group: Processes | None = None) -> dict[str, dict]:
        """Earlier records and those of all processes of this run; call it in all of them together."""
        records = dict(self.done)
        for own in (group or Processes()).gather(self.own):
            records.update(own)
        return records

    def close(self) -> None:
        """Close the file; `add` is an error afterwards."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __exit__(self, *_: object) -> None:
        self.close()


def differences(old: object, new: object, name: str = "") -> list[str]:
    """Where two JSON-able settings differ: ["model.scale: was [3, 2], now [6, 4]", …]."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{name}.{k}" if name else k)]
    if old == new:
        return []
    was, now = (text if len(text) <= 60 else text[:57] + "..." for text in map(_canonical, (old, new)))
    return [f"{name}: was {was}, now {now}"]
