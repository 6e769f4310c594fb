import time

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textregion.errors import InputError
from textregion.runtime import Timer, enough_memory, in_parts

CPU = torch.device("cpu")


def test_stages_sum_seconds_and_calls():
    stages = Timer()
    for _ in range(3):
        with stages("sleep"):
            time.sleep(0.01)
    with pytest.raises(KeyError), stages("fail"):
        raise KeyError
    assert stages.calls == {"sleep": 3, "fail": 1}
    assert 0.03 <= stages.seconds["sleep"] < 1
    assert 0 <= stages.seconds["fail"] < 0.01


class LittleMemory:
    """Work that fits `room` items at once, and remembers what it was asked for."""

    def __init__(self, room: int, error: type[BaseException] = torch.OutOfMemoryError) -> None:
        self.room, self.error, self.asked = room, error, []

    def __call__(self, start: int, stop: int) -> list[int]:
        self.asked.append(stop - start)
        if stop - start > self.room:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")
        return list(range(start, stop))


@given(total=st.integers(0, 40), at_once=st.integers(1, 50), room=st.integers(1, 50))
def test_parts_are_halved_until_they_fit_and_nothing_is_done_twice(total, at_once, room):
    work = LittleMemory(room)
    parts = in_parts(work, total, at_once, CPU)
    assert [item for part in parts for item in part] == list(range(total))
    assert max((len(part) for part in parts), default=0) <= min(at_once, room)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError, cv2.error])
def test_halving_by_hand(error):
    work = LittleMemory(3, error)
    assert in_parts(work, 11, 8, CPU) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]
    assert work.asked == [8, 4, 2, 2, 2, 2, 2, 1]


def test_where_nothing_fits_the_line_says_what_to_do():
    with pytest.raises(InputError, match=r"^out of memory on cpu \(CUDA out of memory.*GiB\.\); use a smaller --scale"):
        in_parts(LittleMemory(0), 4, 4, CPU)


def test_other_errors_pass_through():
    def broken(start: int, stop: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        in_parts(broken, 4, 4, CPU)
    with pytest.raises(RuntimeError, match="shapes"), enough_memory(CPU):
        broken(0, 1)


def test_what_the_failed_try_held_is_free_before_the_next():
    alive = []

    class Large:
        def __del__(self) -> None:
            alive.remove(1)

    def work(start: int, stop: int) -> int:
        assert not alive
        alive.append(1)
        held = Large()  # noqa: F841
        if stop - start > 1:
            raise torch.OutOfMemoryError("out of memory")
        return start

    assert in_parts(work, 3, 3, CPU) == [0, 1, 2]


def test_real_allocations_that_cannot_be_met():
    for allocate in (lambda: torch.empty(2**60), lambda: np.empty(2**58)):
        with pytest.raises(InputError, match="out of memory on cpu"), enough_memory(CPU):
            allocate()
