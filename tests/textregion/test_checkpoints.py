"""Weight files: every published layout, and one line for everything that is wrong with a file."""

import argparse
import io
import json
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from textregion.checkpoints import load_strictly, read_state
from textregion.errors import InputError

STATE = {"a.weight": torch.arange(15.0).reshape(3, 5), "a.bias": torch.arange(3.0)}


def message(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "weights"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_pytorch_files_give_their_tensors_in_every_wrapping(tmp_path, wrapper, prefix):
    content = {prefix + name: value for name, value in STATE.items()}
    torch.save(content if wrapper is None else {wrapper: content, "epoch": 3}, tmp_path / "w.pt")
    state = read_state(tmp_path / "w.pt")
    assert list(state) == list(STATE)
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


def test_safetensors_and_old_pytorch_files_give_their_tensors(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    torch.save(STATE, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "old.bin"):
        assert {k: v.tolist() for k, v in read_state(tmp_path / name).items()} == {
            k: v.tolist() for k, v in STATE.items()
        }


def test_a_scripted_archive_is_read_without_running_it(tmp_path):
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 3)
            self.parts = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
            self.register_buffer("steps", torch.arange(7))

        def forward(self, x):
            return self.parts(self.a(x))

    scripted = torch.jit.script(Doubled().half())
    scripted.save(str(tmp_path / "jit.pt"))
    state = read_state(tmp_path / "jit.pt")
    expected = scripted.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert state["a.weight"].dtype == torch.float16


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError) as error:
        read_state(tmp_path / "nowhere.pt")
    assert message(error) == f"no weight file at {tmp_path / 'nowhere.pt'}; check the path"


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch, name):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied", name)

    (tmp_path / name).touch()
    monkeypatch.setattr("torch.load", forbidden)
    monkeypatch.setattr("textregion.checkpoints.load_file", forbidden)
    with pytest.raises(InputError) as error:
        read_state(tmp_path / name)
    assert message(error) == f"cannot read {tmp_path / name} (Permission denied)"


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "old.pt", "jit.pt"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_a_truncated_file_is_one_line(tmp_path, name, share):
    path = tmp_path / name
    state = {"a": torch.rand(40, 100)}
    if name == "w.safetensors":
        save_file(state, path)
    elif name == "jit.pt":
        torch.jit.script(nn.Linear(100, 40)).save(str(path))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "w.pt")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError) as error:
        read_state(path)
    assert str(path) in message(error)
    assert "truncated" in message(error)
    assert "refused" not in message(error)


class Harmful:
    """Writes a file when it is unpickled by a reader that runs code."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, new_format):
    path, trace = tmp_path / "w.pt", tmp_path / "it_ran"
    content = {"state_dict": STATE, "extra": Harmful(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(InputError) as error:
        read_state(path)
    assert "refused" in message(error)
    assert str(path) in message(error)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file would have done its harm elsewhere"


def test_a_bare_pickle_with_code_in_it_is_refused_and_not_run(tmp_path):
    path, trace = tmp_path / "w.bin", tmp_path / "it_ran"
    path.write_bytes(pickle.dumps({"a": Harmful(trace)}))
    with pytest.raises(InputError, match=r"refused|not a weight file"):
        read_state(path)
    assert not trace.exists()


def test_an_archive_that_names_other_code_is_refused(tmp_path):
    path, trace = tmp_path / "jit.pt", tmp_path / "it_ran"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Harmful(trace)))
        archive.writestr("x/constants.pkl", pickle.dumps(()))
    with pytest.raises(InputError, match=r"holds more than tensors \(the name .*\), which is refused"):
        read_state(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, torch.zeros(2)])
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match="expected tensors by name"):
        read_state(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_text_file_is_no_weight_file(tmp_path, name):
    (tmp_path / name).write_text("<html>404: not found</html>")
    with pytest.raises(InputError) as error:
        read_state(tmp_path / name)
    assert "download it again" in message(error)


def test_strict_loading_names_every_kind_of_difference():
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
    state = dict(model.state_dict(), extra=torch.zeros(1))
    state["0.weight"] = torch.zeros(3, 7)
    del state["1.bias"]
    with pytest.raises(InputError) as error:
        load_strictly(model, state, "the model", "file.pt")
    assert message(error) == (
        "file.pt does not fit the model (1 missing: 1.bias; 1 unexpected: extra; "
        "1 wrong shape: 0.weight (3, 7) instead of (3, 5)); give this model's own weights"
    )


def test_strict_loading_converts_the_type_and_nothing_else():
    model, source = nn.Linear(5, 3), nn.Linear(5, 3)
    load_strictly(model, source.half().state_dict(), "the model", "file.pt")
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight, source.weight.float())


PREFIXES = ["_orig_mod.", "module.", "model.", "net.", "model_ema."]


@pytest.mark.parametrize("first", ["", *PREFIXES])
@pytest.mark.parametrize("second", PREFIXES)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "state_dict_ema"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_prefixes_and_wrappers_in_every_combination(tmp_path, first, second, wrapper, suffix):
    content = {first + second + name: value for name, value in STATE.items()}
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content if wrapper is None else {wrapper: content, "epoch": 3, "optimizer": {"state": {}}}, path)
    state = read_state(path)
    assert {name: value.tolist() for name, value in state.items()} == {k: v.tolist() for k, v in STATE.items()}


def scaled(factor: float) -> dict[str, torch.Tensor]:
    return {name: value * factor for name, value in STATE.items()}


def prefixed(prefix: str, factor: float = 1) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in scaled(factor).items()}


@pytest.mark.parametrize(
    ("content", "taken", "left"),
    [
        ({"state_dict": scaled(2), "state_dict_ema": scaled(3)}, "state_dict", "state_dict_ema"),
        ({"ema": scaled(3), "model": scaled(2)}, "model", "ema"),
        (
            {"model": scaled(2), "model_ema": {"n_averaged": torch.tensor(4), **prefixed("module.", 3)}},
            "model",
            "model_",
        ),
        ({"model": {"state_dict": scaled(2)}, "ema_state_dict": scaled(3)}, "model", "ema_state_dict"),
        ({"model": scaled(2), "teacher": scaled(3)}, "model", "teacher"),
        ({**prefixed("model.", 2), **prefixed("ema_model.", 3)}, "model", "ema_model"),
        (
            {**prefixed("online_model.", 2), **prefixed("ema_model.", 3), "step": torch.tensor(1)},
            "online_model",
            "ema_model",
        ),
    ],
)
def test_of_weights_and_their_average_the_weights_are_taken_and_it_is_said(tmp_path, content, taken, left):
    torch.save(content, tmp_path / "w.pt")
    with pytest.warns(UserWarning, match=rf"w\.pt: weights are taken from '{taken}', not from {left}"):
        state = read_state(tmp_path / "w.pt")
    assert {name: value.tolist() for name, value in state.items()} == {k: v.tolist() for k, v in scaled(2).items()}


@pytest.mark.parametrize(
    "content",
    [
        {"n_averaged": torch.tensor(3), **prefixed("module.")},
        {"state_dict_ema": STATE, "epoch": 3},
        {"model_ema": {"ema": STATE}},
        {"ema": {"n_averaged": torch.tensor(3), **prefixed("module._orig_mod.")}},
        {"teacher": STATE},
        {"model": {"state_dict": {"weights": {"module": STATE}}}},
        {"visual._orig_mod.proj": torch.ones(2), "text.proj": torch.zeros(2)},
        {"model": STATE, "rng_state": torch.zeros(8, dtype=torch.uint8), "epoch": torch.tensor(3)},
        {"model": STATE, "ema": None, "state_dict": "there is none", "weights": {}},
    ],
)
def test_what_is_clear_is_taken_without_a_word(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = read_state(tmp_path / "w.pt")
    expected = STATE if "text.proj" not in content else {"visual.proj": torch.ones(2), "text.proj": torch.zeros(2)}
    assert {name: value.tolist() for name, value in state.items()} == {k: v.tolist() for k, v in expected.items()}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"teacher": STATE, "student": STATE}, "holds several models, 'teacher' and 'student', expected one; save"),
        ({**prefixed("teacher."), **prefixed("student.")}, "several models, 'teacher' and 'student'"),
        ({"state_dict": STATE, "model": STATE}, "several models, 'state_dict' and 'model'"),
        ({"ema": STATE, "model_ema": STATE}, "several models, 'model_ema' and 'ema'"),
        ({**prefixed("model."), **prefixed("net.")}, "several models, 'model' and 'net'"),
        ({"visual.proj": torch.ones(2), "model": STATE}, r"holds tensors \(visual\.proj, …\) and under 'model' others"),
        ({"generator": STATE, "epoch": 2}, "holds dict with tensors under 'generator', expected tensors by name"),
        ({"epoch": 2, "a": 1, "b": 2, "c": 3}, "holds dict with 'epoch', 'a', 'b', …, expected tensors by name"),
        ({"a._orig_mod.b": torch.ones(1), "a.b": torch.ones(1)}, "holds tensors twice, with and without _orig_mod"),
        ({"model": {"model": {"model": {"model": {"model": STATE}}}}}, "expected tensors by name"),
    ],
)
def test_what_is_not_clear_is_refused_and_named(tmp_path, content, line):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=line) as error:
        read_state(tmp_path / "w.pt")
    assert str(tmp_path / "w.pt") in message(error)


@pytest.mark.parametrize("prefix", ["model.visual.", "visual.", "models.", "my_model."])
def test_other_beginnings_of_names_stay(tmp_path, prefix):
    content = {**prefixed(prefix), "logit_scale": torch.ones(1)}
    torch.save(content, tmp_path / "w.pt")
    assert list(read_state(tmp_path / "w.pt")) == list(content)


@pytest.mark.parametrize("name", ["w.bin", "w.pt", "w.pth", "w.ckpt", "w", "w.safetensors"])
@pytest.mark.parametrize("form", ["safetensors", "zip", "old"])
def test_the_content_decides_and_not_the_ending(tmp_path, name, form):
    if form == "safetensors":
        save_file(STATE, tmp_path / name)
    else:
        torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=form == "zip")
    state = read_state(tmp_path / name)
    assert {k: v.tolist() for k, v in state.items()} == {k: v.tolist() for k, v in STATE.items()}


@pytest.mark.parametrize("name", ["w.bin", "w.pt", "w.safetensors"])
@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is an empty file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a Git LFS pointer, .*git lfs pull",
        ),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page"),
        (b"  \r\n<html lang='en'>" + b"x" * 5000, "is a web page"),
        (b'{"error": "Invalid credentials"}', "is text that begins with .*Invalid credentials"),
        (b"Entry not found", "is text that begins with 'Entry not found'"),
    ],
)
def test_what_a_failed_download_leaves_is_said(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=line) as error:
        read_state(tmp_path / name)
    assert "download it again" in message(error)


def test_a_training_checkpoint_with_its_arguments_names_what_is_refused(tmp_path):
    torch.save({"model": STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"holds more than tensors \(argparse\.Namespace: a pickle with code\)"):
        read_state(tmp_path / "w.pt")


@pytest.fixture(scope="module")
def samples() -> dict[str, bytes]:
    """A small file of every form."""
    module = torch.jit.script(nn.Linear(3, 2))
    files = {"jit": io.BytesIO(), "zip": io.BytesIO(), "old": io.BytesIO()}
    torch.jit.save(module, files["jit"])
    torch.save(STATE, files["zip"])
    torch.save(STATE, files["old"], _use_new_zipfile_serialization=False)
    return {"safetensors": save(STATE), **{name: file.getvalue() for name, file in files.items()}}


@pytest.mark.parametrize("form", ["safetensors", "zip", "old", "jit"])
@given(data=st.data())
def test_changed_bytes_are_read_or_refused_in_one_line(samples, tmp_path_factory, form, data):
    content = bytearray(samples[form])
    places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] = value
    path = tmp_path_factory.mktemp("changed") / "w.pt"
    path.write_bytes(content)
    with suppress(InputError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_state(path)


def scripted_archive(path: Path, data: bytes, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/constants.pkl", b"")
        for name, content in files.items():
            archive.writestr(f"a/data/{name}", content)
    return path


def key(word: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word


def module_of(*children: bytes) -> bytes:
    """A pickled record with these attributes."""
    return b"c__torch__\nM\n)\x81}(" + b"".join(children) + b"ub"


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((" + key(b"storage") + b"ctorch\nFloatStorage\n" + key(b"0") + key(b"cpu")
)
TENSOR += b"K\x02tQK\x00K\x02\x85K\x01\x85\x89c__torch__\nM\n)\x81}btR"


def test_records_that_are_shared_are_visited_once(tmp_path):
    """2^40 paths lead to the one tensor; a record within itself has no end of them."""
    data = b"\x80\x02" + module_of(key(b"w") + TENSOR) + b"r" + struct.pack("<I", 0)
    for n in range(40):
        before = b"j" + struct.pack("<I", n)
        data += module_of(key(b"x") + before, key(b"y") + before) + b"r" + struct.pack("<I", n + 1)
    path = scripted_archive(tmp_path / "shared.pt", data + b".", **{"0": struct.pack("<2f", 1.5, -2)})
    state = read_state(path)
    assert list(state) == ["x." * 40 + "w"]
    assert state["x." * 40 + "w"].tolist() == [1.5, -2]
    cycle = (
        b"\x80\x02c__torch__\nM\n)\x81r\x00\x00\x00\x00}("
        + key(b"own")
        + b"j\x00\x00\x00\x00"
        + key(b"w")
        + TENSOR
        + b"ub."
    )
    assert list(read_state(scripted_archive(tmp_path / "cycle.pt", cycle, **{"0": bytes(8)}))) == ["w"]


def test_a_chain_of_many_records_is_read(tmp_path):
    data = (
        b"\x80\x02"
        + (b"c__torch__\nM\n)\x81}" + key(b"a")) * 5000
        + module_of(key(b"w") + TENSOR)
        + b"sb" * 5000
        + b"."
    )
    state = read_state(scripted_archive(tmp_path / "deep.pt", data, **{"0": bytes(8)}))
    assert list(state) == ["a." * 5000 + "w"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02K\x05.",
        b"\x80\x02}.",
        b"\x80\x02N.",
        b"\x80\x02c__torch__\nM\n)\x81.",
        b"\x80\x02c__torch__\nM\n)\x81]b.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x05K\x00))tR.",
        b"\x80\x02R.",
        b"\x80\x02K\x05Q.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
        b"\x80\x02j\x05\x00\x00\x00.",
        b"\x80\x02NK\x01K\x01s.",
        b"\x80\x02N\x72\xff\xff\xff\x7f.",
        b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"",
    ],
)
def test_scripted_archives_of_odd_content_are_one_line(tmp_path, data):
    with pytest.raises(InputError, match="is a damaged TorchScript archive"):
        read_state(scripted_archive(tmp_path / "jit.pt", data))


def test_an_archive_that_unpacks_beyond_measure_is_refused_unread(tmp_path, monkeypatch):
    path = scripted_archive(tmp_path / "bomb.pt", b"\x80\x02N.", **{"0": bytes(1000)})
    monkeypatch.setattr(zipfile.ZipInfo, "file_size", property(lambda _: 10**10, lambda *_: None), raising=False)
    with pytest.raises(InputError, match=r"unpacks to 30\.0 GB"):
        read_state(path)


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        ({"clip.weight": 1, "clip.bias": 1}, r"; its names begin with 'clip\.': save this model's state dict alone"),
        (
            {"model.weight": 1, "model.bias": 1, "loss.weight": 1, "step": 1},
            r"; its names begin with 'model\.', and 2 others do not: save",
        ),
        ({"clip.weight": 1, "head.bias": 1}, "; give this model's own weights"),
        ({}, "; give this model's own weights"),
    ],
)
def test_strict_loading_names_what_stands_before_all_names(state, advice):
    with pytest.raises(InputError, match=advice):
        load_strictly(nn.Linear(5, 3), {name: torch.zeros(1) for name in state}, "the model", "file.pt")


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path):
    """One number of a file can stand for a matrix of any size, which a copy would make real."""
    path = tmp_path / "a.pt"
    torch.save({"a.b": torch.zeros(1).expand(100_000, 3_000)}, path)
    with pytest.raises(InputError, match=r"a\.pt claims tensors of 1\.2 GB, far more than it holds; get it anew"):
        read_state(path)
    shared = torch.zeros(320, 320)
    torch.save({f"a.{n}": shared for n in range(2501)}, path)
    with pytest.raises(InputError, match=r"claims tensors of 1\.0 GB"):
        read_state(path)
    torch.save({"a.b": shared, "c.d": shared.T}, path)  # tied weights
    assert read_state(path)["c.d"].shape == (320, 320)


@pytest.mark.parametrize(
    "odd",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.zeros(3, 3, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_plain_ones_are_refused(tmp_path, odd):
    torch.save({"a.b": odd()}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt holds a\.b as [\w.]+ on \w+, expected a plain tensor of the CPU"):
        read_state(tmp_path / "a.pt")


def test_a_string_that_claims_4_gb_asks_for_no_more_than_the_file_has(tmp_path):
    """A pickle says how long its strings are, and what reads from a file makes room for as much."""
    torch.save(STATE, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.pt").read_bytes()
    name = b"X" + struct.pack("<I", len("a.weight"))  # BINUNICODE
    assert name + b"a.weight" in whole
    (tmp_path / "a.pt").write_bytes(whole.replace(name + b"a.weight", b"X\xf0\xff\xff\xffa.weight"))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"a\.pt is "):
            read_state(tmp_path / "a.pt")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000_000


# ---------------------------------------------------------------- weights in several files


def in_parts(folder: Path, **changes) -> Path:
    """STATE in two files with their index, whose content `changes` replaces."""
    places = {"a.weight": "m-00001-of-00002.safetensors", "a.bias": "m-00002-of-00002.safetensors"}
    for name, file in places.items():
        save_file({name: STATE[name]}, folder / file)
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": places} | changes))
    return folder / "m.safetensors.index.json"


def test_an_index_or_any_part_beside_it_gives_all_tensors(tmp_path):
    index = in_parts(tmp_path)
    for path in (index, tmp_path / "m-00001-of-00002.safetensors"):
        state = read_state(path)
        assert state.keys() == STATE.keys()
        assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    index.unlink()
    assert list(read_state(tmp_path / "m-00002-of-00002.safetensors")) == ["a.bias"], "a part alone is what it holds"


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a.weight": "../m-00001-of-00002.safetensors"}, "does not lie beside it"),
        ({"a.weight": "gone.safetensors"}, "names 'gone.safetensors', which does not lie beside it"),
        ({"a.weight": ".."}, "does not lie beside it"),
        ({"b": "m-00001-of-00002.safetensors"}, "lacks b, which m.safetensors.index.json puts there"),
        ({"a.weight": 3}, "has no weight_map"),
        ({}, "has no weight_map"),
        (["a.weight"], "has no weight_map"),
    ],
)
def test_an_index_that_cannot_be_followed_is_one_line(tmp_path, places, message):
    (tmp_path / "inner").mkdir()
    with pytest.raises(InputError, match=message):
        read_state(in_parts(tmp_path, weight_map=places))
