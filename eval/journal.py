"""What lets an evaluation run in several processes and be interrupted: its process group and its journal.

The group works with torchrun and Slurm, on GPUs (nccl) and on CPUs (gloo; mmengine's own start needs a GPU). No
gradients are exchanged, so the model is not wrapped; the processes only meet at `gather` and `wait`.

A journal is a folder of JSON-lines files. Every process of every run appends to a file of its own; a line is
on disk (flushed, fsynced) before the next item begins. After kill -9 at most the item in flight is lost. Every line
has a checksum and says to which identity it belongs: one that is damaged costs its item alone, which is done again. Any
number of processes may resume what any other number began.
"""

import json
import os
import subprocess
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Self, TypeVar

from mmengine import dist
from torch import distributed

from eval.run_folder import RUN_FILES, differences, held, set_run_aside
from textregion.config import fingerprint
from textregion.devices import process_device
from textregion.errors import InputError, one_of
from textregion.storage import flush_to_disk, reading

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


# ---------------------------------------------------------------------- the folder of a run


@contextmanager
def locked(folder: str | Path, group: Processes | None = None) -> Iterator[None]:
    """Hold a run's folder, which is made if need be, for as long as the body runs; in all processes together.

    InputError, in each of them, when another run holds it or it cannot be written.
    """
    group = group or Processes()
    with ExitStack() as stack:
        refused = None
        if group.is_first:
            try:
                stack.enter_context(held(folder))
            except InputError as error:
                refused = str(error)
        if told := [one for one in group.gather(refused) if one]:
            raise InputError(told[0])
        yield


# ---------------------------------------------------------------------- the journal


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _sealed(line: Mapping) -> bytes:
    """A line with the checksum of its content."""
    text = _canonical(line)
    return _canonical({**line, "check": f"{zlib.crc32(text.encode()):08x}"}).encode() + b"\n"


def _opened(line: bytes) -> dict | None:
    """A line's content, None when it is damaged."""
    try:
        content = json.loads(line)
        check = content.pop("check")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return content if check == f"{zlib.crc32(_canonical(content).encode()):08x}" else None


def is_skipped(record: Mapping) -> bool:
    """Whether a record holds no number but the reason why, which may be a passing one: it is tried again on resume."""
    return "skipped" in record or "unreadable" in record


class Journal(AbstractContextManager):
    """Records of finished items by id; `with Journal.start(...) as journal:` in every process.

    folder: where the files lie. settings: the identity, everything that decides the numbers (not: where, how fast).
    digests: {item: hash of its files}; an item whose files are not what they were is another identity too.
    anyway: go on with records of another identity; `differing` then says what differs.
    done: {item id: record} of earlier runs; `add` extends it with this process's own.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping,
        digests: Mapping[str, str] | None = None,
        anyway: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.settings = json.loads(_canonical(settings))
        self.fingerprint = fingerprint(self.settings)
        self.digests, self.anyway = dict(digests or {}), anyway
        self.done: dict[str, dict] = {}
        self.own: dict[str, dict] = {}
        self.differing: list[str] = []
        self._file = None

    @classmethod
    def start(
        cls,
        folder: str | Path,
        settings: Mapping,
        resume: bool = False,
        group: Processes | None = None,
        digests: Mapping[str, str] | None = None,
        anyway: bool = False,
    ) -> Self:
        """Read what is there (resume) or set it aside with the earlier run's results, then open a file of one's own.

        Called by all processes of the group together. InputError: made with another identity; nothing is changed then.
        """
        group = group or Processes()
        journal = cls(folder, settings, digests, anyway)
        if resume or anyway:
            journal.done = journal.read(tells=group.is_first)
        elif group.is_first:
            set_run_aside(journal.folder.parent, (journal.folder.name, *RUN_FILES))
        group.wait()  # nobody opens a file while others still read or move
        journal.folder.mkdir(parents=True, exist_ok=True)
        runs = count()
        while journal._file is None:
            with suppress(FileExistsError):
                name = f"run{next(runs):03d}-process{group.number:03d}.jsonl"
                journal._file = (journal.folder / name).open("xb")
        journal._write({"fingerprint": journal.fingerprint, "settings": journal.settings})
        return journal

    def read(self, tells: bool = True) -> dict[str, dict]:
        """All records on disk. InputError for another identity, unless it is taken anyway.

        Damaged lines are left out, with a warning that counts them; a last line without its end is no damage but the
        item that was in flight. tells: whether this process warns.
        """
        records: dict[str, dict] = {}
        differing: dict[str, None] = {}
        damaged: list[str] = []
        for path in sorted(self.folder.glob("run*.jsonl")):
            with reading(path):
                whole = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn, or nothing
            told = None  # the identity that the file's first line tells
            for number, line in enumerate(whole, start=1):
                record = _opened(line)
                if record is None:
                    if number == 1 and (old := self._of_another_format(line)):
                        raise InputError(f"{path} {old}; give another --work-dir")
                    damaged.append(f"line {number} of {path}")
                elif "settings" in record:
                    told = record["settings"]
                    differing |= dict.fromkeys(differences(told, self.settings))
                else:
                    if record["of"] != self.fingerprint and told is None:
                        differing["the line that tells its settings is damaged"] = None
                    self._take(record, records, differing)
            if told is not None and fingerprint(told) != self.fingerprint and not differing:
                differing["settings that differ in their types only"] = None
        if differing and not self.anyway:
            first, more = list(differing)[:3], len(differing) - 3
            raise InputError(
                f"{self.folder} was made with other settings ({'; '.join(first)}"
                f"{f'; and {more} more' if more > 0 else ''}); resume with the same ones, give another --work-dir, or "
                "go on all the same with --resume-anyway, which the results will tell"
            )
        if damaged and tells:
            lines = f"{len(damaged)} lines of the journal are damaged ({damaged[0]} first)"
            warnings.warn(f"{lines}: what they held is done again", stacklevel=3)
        self.differing = list(differing)
        return records

    def _take(self, record: dict, records: dict[str, dict], differing: dict[str, None]) -> None:
        """One record; whether its item's files are still the same is said in `differing`."""
        item, of, files = record.pop("id"), record.pop("of"), record.pop("files", None)
        now = self.digests.get(item)
        if files is not None and now is not None and files != now and not is_skipped(record):
            differing[f"data.{item}: its files were other ones"] = None
        if of == self.fingerprint or self.anyway:
            records[item] = record

    @staticmethod
    def _of_another_format(line: bytes) -> str:
        """Of a first line that could not be opened: whether an older version of the project wrote it."""
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            return ""
        old = isinstance(content, dict) and "settings" in content and "check" not in content
        return "was written by an older version, whose records tell less" if old else ""

    def left(self, items: Sequence[str]) -> list[str]:
        """Those of the items that are not done, or were skipped."""
        return [item for item in items if item not in self.done or is_skipped(self.done[item])]

    def add(self, item: str, record: Mapping) -> None:
        """Keep one finished item; it is on disk when this returns."""
        record = json.loads(_canonical(record))
        files = {"files": self.digests[item]} if item in self.digests else {}
        self._write({"id": item, "of": self.fingerprint, **files, **record})
        self.own[item] = record

    def _write(self, line: Mapping) -> None:
        if self._file is None:
            raise RuntimeError("this journal is not open; use Journal.start")
        self._file.write(_sealed(line))
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
            file, self._file = self._file, None
            with suppress(OSError):  # a full disk: every line was flushed, or told of when it was written
                file.close()

    def __exit__(self, *_: object) -> None:
        self.close()
