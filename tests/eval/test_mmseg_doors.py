"""mmseg's own programs, with nothing but a config of ours."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from PIL import Image

from eval.mm import MODELS
from eval.model import TextRegionModel
from eval.prepare.converters import draw_scenes
from eval.results import ROOT
from eval.semantic import Evaluation, evaluate, load_config
from textregion.tiny.scenes import CLASS_NAMES

CONFIG = ROOT / "configs/cfg_ds/cfg_tiny.py"
SMALL = {"benchmark.scenes": 2, "benchmark.size": 64, "model.scale": (192, 96), "model.points_per_side": 3}
TINY = {"type": "TextRegionSegmenter", "preset": "tiny", "classes": "tiny"}
# As mmseg's tools/test.py, which knows nothing of this project.
TEST = f"""
import json, sys
from mmengine.config import Config
from mmengine.runner import Runner
config = Config.fromfile({str(CONFIG)!r})
config.merge_from_dict({SMALL!r})
config.work_dir = "work"
print(json.dumps(Runner.from_cfg(config).test()))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with two scenes."""
    root = tmp_path_factory.mktemp("data")
    draw_scenes(root / "tiny_world", 2, 64)
    return root


@pytest.fixture(autouse=True)
def data_root(world, monkeypatch):
    """The programs find the scenes."""
    monkeypatch.setenv("TEXTREGION_DATA", str(world))


@pytest.fixture(scope="module")
def photo(world):
    return min((world / "tiny_world/images/val").iterdir())


@pytest.fixture
def config(world):
    return load_config(CONFIG, cfg_options=SMALL)


def bgr(path):
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))[..., ::-1].copy()


@pytest.fixture(scope="module")
def expected(photo):
    """The label map of the photo, from the library."""
    options = {"scale": (192, 96), "points_per_side": 3, "antialias": False, "mask_size": "original"}
    model = TextRegionModel(preset="tiny", classes="tiny", **options)
    (sample,) = model([torch.from_numpy(bgr(photo)).permute(2, 0, 1)])
    return sample.pred_sem_seg.data[0].numpy()


def test_a_runner_gives_the_numbers_of_eval_semantic(world, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    started = [sys.executable, "-c", TEST]
    done = subprocess.run(started, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ours = evaluate(Evaluation(CONFIG, tmp_path / "ours", cfg_options=SMALL, device="cpu"))
    assert json.loads(done.stdout.splitlines()[-1]) == ours.metrics
    assert ours.items == 2


def test_init_model_and_inference_model(config, photo, expected):
    from mmseg.apis import inference_model, init_model

    model = init_model(config, checkpoint=None, device="cpu")
    array = bgr(photo)
    for image in (str(photo), array, str(photo)):  # a path after an array, too
        assert np.array_equal(inference_model(model, image).pred_sem_seg.data[0], expected)
    several = inference_model(model, [array, array])
    assert [np.array_equal(sample.pred_sem_seg.data[0], expected) for sample in several] == [True, True]
    assert model.dataset_meta["classes"] == list(CLASS_NAMES)
    assert np.array(model.dataset_meta["palette"]).shape == (len(CLASS_NAMES), 3)


def test_init_model_from_a_path_and_its_picture(world, photo, tmp_path):
    from mmseg.apis import inference_model, init_model, show_result_pyplot

    model = init_model(str(CONFIG), device="cpu", cfg_options=SMALL)
    result = inference_model(model, str(photo))
    picture = show_result_pyplot(model, str(photo), result, show=False, out_file=str(tmp_path / "picture.png"))
    assert picture.shape == (64, 64, 3)
    assert (tmp_path / "picture.png").is_file()


def test_the_inferencer_takes_paths_and_arrays(config, photo, expected, tmp_path):
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(model=config, device="cpu")
    for image in (str(photo), bgr(photo)):
        assert np.array_equal(inferencer(image)["predictions"], expected)
    both = inferencer([str(photo), bgr(photo)], return_datasamples=True, batch_size=2)
    assert [np.array_equal(sample.pred_sem_seg.data[0], expected) for sample in both] == [True, True]
    inferencer(str(photo), out_dir=str(tmp_path))
    with Image.open(next(tmp_path.glob("pred/*.png"))) as image:
        assert np.array_equal(np.asarray(image), expected)
    assert len(list(tmp_path.glob("vis/*"))) == 1


def test_the_model_is_built_by_name_in_every_scope():
    with DefaultScope.overwrite_default_scope("mmseg"):
        built = [MODELS.build(dict(TINY)), ROOT_MODELS.build(dict(TINY))]
    built += [MODELS.build(dict(TINY)), ROOT_MODELS.build({**TINY, "type": "mmseg.TextRegionSegmenter"})]
    assert [type(model) for model in built] == [TextRegionModel] * 4


def test_the_model_goes_where_it_is_moved(monkeypatch):
    model = MODELS.build(dict(TINY))
    built = []
    monkeypatch.setattr(model, "_rebuild", lambda device: (built.append(device), model.segmenter)[1])
    assert model.to("cpu") is model
    monkeypatch.setattr("eval.model.resolve_device", torch.device)
    assert model.to(torch.device("cuda:1")) is model
    assert built == ["cuda:1"]
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="device cuda:0 is not available here.*stays on cpu"):
            model.to("cuda:0")
    fixed = MODELS.build({**TINY, "device": "cpu"})
    fixed.to("cuda" if torch.cuda.is_available() else "cpu")
    assert fixed.segmenter.device.type == "cpu"


def test_the_shipped_configs_leave_nothing_but_the_config_behind():
    for path in sorted(CONFIG.parent.glob("*.py")):
        config = Config.fromfile(path)
        assert not {"os", "sys", "inspect", "Path", "root", "classes"} & set(config)
        assert Config.fromstring(config.dump(), ".py").to_dict() == config.to_dict()
