"""SAM 2.1 by size, by file and by configuration; strict, and one line for what does not fit."""

from contextlib import nullcontext
from functools import partial

import pytest
import sam2
import tiny_models
import torch
from omegaconf import OmegaConf

from textregion.errors import InputError
from textregion.masks.sam2_model import (
    MOST_NUMBERS,
    MOST_VALUES,
    SIZES,
    _check_targets,
    build_sam2,
    config_path,
    find_size,
    load_sam2,
    matching_size,
    sam2_asset,
    size_of,
)
from textregion.tiny.models import SAM2_CONFIG


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
        files = sam2_asset(size.name).files[:1]
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
    (tmp_path / "own.yaml").write_text("model: {_target_: sam2.broken_part.Model}")
    monkeypatch.setattr(sam2, "__path__", [*sam2.__path__, str(tmp_path)])
    with pytest.raises(OSError, match=r"^libmissing\.so\.3: cannot open shared object file$"):
        build_sam2(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.nn.Linear",
        "os.system",
        "builtins.eval",
        "sam2",
        "sam2.",
        "sam2x.Model",
        "sam2.build_sam.torch.load",
        "sam2.build_sam.torch.nn.Linear",
        "sam2.build_sam.build_sam2",
        "sam2.modeling.sam2_base.trunc_normal_",
        "sam2.modeling.sam2_base.torch",
        "sam2.modeling.sam2_base.NO_OBJ_SCORE",
        "sam2.nowhere.Model",
        "${oc.env:HOME}",
        "${other}",
    ],
)
@pytest.mark.parametrize("place", ["model: {%s}", "model: {_target_: torch.nn.Identity, part: [{deep: {%s}}]}"])
def test_only_modules_of_sam2_are_made(tmp_path, monkeypatch, target, place):
    def instantiate(*_, **__):
        raise AssertionError("something was made")

    monkeypatch.setattr("textregion.masks.sam2_model.instantiate", instantiate)
    (tmp_path / "own.yaml").write_text("other: os.system\n" + place % f"_target_: '{target}'")
    with pytest.raises(InputError) as error:
        build_sam2(tmp_path / "own.yaml")
    assert f"{tmp_path / 'own.yaml'} is not a SAM 2 configuration (" in message(error)


def test_a_configuration_may_not_load_a_file_of_its_own(tmp_path):
    text = tiny_models.SAM2_CONFIG.read_text()
    assert "embed_dim:" in text
    (tmp_path / "own.yaml").write_text(text.replace("embed_dim:", "weights_path: evil.pt\n      embed_dim:", 1))
    with pytest.raises(InputError, match="it names weights_path"):
        build_sam2(tmp_path / "own.yaml")


def test_every_published_configuration_is_allowed():
    for size in SIZES:
        config = OmegaConf.to_container(OmegaConf.load(config_path(size)).model, resolve=True)
        _check_targets(config)


def test_a_configuration_that_multiplies_is_refused(tmp_path):
    lines = "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]\n" for n in range(1, 12))
    (tmp_path / "own.yaml").write_text(f"k0: &k0 [1]\n{lines}model: *k11\n")
    with pytest.raises(InputError, match=r"is not a SAM 2 configuration \(stands for more than"):
        build_sam2(tmp_path / "own.yaml")


def test_a_configuration_of_few_aliases_is_refused_before_omegaconf_copies_them(tmp_path, monkeypatch):
    """read_yaml allows what these stand for, OmegaConf takes minutes for it."""
    monkeypatch.setattr("textregion.masks.sam2_model.OmegaConf.load", None)
    (tmp_path / "own.yaml").write_text(f"k: &k [1, 2]\nmodel: [{', '.join(['*k'] * MOST_VALUES)}]")
    with pytest.raises(InputError, match=r"\(stands for more than 2000 values; use fewer aliases and merge keys\)"):
        build_sam2(tmp_path / "own.yaml")


@pytest.mark.parametrize("model", ["{a: '${k60}'}", "'${k60}'", "[x, '${oc.env:HOME}']"])
def test_references_are_refused_before_they_are_followed(tmp_path, model):
    """Each of these lines stands for two of the line before: 2^60 letters."""
    lines = "".join(f"k{n}: '${{k{n - 1}}}${{k{n - 1}}}'\n" for n in range(1, 61))
    (tmp_path / "own.yaml").write_text(f"k0: x\n{lines}model: {model}\n")
    with pytest.raises(InputError, match=r"\(it has the reference '\$\{.*\}'; write out what it stands for\)"):
        build_sam2(tmp_path / "own.yaml")


@pytest.mark.parametrize("text", ["", "3", "[model]", "other: {}"])
def test_a_configuration_without_a_model_is_refused(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError, match=r"own\.yaml is not a SAM 2 configuration \(it has no key model\)"):
        build_sam2(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("line", "most"),
    [
        ("embed_dim: 30_000_000", MOST_NUMBERS),  # one matrix of many
        ("stages: [1, 1, 30_000, 1]", MOST_NUMBERS),  # modules, each of many steps
        ("stages: [1, 2, 40, 2]", 8_000_000),  # of which each is within the bound, 200,000
        ("window_pos_embed_bkg_spatial_size: [100_000, 100_000]", MOST_NUMBERS),
        ("num_maskmem: 100_000_000", MOST_NUMBERS),
    ],
)
def test_a_configuration_of_an_enormous_model_is_refused_before_it_is_made(tmp_path, line, most):
    key = line.partition(":")[0]
    lines = SAM2_CONFIG.read_text().splitlines()
    (place,) = [number for number, old in enumerate(lines) if old.strip().startswith(f"{key}:")]
    lines[place] = lines[place].partition(key)[0] + line
    (tmp_path / "own.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"its model has more than {most} numbers, or takes too long to make"):
        build_sam2(tmp_path / "own.yaml", most)


def test_a_model_larger_than_its_weights_is_refused_before_it_is_made(tmp_path):
    """One block is 25 M numbers and more; the file has one."""
    text = SAM2_CONFIG.read_text().replace("embed_dim: 32", "embed_dim: 2048")
    (tmp_path / "own.yaml").write_text(text)
    torch.save({"a.b": torch.zeros(1)}, tmp_path / "own.pt")
    with pytest.raises(InputError, match="its model has more than 20000001 numbers"):
        load_sam2(tmp_path / "own.pt", tmp_path / "own.yaml")


def test_making_within_bounds_gives_the_same_model(monkeypatch):
    """The bounds only watch: the same random numbers are drawn."""
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        states.append(build_sam2(tiny_models.SAM2_CONFIG).state_dict())
        monkeypatch.setattr("textregion.masks.sam2_model._Bounded", nullcontext)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
