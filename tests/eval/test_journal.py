"""The journal survives what interrupted runs leave behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eval.journal import Journal, differences, fingerprint, locked
from textregion.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_records_come_back_in_another_run(tmp_path):
    with Journal.start(tmp_path / "j", {"scale": (3, 2)}) as journal:
        journal.add("a.jpg", {"counts": [1, 2]})
        journal.add("ü|b.jpg", {"skipped": "damaged"})
    with Journal.start(tmp_path / "j", {"scale": [3, 2]}, resume=True) as again:
        assert again.done == {"a.jpg": {"counts": [1, 2]}, "ü|b.jpg": {"skipped": "damaged"}}
        again.add("c.jpg", {"counts": []})
        assert set(again.collect()) == {"a.jpg", "ü|b.jpg", "c.jpg"}
    assert len(list((tmp_path / "j").iterdir())) == 2, "every run writes a file of its own"


def test_any_number_of_files_is_read(tmp_path):
    for number in range(5):
        with Journal.start(tmp_path, {}, resume=True) as journal:
            journal.add(str(number), {"n": number})
    assert Journal(tmp_path, {}).read() == {str(n): {"n": n} for n in range(5)}


@pytest.mark.parametrize("cut", [1, 2, 5, 11])
def test_a_torn_last_line_is_one_item_not_done(tmp_path, cut):
    with Journal.start(tmp_path, {}) as journal:
        journal.add("a", {"n": 1})
        journal.add("b", {"n": 2})
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    assert Journal(tmp_path, {}).read() == {"a": {"n": 1}}


def test_a_torn_header_is_an_empty_file(tmp_path):
    (tmp_path / "run000-process000.jsonl").write_bytes(b'{"finger')
    assert Journal(tmp_path, {}).read() == {}


def damage(path, number, how):
    lines = path.read_bytes().split(b"\n")
    lines[number] = how(lines[number])
    path.write_bytes(b"\n".join(lines))


DAMAGE = {
    "cut": lambda line: line[:-3],
    "emptied": lambda line: b"",
    "zeros": lambda line: b"\0" * len(line),
    "another digit": lambda line: line.replace(b'"n": 1', b'"n": 7').replace(b'"scale": 2', b'"scale": 3'),
    "not UTF-8": lambda line: b"\xff" + line[1:],
    "another thing": lambda line: b"[1, 2]",
    "two lines in one": lambda line: line + line,
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("number", range(4))
def test_a_damaged_line_costs_its_item_alone(tmp_path, number, how):
    with Journal.start(tmp_path / "j", {"scale": 2}) as journal:
        for item in "abc":
            journal.add(item, {"n": 1})
    (path,) = (tmp_path / "j").iterdir()
    damage(path, number, DAMAGE[how])
    with pytest.warns(UserWarning, match=rf"1 lines of the journal are damaged \(line {number + 1} of .*done again"):
        records = Journal(tmp_path / "j", {"scale": 2}).read()
    assert set(records) == set("abc") - ({"abc"[number - 1]} if number else set())


def test_records_of_another_run_are_refused_even_without_their_header(tmp_path):
    with Journal.start(tmp_path / "j", {"scale": 2}) as journal:
        journal.add("a", {"n": 1})
    (path,) = (tmp_path / "j").iterdir()
    damage(path, 0, DAMAGE["cut"])
    with pytest.raises(InputError, match="made with other settings"):
        Journal(tmp_path / "j", {"scale": 3}).read()


def test_an_items_files_count(tmp_path):
    with Journal.start(tmp_path / "j", {}, digests={"a": "1", "b": "2"}) as journal:
        for item in "ab":
            journal.add(item, {"n": 1})
    assert set(Journal(tmp_path / "j", {}, {"a": "1"}).read()) == {"a", "b"}
    with pytest.raises(InputError, match=r"data\.b: its files were other ones"):
        Journal.start(tmp_path / "j", {}, resume=True, digests={"a": "1", "b": "3"})


def test_anyway_takes_what_is_there_and_says_so(tmp_path):
    with Journal.start(tmp_path / "j", {"scale": 2}, digests={"a": "1"}) as journal:
        journal.add("a", {"n": 1})
    with Journal.start(tmp_path / "j", {"scale": 3}, digests={"a": "2"}, anyway=True) as journal:
        assert journal.done == {"a": {"n": 1}}
        assert journal.differing == ["scale: was 2, now 3", "data.a: its files were other ones"]
    with pytest.raises(InputError, match="scale: was 2, now 3"):
        Journal.start(tmp_path / "j", {"scale": 3}, resume=True)


def test_a_journal_of_an_older_version_is_refused(tmp_path):
    (tmp_path / "run000-process000.jsonl").write_text('{"fingerprint": "x", "settings": {}}\n{"id": "a"}\n')
    with pytest.raises(InputError, match="written by an older version"):
        Journal(tmp_path, {}).read()


HOLDER = """
import os, sys, time
from eval.journal import locked
with locked(sys.argv[1]):
    its_end, workers = os.pipe()
    if os.fork() == 0:  # a worker that outlives the run
        os.write(workers, b"!")
        time.sleep(60)
    os.read(its_end, 1)  # not before the worker runs: it lets go of the lock as its first act
    print("held", os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_and_kill_9_frees_the_folder(tmp_path):
    start = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    holder = subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == f"held {holder.pid}\n"
    with (
        pytest.raises(InputError, match=f"at work: process {holder.pid} on .* another --work-dir"),
        locked(tmp_path / "run"),
    ):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    try:
        with locked(tmp_path / "run"):
            pass
        with locked(tmp_path / "run"):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()


def test_all_that_a_run_left_is_set_aside_under_one_number(tmp_path):
    for number in (1, 2):
        Journal.start(tmp_path / "journal", {}).close()
        (tmp_path / "results.json").write_text(str(number))
        (tmp_path / "predictions").mkdir()
    Journal.start(tmp_path / "journal", {}).close()
    assert (tmp_path / "results.json.old-1").read_text() == "1"
    assert (tmp_path / "results.json.old-2").read_text() == "2"
    left = {"journal", *(f"{n}.old-{k}" for n in ("journal", "results.json", "predictions") for k in (1, 2))}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_other_settings_are_refused_and_named(tmp_path):
    with Journal.start(tmp_path, {"model": {"scale": [2016, 672], "recipe": "demo"}}):
        pass
    with pytest.raises(InputError) as caught:
        Journal.start(tmp_path, {"model": {"scale": [1008, 672], "recipe": "demo"}}, resume=True)
    assert "model.scale: was [2016, 672], now [1008, 672]" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_new_run_sets_the_old_journal_aside(tmp_path):
    for _ in range(3):
        with Journal.start(tmp_path / "j", {}) as journal:
            journal.add("a", {})
            assert journal.done == {}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["j", "j.old-1", "j.old-2"]


def test_the_fingerprint_ignores_the_order_of_keys_only():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})


def test_differences_name_added_removed_and_changed():
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}, "d": 4}) == [
        "a: was 1, now null",
        "b.c: was 2, now 3",
        "d: was null, now 4",
    ]


def test_adding_to_a_closed_journal_is_an_error(tmp_path):
    journal = Journal.start(tmp_path, {})
    journal.close()
    with pytest.raises(RuntimeError, match="not open"):
        journal.add("a", {})


WRITER = """
import itertools, sys
from eval.journal import Journal
journal = Journal.start(sys.argv[1], {})
for number in itertools.count():
    journal.add(str(number), {"n": number})
    print(number, flush=True)
"""


def test_kill_9_loses_at_most_the_item_in_flight(tmp_path):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "j")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    said = [writer.stdout.readline() for _ in range(7)]
    os.kill(writer.pid, signal.SIGKILL)
    said += writer.communicate()[0].splitlines()
    last = int(said[-1])
    records = Journal(tmp_path / "j", {}).read()
    assert len(records) in (last + 1, last + 2)
    assert all(records[str(n)] == {"n": n} for n in range(last + 1))
