"""The worked examples of docs/extending.md, as they stand there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from open_clip import SimpleTokenizer
from PIL import Image
from skimage import data
from timm.models import register_model
from timm.models.eva import _create_eva

from textregion.backbones import FAMILIES, SPECS
from textregion.backbones.loading import build_model, wrap
from textregion.backbones.tokenizers import stand_in_tokenizer
from textregion.errors import InputError
from textregion.masks import SOURCES
from textregion.tiny.scenes import draw_scene
from TextRegionSegmenter import TextRegionSegmenter

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def example(path: str) -> str:
    """The code block that begins with the comment `# path`."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    return next(block for block in blocks if block.startswith(f"# {path}\n"))


def run_example(path: str) -> dict:
    names: dict = {"__name__": path.removesuffix(".py").replace("/", ".")}
    exec(compile(example(path), path, "exec"), names)
    return names


@pytest.fixture
def registries():
    """Registries as they were, once the test is over."""
    before = [(registry, dict(registry)) for registry in (FAMILIES, SPECS, SOURCES)]
    yield
    for registry, content in before:
        registry.clear()
        registry.update(content)


@register_model
def example_eva_patch8_64(pretrained=False, **kwargs):
    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2, "global_pool": "token"}
    return _create_eva("example_eva_patch8_64", pretrained=False, **(sizes | kwargs))


def test_backbone(registries):
    backbone_class = run_example("utils/backbones/eva.py")["EvaBackbone"]
    spec = SPECS["eva02-clip-b16"]
    with torch.device("meta"):
        model = build_model(spec)
    real = wrap(spec, model, stand_in_tokenizer(model))
    assert (real.width, real.crop_size, real.patch_size) == (spec.width, spec.crop_size, 16)
    model = tiny_models.timm_model("example_eva_patch8_64", 40, pool="token", proj=None)
    backbone = backbone_class.from_model(model, SimpleTokenizer(context_length=32))
    segmenter = TextRegionSegmenter(backbone, scale=(128, 64), device="cpu", global_patch_threshold=None)
    masks = np.zeros((3, 71, 101), bool)
    masks[0], masks[2, :40, 30:90] = True, True
    regions = segmenter.encode_image(data.coffee()[:71, :101], masks=masks)
    assert regions.source_index.tolist() == [0, 2]
    assert regions.tokens.shape == (2, 40)
    torch.testing.assert_close(regions.tokens.norm(dim=1), torch.ones(2))
    assert segmenter.segment(regions, ["cup", "table"]).label_map.shape == (71, 101)
    with pytest.raises(InputError, match="expected EVA-02"):
        backbone_class.from_model(tiny_models.clip_model(), SimpleTokenizer())


def test_mask_source(registries):
    run_example("utils/masks/felzenszwalb.py")
    segmenter = TextRegionSegmenter.from_preset("tiny", mask_generator="felzenszwalb", device="cpu")
    scene = draw_scene(10, distinct_colours=True)
    regions = segmenter.encode_image(scene.image)
    assert len(regions) >= 3
    full = regions.masks.full().sum(0)
    assert full.max() <= 1, "the segments do not overlap"
    result = segmenter.segment(regions, scene.labels)
    assert (result.label_map == scene.label_map).mean() > 0.6


def test_data_set(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / "data" / "rooms" / folder).mkdir(parents=True)
    for number in range(2):
        rooms, photograph = tmp_path / "data" / "rooms", data.coffee()[: 97 + number, :131]
        Image.fromarray(photograph).save(rooms / "images" / f"{number}.jpg")
        Image.fromarray((photograph[..., 0] // 90).astype(np.uint8)).save(rooms / "labels" / f"{number}.png")
    config = tmp_path / "cfg_rooms.py"
    code = example("configs/cfg_ds/cfg_rooms.py")
    config.write_text(code.replace("../base_config.py", str(ROOT / "configs" / "base_config.py")))
    command = [sys.executable, ROOT / "eval_semantic.py", "--config", config, "--preset", "tiny", "--masks", "slic"]
    done = subprocess.run(
        [*command, "--work-dir", tmp_path / "out"],
        env={**os.environ, "TEXTREGION_DATA": str(tmp_path / "data")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["items"] == 2
    assert set(results["per_class"]) == {"wall", "floor", "chair"}
