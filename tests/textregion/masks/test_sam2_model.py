"""SAM 2.1 by size, by file and by configuration; strict, and one line for what does not fit."""

from functools import partial

import pytest
import tiny_models
import torch

from textregion.errors import InputError
from textregion.masks.sam2 import (
    SIZES,
    build_sam2,
    config_path,
    find_size,
    load_sam2,
    matching_size,
    sam2_asset,
    size_of,
)


def without_memory(name):
    """A published size on the meta device."""
    linspace = torch.linspace  # its numbers are read while the model is built
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(torch, "linspace", partial(linspace, device="cpu"))
        return build_sam2(name)


@pytest.fixture(scope="module")
def models():
    return {name: without_memory(name) for name in SIZES}


@pytest.fixture(scope="module")
def states(models):
    return {name: model.state_dict() for name, model in models.items()}


def message(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", SIZES)
def test_every_size_is_built_by_the_package_and_recognised_by_its_shapes(name, states):
    assert matching_size(states[name], "file.pt") == name
    megabytes = sum(value.numel() for value in states[name].values()) * 4 / 1e6
    assert SIZES[name].megabytes == pytest.approx(megabytes, rel=0.01)


def test_single_clicks_are_not_decided_again_by_stability(models):
    for model in models.values():
        assert model.sam_mask_decoder.dynamic_multimask_via_stability is False
        assert model.image_size == 1024


def test_sizes_and_files_are_those_of_the_package():
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

    for size in SIZES.values():
        files = sam2_asset(size.name).files
        assert HF_MODEL_ID_TO_FILENAMES[size.repository] == (f"configs/sam2.1/{size.config}", *files)


@pytest.mark.parametrize("spelling", ["base+", "sam2.1_hiera_b+.yaml", "configs/sam2.1/sam2.1_hiera_b+.yaml"])
def test_a_size_may_be_named_as_the_package_names_it(spelling):
    assert size_of(spelling) == "base+"
    assert config_path(spelling).name == "sam2.1_hiera_b+.yaml"


def test_an_own_configuration_and_file(tmp_path):
    """The form of the original files: a pickle of tensors under `model`."""
    model = build_sam2(tiny_models.SAM2_CONFIG)
    torch.save({"model": model.state_dict()}, tmp_path / "own.pt")
    loaded = load_sam2(tmp_path / "own.pt", tiny_models.SAM2_CONFIG)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert size_of(tiny_models.SAM2_CONFIG) is None


def test_what_does_not_fit_is_one_line(tmp_path):
    path = tmp_path / "own.pt"
    model = build_sam2(tiny_models.SAM2_CONFIG)
    torch.save({"model": model.state_dict()}, path)
    with pytest.raises(InputError) as error:
        load_sam2(path, "tiny")
    assert f"{path} does not fit SAM 2 (tiny) (" in message(error)
    with pytest.raises(InputError) as error:
        load_sam2(path)
    expected = f"{path} is none of the SAM 2.1 sizes tiny, small, base+, large; "
    assert message(error) == expected + "give its YAML as model_cfg if it is another SAM 2"
    torch.save({"state_dict": {"visual.proj": torch.zeros(3, 2)}}, path)
    with pytest.raises(InputError, match=r"is none of the SAM 2\.1 sizes"):
        load_sam2(path)


def test_bad_names_and_configurations_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"unknown SAM 2\.1 size 'huge'; expected one of tiny, small, "):
        find_size("huge")
    with pytest.raises(InputError, match=r"no SAM 2 configuration 'sam3\.yaml'; expected tiny, "):
        build_sam2("sam3.yaml")
    for text in ("model: [", "other: 3", "model: {_target_: nowhere.Nothing}", "model: 3"):
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(InputError) as error:
            build_sam2(tmp_path / "own.yaml")
        assert "is not a SAM 2 configuration" in message(error)


def test_a_library_that_cannot_be_loaded_tells_its_own_story(tmp_path, monkeypatch):
    (tmp_path / "broken_part.py").write_text("raise OSError('libmissing.so.3: cannot open shared object file')")
    (tmp_path / "own.yaml").write_text("model: {_target_: broken_part.Model}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OSError, match=r"^libmissing\.so\.3: cannot open shared object file$"):
        build_sam2(tmp_path / "own.yaml")
