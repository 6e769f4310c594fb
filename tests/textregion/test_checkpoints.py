"""Weight files: every published layout, and one line for everything that is wrong with a file."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
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
    import zipfile

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
