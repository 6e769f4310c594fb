"""Several processes for one evaluation: start the group, share the items, gather the results.

Works with torchrun and Slurm, on GPUs (nccl) and on CPUs (gloo; mmengine's own start needs a GPU). No gradients are
exchanged, so the model is not wrapped; the processes only meet at `gather` and `wait`.
"""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from mmengine import dist
from torch import distributed

from textregion.errors import InputError, one_of

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
    if device in ("auto", "cuda"):
        there = torch.cuda.is_available()
        device = f"cuda:{local % torch.cuda.device_count()}" if there else device.replace("auto", "cpu")
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    own_gpu = device.startswith("cuda") and neighbours <= torch.cuda.device_count()  # nccl wants one each
    backend = "nccl" if own_gpu else "gloo"
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
    if launcher == "slurm" and count > 1:
        _slurm_address()
    return number, count, int(os.environ.get(names[2], local_rank or 0))


def _slurm_address() -> None:
    """Where Slurm's tasks meet: its first host, a port of the job's own; MASTER_ADDR and _PORT come first."""
    if "MASTER_ADDR" not in os.environ:
        hosts = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "localhost"))
        if "[" in hosts:
            try:
                command = ["scontrol", "show", "hostnames", hosts]
                hosts = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            except (OSError, subprocess.CalledProcessError) as error:
                raise InputError(f"scontrol cannot tell the hosts {hosts} ({error}); set MASTER_ADDR") from error
        os.environ["MASTER_ADDR"] = hosts.replace(",", " ").split()[0]
    job = int(os.environ.get("SLURM_JOB_ID", 0)) * 31 + int(os.environ.get("SLURM_STEP_ID", 0))
    os.environ.setdefault("MASTER_PORT", str(20000 + job % 40000))
    tasks = os.environ.get("SLURM_NTASKS_PER_NODE", os.environ["SLURM_NTASKS"])
    os.environ.setdefault("LOCAL_WORLD_SIZE", tasks)
