"""Heads on disk: ours and those of the published program, loaded whole or refused in one line."""

import copy
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import save_file

from textregion.errors import InputError
from textregion.masks import Sam2MaskGenerator
from textregion.regionspot import loading
from textregion.regionspot.loading import is_own, load_head, load_published, load_regionspot, save_head
from textregion.regionspot.model import RegionSpotHead
from textregion.storage import save_tensors

ORIGIN = {"clip": "tiny", "side": 32, "sam": "sam2:custom", "epochs": 3}


def make_head(layers=3, **options) -> RegionSpotHead:
    torch.manual_seed(3)
    return RegionSpotHead(32, 24, hidden=16, layers=layers, **options)


def same(head: RegionSpotHead, other: RegionSpotHead) -> bool:
    own, theirs = head.state_dict(), other.state_dict()
    return own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)


def published(head: RegionSpotHead) -> dict:
    """The authors' layout: what is frozen comes along."""
    state = {f"model.{name}": value for name, value in head.state_dict().items()}
    state["model.clip_model.visual.proj"] = state["model.sam.mask_decoder.iou_token.weight"] = torch.zeros(2, 2)
    return {"model": state, "iteration": 450_000}


@pytest.fixture
def write(tmp_path):
    def write(content, name="head.pth") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


# ---------------------------------------------------------------------- our own files


@pytest.mark.parametrize("layers", [1, 3])
def test_a_head_comes_back_with_its_options_and_origin(tmp_path, layers):
    head = make_head(layers, isolate=True, use_class_token=False)
    save_head(tmp_path / "head.safetensors", head, ORIGIN)
    loaded, origin = load_head(tmp_path / "head.safetensors", "tiny", "sam2:custom")
    assert same(head, loaded)
    assert (loaded.isolate, loaded.use_class_token, loaded.training) == (True, False, False)
    assert origin == ORIGIN
    assert not load_head(tmp_path / "head.safetensors", isolate=False)[0].isolate


def test_half_precision_files_are_half_as_large_and_come_back_as_float32(tmp_path):
    for name, half in (("full", False), ("half", True)):
        save_head(tmp_path / name, make_head(), ORIGIN, half=half)
    sizes = [(tmp_path / name).stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    head, _ = load_head(tmp_path / "half")
    for value, original in zip(head.parameters(), make_head().parameters(), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, original, atol=1e-3, rtol=1e-3)


def test_another_clip_or_sam_is_refused(tmp_path):
    path = tmp_path / "head.safetensors"
    save_head(path, make_head(), ORIGIN)
    with pytest.raises(InputError, match="was trained with tiny, got clip-vit-b16"):
        load_head(path, clip="clip-vit-b16")
    with pytest.raises(InputError, match="was trained with sam2:custom, got sam2:large"):
        load_head(path, sam="sam2:large")


def test_an_origin_must_say_what_the_head_is_for(tmp_path):
    with pytest.raises(InputError, match="without side, sam"):
        save_head(tmp_path / "head", make_head(), {"clip": "tiny"})
    save_tensors(tmp_path / "bare", make_head().state_dict(), {"kind": "RegionSpotHead"})
    with pytest.raises(InputError, match="does not say what it was made for"):
        load_head(tmp_path / "bare")


def test_only_what_save_head_wrote_is_ours(tmp_path, write):
    save_head(tmp_path / "head", make_head(), ORIGIN)
    save_file(make_head().state_dict(), tmp_path / "plain.safetensors")
    assert is_own(tmp_path / "head")
    assert not is_own(tmp_path / "plain.safetensors")
    assert not is_own(write(published(make_head())))


# ---------------------------------------------------------------------- the authors' files


def test_a_published_checkpoint_loads_strictly(write, tiny_clip):
    head, origin = load_published(write(published(make_head())), tiny_clip)
    assert same(head, make_head())
    assert not head.training
    assert origin == {"clip": "tiny", "side": 32, "sam": "sam1:vit_b"}
    assert load_published(write(published(make_head())), tiny_clip, isolate=True)[0].isolate


def test_half_precision_and_stripped_files_load_too(write, tiny_clip):
    content = published(make_head())
    stripped = {n: v.half() for n, v in content["model"].items() if "clip_model" not in n and ".sam." not in n}
    head, _ = load_published(write(stripped), tiny_clip)
    assert same(head, make_head().half().float())


def changed(**changes) -> dict:
    content = published(make_head())
    for name, value in changes.items():
        name = name.replace("__", ".")
        content["model"].pop(name) if value is None else content["model"].update({name: value})
    return content


WRONG = [
    (changed(model__projector__bias=None), "1 missing: projector.bias"),
    (changed(model__to_clip__weight=None), "'to_clip.weight' is missing"),
    (changed(model__to_clip__weight=torch.zeros(3)), "is missing or no matrix"),
    (changed(model__to_clip__weight=torch.zeros(33, 256)), "its width 33 is no multiple of 8"),
    (changed(model__ln_extra__weight=torch.zeros(3)), "1 unexpected: ln_extra.weight"),
    (changed(model__decoder__norm__bias=torch.zeros(3)), r"1 wrong shape: decoder.norm.bias \(3,\) instead of \(32,\)"),
    (changed(pixel_mean=torch.zeros(3)), "names do not start with 'model.'"),
    (published(make_head(layers=2)), "tensors are too few for 3 layers"),
    ({"model": {}}, "expected tensors by name"),
    ([1, 2], "holds list, expected tensors by name"),
    ({**published(make_head()), "trainer": Path("a")}, "holds more than tensors"),
]


@pytest.mark.parametrize(("content", "line"), WRONG, ids=[line[:30] for _, line in WRONG])
def test_wrong_checkpoints_are_refused_in_one_line(write, tiny_clip, content, line):
    path = write(content)
    with pytest.raises(InputError, match=line) as error:
        load_published(path, tiny_clip)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_what_is_no_checkpoint_is_refused(tmp_path, tiny_clip):
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(InputError, match="is damaged or truncated"):
        load_published(tmp_path / "text.pth", tiny_clip)
    with pytest.raises(InputError, match="no weight file at"):
        load_published(tmp_path / "none.pth", tiny_clip)


def test_a_head_of_another_clip_is_refused(write):
    wider = tiny_models.clip(width=48)
    with pytest.raises(InputError, match="CLIP of widths 32 and 24, CLIP tiny has 48 and 24"):
        load_published(write(published(make_head())), wider)


class StandIn:
    """A published CLIP's widths and input side, and nothing else of it."""

    family = "clip"

    def __init__(self, backbone, name, clip_width, width, side):
        visual = copy.copy(backbone.model.visual)
        visual.__dict__ = {**visual.__dict__, "image_size": (side, side)}
        visual._modules = {**visual._modules, "conv1": torch.nn.Conv2d(3, clip_width, 1)}
        self.name, self.width = name, width
        self.model = torch.nn.Module()
        self.model.visual = visual


@pytest.fixture
def stand_in(monkeypatch, tiny_clip, untyped):
    monkeypatch.setattr("textregion.regionspot.loading.check_backbone", lambda backbone: None)
    return lambda *sizes: StandIn(tiny_clip, *sizes)


def sized(clip_width: int, embed_width: int) -> dict:
    """The published sizes but for the hidden width, zeros all over."""
    with torch.device("meta"):
        head = RegionSpotHead(clip_width, embed_width, hidden=8)
    return {"model": {f"model.{name}": torch.zeros(()).expand(v.shape) for name, v in head.state_dict().items()}}


def test_a_head_of_vit_b_is_known_by_its_shapes(write, stand_in):
    _, origin = load_published(write(sized(768, 512)), stand_in("clip-vit-b16", 768, 512, 224))
    assert origin["side"] == 224


def test_a_head_of_vit_l_must_be_told_its_side(write, stand_in):
    path = write(sized(1024, 768))
    small, large = stand_in("clip-vit-l14", 1024, 768, 224), stand_in("clip-vit-l14-336", 1024, 768, 336)
    with pytest.raises(InputError, match=r"give regionspot_side 224 \(clip-vit-l14\) or 336 \(clip-vit-l14-336\)"):
        load_published(path, large)
    assert load_published(path, large, 336)[1]["side"] == 336
    assert load_published(path, small, 224)[1]["side"] == 224
    with pytest.raises(InputError, match="of input side 336 belongs to clip-vit-l14-336, got clip-vit-l14; take"):
        load_published(path, small, 336)
    with pytest.raises(InputError, match=r"got regionspot_side 448, .* can be of 224 or 336"):
        load_published(path, large, 448)


# ---------------------------------------------------------------------- which head, which SAM


@pytest.fixture
def generator(tiny_sam2):
    return Sam2MaskGenerator(tiny_sam2)


def test_a_published_head_takes_sam1_and_ours_the_sam_it_was_trained_with(
    tmp_path, write, tiny_clip, generator, monkeypatch
):
    monkeypatch.setattr("segment_anything.sam_model_registry", {"vit_b": lambda: tiny_models.sam1(9)})
    torch.save(tiny_models.sam1().state_dict(), tmp_path / "sam.pth")
    head = RegionSpotHead(32, 24, 64, 16)
    model = load_regionspot(tiny_clip, generator, write(published(head)), tmp_path / "sam.pth", isolate=True)
    assert (model.box_tokens.name, model.side, model.head.isolate) == ("sam1:vit_b", 32, True)
    own = tmp_path / "own.safetensors"
    name = loading.Sam2BoxTokens(generator).name
    save_head(own, head, {"clip": "tiny", "side": 40, "sam": name, "antialias": True})
    model = load_regionspot(tiny_clip, generator, own)
    assert (model.box_tokens.name, model.side, model.antialias) == (name, 40, True)
    with pytest.raises(InputError, match="trained at input side 40, got 32"):
        load_regionspot(tiny_clip, generator, own, side=32)
    with pytest.raises(InputError, match="needs the SAM 2 it was trained with"):
        load_regionspot(tiny_clip, None, own)
    save_head(own, head, {"clip": "tiny", "side": 40, "sam": "sam2:large"})
    with pytest.raises(InputError, match="was trained with sam2:large, got"):
        load_regionspot(tiny_clip, generator, own)


def test_what_is_missing_is_said_in_one_line(tmp_path, write, tiny_clip, tiny_siglip, untyped):
    with pytest.raises(InputError, match="needs SAM v1 vit_b; give its weights as sam1_checkpoint"):
        load_regionspot(tiny_clip, None, write(published(make_head())))
    with pytest.raises(InputError, match="no RegionSpot head at"):
        load_regionspot(tiny_clip, None, tmp_path / "none.pth")
    other = tiny_models.clip()
    other.name = "clip-vit-b16"
    with pytest.raises(InputError, match="no RegionSpot head is shipped for clip-vit-b16; give one as"):
        load_regionspot(other)
    with pytest.raises(InputError, match="RegionSpot works with CLIP models"):
        load_regionspot(tiny_siglip)
