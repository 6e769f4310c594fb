"""Shares of items and the start of a group."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warm_start import WarmProgram

from eval.journal import Processes, processes
from textregion.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@given(st.lists(st.integers(), max_size=23), st.integers(1, 7))
def test_shares_are_disjoint_complete_and_equal_by_one(items, count):
    shares = [Processes(number, count).share(items) for number in range(count)]
    assert sorted(item for share in shares for item in share) == sorted(items)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_gathers_its_own_value():
    with processes("none", device="cpu") as group:
        assert (group.number, group.count, group.device) == (0, 1, "cpu")
        assert group.gather({"a": 1}) == [{"a": 1}]
        group.wait()


def test_an_unknown_launcher_is_refused():
    with pytest.raises(InputError, match="got launcher 'mpi', expected one of none, pytorch, slurm"):  # noqa: SIM117
        with processes("mpi"):
            pass


@pytest.mark.parametrize(("launcher", "program"), [("pytorch", "torchrun"), ("slurm", "srun")])
def test_a_missing_environment_names_the_program_to_start_with(launcher, program, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f"start it with {program}"):  # noqa: SIM117
        with processes(launcher):
            pass


MEMBER = """
import sys
from eval.journal import processes
with processes(sys.argv[1], device="cpu") as group:
    group.wait()
    print(group.number, group.share(list("abcde")), group.gather(group.number * 10))
"""


@pytest.mark.parametrize("launcher", ["pytorch", "slurm"])
def test_two_gloo_processes_share_and_gather(launcher):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("RANK", "WORLD_SIZE") if launcher == "pytorch" else ("SLURM_PROCID", "SLURM_NTASKS")
    members = []
    for number in range(2):
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment.update(zip(names, (str(number), "2"), strict=True))
        members.append(WarmProgram(["-c", MEMBER, launcher], ROOT, environment))
    ended = [member.wait(timeout=300) for member in members]
    assert [member.returncode for member in ended] == [0, 0]
    assert [member.stdout.strip() for member in ended] == ["0 ['a', 'c', 'e'] [0, 10]", "1 ['b', 'd'] [0, 10]"]
