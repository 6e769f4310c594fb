"""The worked examples of docs/extending.md, as they stand there."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import contracts
import numpy as np
import pytest
import tiny_models
import torch
from open_clip import SimpleTokenizer
from PIL import Image
from skimage import data
from warm_start import run_warm

from textregion.backbones import FAMILIES, SPECS, find_spec
from textregion.backbones.loading import load_backbone
from textregion.errors import InputError
from textregion.masks import SOURCES, automatic_sources, describe_source
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


def test_backbone(registries):
    backbone_class = run_example("textregion/backbones/eva.py")["EvaBackbone"]
    spec = SPECS["eva02-clip-b16"]
    contracts.published(spec)
    real = contracts.real_size(spec)
    backbone, _ = contracts.stand_in(spec, real)
    assert find_spec("open_clip:EVA02-L-14/merged2b_s4b_b131k").family == "eva"
    segmenter = TextRegionSegmenter(backbone, scale=(448, 224), device="cpu", global_patch_threshold=None)
    masks = np.zeros((3, 71, 101), bool)
    masks[0], masks[2, :40, 30:90] = True, True
    regions = segmenter.encode_image(data.coffee()[:71, :101], masks=masks)
    assert regions.source_index.tolist() == [0, 2]
    assert segmenter.segment(regions, ["cup", "table"]).label_map.shape == (71, 101)
    with pytest.raises(InputError, match="expected EVA-02"):
        backbone_class.from_model(tiny_models.clip_model(), SimpleTokenizer())


def test_a_file_of_another_family_is_named(registries, tmp_path):
    run_example("textregion/backbones/eva.py")
    spec, path = SPECS["eva02-clip-b16"], tmp_path / "clip.pt"
    torch.save(tiny_models.clip_model().state_dict(), path)
    with pytest.raises(InputError, match=r"clip\.pt is a CLIP, but eva02-clip-b16 is an EVA-02 CLIP; give its own"):
        load_backbone(spec, path, SimpleTokenizer())


def test_mask_source(registries, tiny_sam2):
    run_example("textregion/masks/felzenszwalb.py")
    contracts.mask_source(SOURCES["felzenszwalb"], tiny_sam2)
    assert "felzenszwalb" in automatic_sources()
    segmenter = TextRegionSegmenter.from_preset("tiny", mask_generator="felzenszwalb", device="cpu")
    expected = {"source": "felzenszwalb", "scale": 200.0, "min_size": 100}
    assert describe_source(segmenter.mask_generator) == expected
    scene = draw_scene(10, distinct_colours=True)
    regions = segmenter.encode_image(scene.image)
    assert len(regions) >= 3
    full = regions.masks.full().sum(0)
    assert full.max() <= 1, "the segments do not overlap"
    result = segmenter.segment(regions, scene.labels)
    assert (result.label_map == scene.label_map).mean() > 0.6


LIST = """
from textregion.presets import find_preset, preset_names
from textregion.masks import automatic_sources
assert find_preset("eva02-clip-b16").backbone == "eva02-clip-b16"
print("eva02-clip-b16" in preset_names(), *automatic_sources())
"""


def listed(*folders: Path) -> subprocess.CompletedProcess:
    """What a fresh Python knows, with these folders before everything else."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", LIST]
    return subprocess.run(command, env=environment, cwd=folders[0], capture_output=True, text=True, timeout=300)


def test_a_file_among_the_others_is_found_without_any_edit(tmp_path):
    shutil.copytree(ROOT / "textregion", tmp_path / "textregion", copy_function=os.symlink)
    for path in ("textregion/backbones/eva.py", "textregion/masks/felzenszwalb.py"):
        (tmp_path / path).write_text(example(path), encoding="utf-8")
    done = listed(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True sam2 eomt sam2-hf sam3 slic felzenszwalb\n"


def test_an_installed_package_is_found_through_its_entry_points(tmp_path):
    names = {"eva": "textregion/backbones/eva.py", "felzenszwalb": "textregion/masks/felzenszwalb.py"}
    package, about = tmp_path / "somebodys_package", tmp_path / "somebodys_package-1.0.dist-info"
    package.mkdir()
    about.mkdir()
    for name, path in names.items():
        (package / f"{name}.py").write_text(example(path), encoding="utf-8")
    (package / "broken.py").write_text("import no_such_module")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-package\nVersion: 1.0\n")
    groups = tomllib.loads(re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)[1])["project"]["entry-points"]
    groups["textregion.mask_sources"]["broken"] = "somebodys_package.broken:Masks"
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups.items()]
    (about / "entry_points.txt").write_text("\n".join(lines))
    done = listed(tmp_path, ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True sam2 eomt sam2-hf sam3 slic felzenszwalb\n"
    assert "the plug-in broken (somebodys_package.broken:Masks) of textregion.mask_sources is left out" in done.stderr


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
    command = [ROOT / "eval_semantic.py", "--config", config, "--preset", "tiny", "--masks", "slic"]
    command += ["--work-dir", tmp_path / "out"]
    environment = {**os.environ, "TEXTREGION_DATA": str(tmp_path / "data")}
    done = run_warm([str(word) for word in command], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["items"] == 2
    assert set(results["per_class"]) == {"wall", "floor", "chair"}
