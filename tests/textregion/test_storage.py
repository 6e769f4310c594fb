import errno
import hashlib
import json
import os
import warnings
from itertools import count
from pathlib import Path, PureWindowsPath

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from textregion import storage
from textregion.errors import InputError
from textregion.storage import (
    file_hash,
    flush_folder,
    load_tensors,
    read_json,
    read_text,
    reading,
    safe_name,
    save_tensors,
    set_aside,
    stand_in,
    write_atomically,
)
from textregion.types import RegionMasks, RegionTokens

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3).T,
    "half": torch.tensor([1.5]).half(),
    "flags": torch.tensor([True, False]),
    "none": torch.zeros(0, 4),
}


def test_tensors_and_meta_come_back(tmp_path):
    meta = {"kind": "Test", "size": [3, 5], "name": "ü", "ratio": 0.25}
    save_tensors(tmp_path / "x.safetensors", TENSORS, meta)
    tensors, back = load_tensors(tmp_path / "x.safetensors", "Test")
    assert back == {"size": [3, 5], "name": "ü", "ratio": 0.25}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype


def test_writing_replaces_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    write_atomically(path, b"first")
    write_atomically(str(path), b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["file.bin"]


def test_others_may_read_what_an_ordinary_file_would_let_them(tmp_path):
    (tmp_path / "ordinary").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"")
    modes = [(tmp_path / name).stat().st_mode for name in ("ordinary", "ours")]
    assert modes[0] == modes[1]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    write_atomically(path, b"first")
    with pytest.raises(TypeError):
        write_atomically(path, object())
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file.bin"]


NETWORK_DRIVE = [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.ENOSYS]


def flushing_fails(monkeypatch, number: int, name: str = "fsync") -> None:
    """os.fsync, or os.open, raises this error."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)
    monkeypatch.setattr(storage, "_notes", count())


@pytest.mark.parametrize("number", NETWORK_DRIVE)
def test_a_drive_that_refuses_to_flush_gets_its_files_and_is_noted_once(tmp_path, monkeypatch, number):
    flushing_fails(monkeypatch, number)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        write_atomically(tmp_path / "a", b"first")
        write_atomically(tmp_path / "b", b"second")
        flush_folder(tmp_path)
    assert [str(note.message).split(" (")[0] for note in notes] == [f"{tmp_path / 'a'} cannot be flushed to the disk"]
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"first", b"second"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EISDIR, errno.EINVAL])
def test_a_system_that_opens_no_folders_is_noted_once(tmp_path, monkeypatch, number):
    flushing_fails(monkeypatch, number, "open")
    (tmp_path / "inner").mkdir()
    with pytest.warns(UserWarning, match="results are written all the same") as notes:
        flush_folder(tmp_path)
    assert len(notes) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_or_broken_disk_is_an_error_and_keeps_the_old_file(tmp_path, monkeypatch, number):
    (tmp_path / "a").write_bytes(b"old")
    flushing_fails(monkeypatch, number)
    for body in (lambda: write_atomically(tmp_path / "a", b"new"), lambda: flush_folder(tmp_path)):
        with pytest.raises(OSError) as error:  # noqa: PT011 (the number is asserted)
            body()
        assert error.value.errno == number
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == {"a": b"old"}


def test_flushing_where_it_works_says_nothing(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flush_folder(tmp_path)
    assert flushed == [(tmp_path / name).stat().st_ino for name in ("inner", "inner/a", ".")]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an empty file"),
        (POINTER, "a Git LFS pointer"),
        (POINTER.replace(b"\n", b"\r\n"), "a Git LFS pointer"),
        (POINTER.replace(b"git-lfs", b"hawser"), "a Git LFS pointer"),
        (b"\xef\xbb\xbf  <!DOCTYPE html><html>", "a web page"),
        (b"\n<HTML><body>404", "a web page"),
        (b"<?xml version='1.0'?><Error>", "a web page"),
        (b"version 2", ""),
        (b"  ", ""),
        (b"\x80\x02}.", ""),
    ],
)
def test_what_only_stands_in_for_a_file(tmp_path, content, expected):
    (tmp_path / "x").write_bytes(content)
    assert stand_in(tmp_path / "x").startswith(expected)
    assert bool(stand_in(tmp_path / "x")) == bool(expected)


def refused(path, kind: str = "Test") -> str:
    with pytest.raises(InputError) as error:
        load_tensors(path, kind)
    assert str(path) in str(error.value)
    return str(error.value)


def test_missing_and_folder(tmp_path):
    assert "expected a Test file" in refused(tmp_path / "missing")
    assert "no file" in refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_damaged_files(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, {"kind": "Test"})
    path.write_bytes(path.read_bytes()[:keep])
    assert "not a readable Test file" in refused(path)


def test_a_pointer_instead_of_tensors_is_called_one(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(POINTER)
    assert "it is a Git LFS pointer" in refused(tmp_path / "x.safetensors")


@pytest.mark.parametrize("meta", ["[" * 100_000, '{"a":' * 5000, "1" * 5000, '{"a": ' + "9" * 5000 + "}", "{no", ""])
def test_metadata_that_is_deep_or_no_json(tmp_path, meta):
    path = tmp_path / "x.safetensors"
    save_file({"soft": torch.zeros(1, 4, 4)}, path, metadata={"textregion": meta})
    assert "not a readable Test file" in refused(path)


def test_metadata_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "LONGEST_META", 30)
    path = tmp_path / "x.safetensors"
    for length, fits in ((30, True), (31, False)):
        text = '{"kind": "Test", "a": ""}'
        text = text.replace('""', f'"{"x" * (length - len(text))}"')
        assert len(text) == length
        save_file({"soft": torch.zeros(1)}, path, metadata={"textregion": text})
        if fits:
            assert load_tensors(path, "Test")[0].keys() == {"soft"}
        else:
            assert "31 characters of metadata" in refused(path)


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, {"kind": "Other"})
    assert "holds Other, expected a Test file" in refused(path)
    save_file({"weight": torch.ones(2)}, path)
    assert "holds something else" in refused(path)
    save_file({"weight": torch.ones(2)}, path, metadata={"textregion": "{no json"})
    assert "not a readable" in refused(path)


def test_tokens_and_masks_are_not_mistaken_for_each_other(tmp_path):
    path = tmp_path / "x.safetensors"
    RegionMasks.empty((3, 5)).save(path)
    with pytest.raises(InputError, match="holds RegionMasks, expected a RegionTokens file"):
        RegionTokens.load(path)


@pytest.mark.parametrize("missing", ["soft", "group"])
def test_a_file_without_a_tensor(tmp_path, missing):
    path = tmp_path / "x.safetensors"
    masks = RegionMasks.empty((3, 5))
    tensors = {name: t for name, t in masks._tensors().items() if name != missing}
    save_tensors(path, tensors, {"kind": "RegionMasks", **json.loads(json.dumps(masks._sizes()))})
    if missing == "group":  # has a default
        assert len(RegionMasks.load(path)) == 0
    else:
        with pytest.raises(InputError):
            RegionMasks.load(path)


@pytest.mark.parametrize("size", [0, 1, 2**22 - 1, 2**22 + 3])
def test_a_hash_is_that_of_the_content(tmp_path, size):
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert file_hash(str(tmp_path / "file")) == hashlib.sha256(content[:size]).hexdigest()


def test_what_cannot_be_read_is_one_line_that_names_it(tmp_path):
    with pytest.raises(InputError, match=r"^cannot read .*gone \(No such file or directory\)$"):
        file_hash(tmp_path / "gone")
    with pytest.raises(InputError, match=r"^cannot read a/b \(the disk is broken\)$"), reading("a/b"):
        raise OSError("the disk is broken")
    with pytest.raises(ImportError, match="libx"), reading("a/b"):
        raise ImportError("libx.so: cannot open shared object file")


def test_set_aside_takes_the_first_free_name(tmp_path):
    for name in ("run", "run.old-1", "run.old-3"):
        (tmp_path / name).mkdir()
    assert set_aside(tmp_path / "run") == tmp_path / "run.old-2"
    assert sorted(os.listdir(tmp_path)) == ["run.old-1", "run.old-2", "run.old-3"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_has_no_byte_order_mark_and_plain_line_ends(tmp_path, mark, end):
    (tmp_path / "t.txt").write_bytes(end.join([f"{mark}dog", f"{mark}Käse", ""]).encode())
    assert read_text(tmp_path / "t.txt", "labels") == "dog\nKäse\n"


def test_text_of_another_encoding_is_one_line(tmp_path):
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "t.txt").write_bytes("Käse".encode(encoding))
        with pytest.raises(InputError, match=r"t\.txt is not UTF-8 text .* expected labels"):
            read_text(tmp_path / "t.txt", "labels")


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "j.json").write_bytes(b"\xef\xbb\xbf" + b'{"a": [1, {"b": null}]}\r\n')
    assert read_json(tmp_path / "j.json", "a list") == {"a": [1, {"b": None}]}


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 1}', '[{"a": {"c": 1, "c": 2}}]', "{", "", "[" * 100_000])
def test_json_that_says_nothing_certain_is_refused(tmp_path, text):
    (tmp_path / "j.json").write_text(text)
    with pytest.raises(InputError, match=r"j\.json is not valid JSON \(.*\); expected a list"):
        read_json(tmp_path / "j.json", "a list")


@given(st.text(max_size=300))
@example("\udcff\ud800")
@example("...")
@example("LPT¹.txt")
@example("a" * 300 + ".png")
def test_a_safe_name_means_one_new_file(text):
    name = safe_name(text)
    assert 0 < len(name.encode("utf-8", "surrogatepass")) <= 121
    assert PureWindowsPath(name).name == name == Path(name).name
    assert not PureWindowsPath(name).is_reserved()
    assert not name.startswith(".")
    assert name[-1] not in ". "
    assert safe_name(name) == name
