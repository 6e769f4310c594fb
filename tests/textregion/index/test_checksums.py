"""Damage within a table's files is told before Lance sees it; what is whole is not read again."""

import json
import os
import shutil

import numpy as np
import pytest
from index_worlds import write_scenes

from textregion.errors import InputError
from textregion.index import RegionIndex, checksums
from textregion.index.checksums import CHECKSUMS, WRITTEN_ANEW, check_files
from textregion.index.store import LOCK


def files_of(table):
    return sorted(path for path in table.glob("*.lance/**/*") if path.is_file() and path.name != WRITTEN_ANEW)


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are hashed."""
    names, true = [], checksums._sha256

    def sha256(folder, name):
        names.append(name)
        return true(folder, name)

    monkeypatch.setattr(checksums, "_sha256", sha256)
    return names


def test_a_changed_bit_is_told_in_every_file(quick):
    random, files = np.random.default_rng(7), files_of(quick)
    assert {path.suffix for path in files} >= {".lance", ".manifest", ".txn"}
    for path in files:
        whole, status = path.read_bytes(), path.stat()
        changed = bytearray(whole)
        changed[random.integers(len(whole))] ^= 1 << random.integers(8)
        path.write_bytes(changed)
        with pytest.raises(InputError, match=f"is damaged: {path.relative_to(quick)} has changed since"):
            RegionIndex.open(quick, device="cpu")
        path.write_bytes(whole)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(RegionIndex.open(quick, device="cpu").search("sky", top=3)) == 3


def test_files_are_read_again_only_when_their_time_is_another(quick, read, tmp_path):
    index = RegionIndex.open(quick, device="cpu")
    assert read == []
    before = {str(path.relative_to(quick)) for path in files_of(quick)}
    index.add(write_scenes(tmp_path / "more", [40]))
    assert read
    assert before.isdisjoint(read)
    assert len(set(read)) == len(read)
    assert json.loads((quick / CHECKSUMS).read_text()).keys() == {str(p.relative_to(quick)) for p in files_of(quick)}
    read.clear()
    shutil.copytree(quick, tmp_path / "copy", copy_function=shutil.copy)  # as of now, not as it was
    check_files(str(tmp_path / "copy"))
    assert sorted(read) == [str(path.relative_to(quick)) for path in files_of(quick)]


def test_without_checksums_a_table_opens_and_the_next_commit_writes_them(quick, tmp_path):
    (quick / CHECKSUMS).rename(quick / f".{CHECKSUMS}.0123abcd")  # as of a writer that was killed meanwhile
    index = RegionIndex.open(quick, device="cpu")
    index.add(write_scenes(tmp_path / "more", [40]))
    assert len(json.loads((quick / CHECKSUMS).read_text())) == len(files_of(quick))
    assert [path.name for path in quick.glob(".*")] == [LOCK]


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"a": 1}', '{"a": {"size": 1}}', '{"a": {"x": 1}}', "\0"])
def test_damaged_checksums_are_one_line(quick, text):
    (quick / CHECKSUMS).write_text(text)
    with pytest.raises(InputError, match=CHECKSUMS) as caught:
        RegionIndex.open(quick, device="cpu")
    assert "\n" not in str(caught.value)


def test_checksums_lead_nowhere_else(quick, read, tmp_path):
    """Somebody else's table cannot have other files read: neither by names nor by links."""
    (tmp_path / "secret").write_text("secret")
    (quick / "regions.lance" / "link").symlink_to(tmp_path / "secret")
    known = json.loads((quick / CHECKSUMS).read_text())
    for name in ("../secret", str(tmp_path / "secret"), "regions.lance/link", "/dev/zero"):
        known[name] = {"size": 6, "changed": 0, "sha256": ""}
    (quick / CHECKSUMS).write_text(json.dumps(known))
    check_files(str(quick))
    assert read == []
