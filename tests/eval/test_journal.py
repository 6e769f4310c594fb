"""The journal survives what interrupted runs leave behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eval.journal import Journal, differences, fingerprint
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


def test_a_damaged_line_within_a_file_is_refused(tmp_path):
    with Journal.start(tmp_path, {}) as journal:
        journal.add("a", {})
        journal.add("b", {})
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:-3], *lines[2:]]))
    with pytest.raises(InputError, match=r"line 2 of .* is damaged"):
        Journal(tmp_path, {}).read()


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
