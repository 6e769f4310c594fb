import hashlib
import json
import os

import pytest
import torch
from safetensors.torch import save_file

from textregion.errors import InputError
from textregion.storage import (
    file_hash,
    load_tensors,
    read_json,
    read_text,
    reading,
    save_tensors,
    set_aside,
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
