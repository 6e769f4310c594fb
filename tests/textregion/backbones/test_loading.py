"""Weight files in every published layout become the same model; anything else is one line."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_models  # registers the small timm towers
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file

from textregion.backbones import FAMILIES, BackboneSpec
from textregion.backbones.loading import (
    build_model,
    kind_of,
    load_backbone,
    random_backbone,
    seeded,
    to_open_clip,
)
from textregion.errors import InputError

SMALL_CLIP = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": tiny_models.CLIP_VISION,
    "text_cfg": tiny_models.CLIP_TEXT | {"vocab_size": 503, "context_length": 13},
}
WIDE_CLIP = SMALL_CLIP | {"vision_cfg": tiny_models.CLIP_VISION | {"width": 64}}
TEXT = tiny_models.TIMM_TEXT | {"vocab_size": 503}


def _timm_config(tower: str, embed_dim: int, **vision) -> dict:
    vision = {"image_size": 64, "timm_model_name": tower, "timm_pool": "map"} | vision
    return {"embed_dim": embed_dim, "custom_text": True, "vision_cfg": vision, "text_cfg": TEXT}


CONFIGS = {
    "test-clip": SMALL_CLIP,
    "test-clip-wide": WIDE_CLIP,
    "test-siglip": _timm_config("golden_siglip_tiny_patch8_64", 64, timm_proj="none") | {"init_logit_bias": -10.0},
    "test-pe": _timm_config("golden_pe_tiny_patch8_64", 48, timm_proj=None),
}
CLIP_ROW = BackboneSpec("test-clip", "clip", ("test-clip", ""), 40, 24)
WIDE_ROW = BackboneSpec("test-clip-wide", "clip", ("test-clip-wide", ""), 32, 24)
SIGLIP_ROW = BackboneSpec("test-siglip", "siglip", ("test-siglip", ""), 64, 64)
PE_ROW = BackboneSpec("test-pe", "pe", ("test-pe", ""), 64, 48)
ROWS = [CLIP_ROW, SIGLIP_ROW, PE_ROW]


@pytest.fixture(scope="module", autouse=True)
def small_models_known_to_open_clip(tmp_path_factory):
    with tiny_models.known_to_open_clip(CONFIGS, tmp_path_factory.mktemp("model_configs")):
        yield


def lively(spec: BackboneSpec, seed: int = 5) -> torch.nn.Module:
    """The row's model, every weight different from its initial value."""
    model = build_model(spec)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


def load(spec: BackboneSpec, path):
    return load_backbone(spec, path, lambda texts: texts)


@pytest.mark.parametrize("spec", ROWS, ids=lambda spec: spec.family)
@pytest.mark.parametrize("layout", ["open_clip_model.safetensors", "bin", "training checkpoint"])
def test_open_clips_own_files_load_strictly(tmp_path, spec, layout):
    model = lively(spec)
    state = model.state_dict()
    path = tmp_path / "open_clip_pytorch_model.bin"
    if layout.endswith("safetensors"):
        path = tmp_path / layout
        save_file(state, path)
    elif layout == "bin":
        torch.save(state, path)
    else:
        torch.save({"epoch": 32, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    backbone = load(spec, path)
    assert same(model, backbone.model)
    assert backbone.name == spec.name
    assert backbone.crop_size == spec.crop_size


def test_a_local_file_of_another_family_gets_that_familys_preprocessing(tmp_path):
    means = {}
    for spec in ROWS:
        torch.save(lively(spec).state_dict(), tmp_path / f"{spec.name}.pt")
        backbone = load(spec, tmp_path / f"{spec.name}.pt")
        means[spec.family] = (tuple(round(m, 3) for m in backbone.mean), backbone.interpolation)
    assert means == {
        "clip": ((0.481, 0.458, 0.408), "bicubic"),
        "siglip": ((0.5, 0.5, 0.5), "bicubic"),
        "pe": ((0.5, 0.5, 0.5), "bilinear"),
    }


def openai_layout(model: CLIP) -> dict:
    """As OpenAI's state dicts are: half precision and three numbers about the model's shape."""
    state = {name: value.half() for name, value in model.state_dict().items()}
    sizes = {"input_resolution": 32, "context_length": 13, "vocab_size": 503}
    return state | {name: torch.tensor(size) for name, size in sizes.items()}


def test_openais_state_dict_loads(tmp_path):
    model = lively(CLIP_ROW)
    torch.save(openai_layout(model), tmp_path / "ViT-B-16.pt")
    assert same(model.half().float(), load(CLIP_ROW, tmp_path / "ViT-B-16.pt").model)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_openais_archive_loads(tmp_path):
    model = lively(CLIP_ROW)
    inputs = {
        "encode_image": torch.zeros(1, 3, 32, 32),
        "encode_text": torch.zeros(1, 13, dtype=torch.int64),
    }
    torch.jit.trace_module(model, inputs, check_trace=False).save(str(tmp_path / "ViT-B-16.pt"))
    assert same(model, load(CLIP_ROW, tmp_path / "ViT-B-16.pt").model)


def meta_layout(model: CustomTextCLIP) -> dict:
    """open_clip's PE as Meta's own file: names of its class, packed attention of the pool, text at the top."""
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("text."):
            state[name.removeprefix("text.")] = value
        elif not name.startswith("visual.trunk."):
            state[name] = value
    trunk = {k.removeprefix("visual.trunk."): v for k, v in model.state_dict().items() if "visual.trunk." in k}
    renames = {
        "patch_embed.proj.weight": "conv1.weight",
        "norm_pre.weight": "ln_pre.weight",
        "norm_pre.bias": "ln_pre.bias",
        "norm.weight": "ln_post.weight",
        "norm.bias": "ln_post.bias",
        "attn_pool.latent": "attn_pool.probe",
        "attn_pool.norm.weight": "attn_pool.layernorm.weight",
        "attn_pool.norm.bias": "attn_pool.layernorm.bias",
        "attn_pool.proj.weight": "attn_pool.attn.out_proj.weight",
        "attn_pool.proj.bias": "attn_pool.attn.out_proj.bias",
        "attn_pool.mlp.fc1.weight": "attn_pool.mlp.c_fc.weight",
        "attn_pool.mlp.fc1.bias": "attn_pool.mlp.c_fc.bias",
        "attn_pool.mlp.fc2.weight": "attn_pool.mlp.c_proj.weight",
        "attn_pool.mlp.fc2.bias": "attn_pool.mlp.c_proj.bias",
    }
    blocks = {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.qkv.weight": "attn.in_proj_weight",
        "attn.qkv.bias": "attn.in_proj_bias",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for name, value in trunk.items():
        if name in renames:
            state[f"visual.{renames[name]}"] = value
        elif name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            (old,) = (part for part in blocks if rest.startswith(part))
            state[f"visual.transformer.resblocks.{index}.{rest.replace(old, blocks[old])}"] = value
    state["visual.class_embedding"] = trunk["cls_token"][0, 0]
    state["visual.positional_embedding"] = trunk["pos_embed"][0]
    state["visual.proj"] = trunk["head.weight"].T.contiguous()
    for kind in ("weight", "bias"):
        packed = torch.cat([trunk[f"attn_pool.q.{kind}"], trunk[f"attn_pool.kv.{kind}"]])
        state[f"visual.attn_pool.attn.in_proj_{kind}"] = packed
    return state


@pytest.mark.parametrize("wrapper", [None, "state_dict", "weights"])
def test_metas_perception_encoder_loads(tmp_path, wrapper):
    model = lively(PE_ROW)
    with torch.no_grad():
        if model.visual.trunk.head.bias is not None:
            model.visual.trunk.head.bias.zero_()
    state = meta_layout(model)
    torch.save(state if wrapper is None else {wrapper: state}, tmp_path / "PE-Core-X.pt")
    assert same(model, load(PE_ROW, tmp_path / "PE-Core-X.pt").model)


def test_layouts_do_not_change_a_state_that_is_open_clips_own():
    for spec in ROWS:
        model = lively(spec)
        state = model.state_dict()
        assert to_open_clip(state, model, FAMILIES[spec.family]).keys() == state.keys()


def test_scalars_saved_with_a_dimension_fit(tmp_path):
    model = lively(SIGLIP_ROW)
    state = model.state_dict() | {
        "logit_scale": model.logit_scale.data[None],
        "logit_bias": model.logit_bias.data[None],
    }
    torch.save(state, tmp_path / "w.pt")
    assert same(model, load(SIGLIP_ROW, tmp_path / "w.pt").model)


def refusal(spec: BackboneSpec, path) -> str:
    with pytest.raises(InputError) as error:
        load(spec, path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_wrong_family_is_named(tmp_path, tiny_sam2):
    states = {spec.family: lively(spec).state_dict() for spec in ROWS} | {"sam2": tiny_sam2.state_dict()}
    names = {"clip": "a CLIP", "siglip": "a SigLIP", "pe": "a Perception Encoder", "sam2": "a SAM 2"}
    for kind, state in states.items():
        assert kind_of(state) == names[kind]
        path = tmp_path / f"{kind}.pt"
        torch.save(state, path)
        for spec in ROWS:
            if spec.family != kind:
                expected = f"{path} is {names[kind]}, but {spec.name} is {names[spec.family]}; give its own weights"
                assert refusal(spec, path) == expected


def test_the_wrong_size_is_named(tmp_path):
    torch.save(lively(WIDE_ROW).state_dict(), tmp_path / "wide.pt")
    text = refusal(CLIP_ROW, tmp_path / "wide.pt")
    assert text.startswith(f"{tmp_path / 'wide.pt'} does not fit test-clip (")
    assert "visual.class_embedding (64,) instead of (32,)" in text


def test_other_tensors_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "w.pt")
    assert "missing: " in refusal(CLIP_ROW, tmp_path / "w.pt")


def test_random_weights_are_the_same_every_time_and_leave_the_random_state_alone():
    before = torch.get_rng_state()
    first, second = random_backbone(CLIP_ROW), random_backbone(CLIP_ROW)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first.model, second.model)
    other = random_backbone(CLIP_ROW, seed=1)
    assert not same(first.model, other.model)
    assert first.crop_size == 40
    tokens = first.tokenizer(["a photo of a cat.", "sky"])
    assert tokens.shape == (2, 13)
    assert 0 <= tokens.min() <= tokens.max() < 503, "folded into the model's vocabulary"


def test_threads_that_seed_at_once_leave_the_global_random_state():
    barrier, before = threading.Barrier(4), torch.get_rng_state()

    def draw(seed: int) -> list[float]:
        barrier.wait()
        numbers = []
        with seeded(seed):
            for _ in range(50):
                numbers += torch.rand(1).tolist()
                time.sleep(0)  # another thread's turn
        return numbers

    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(draw, (3, 4, 5, 3)))
    assert torch.equal(torch.get_rng_state(), before)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5, 3)]
    assert drawn == [[torch.rand(1, generator=generator).item() for _ in range(50)] for generator in generators]
