"""Numeric outputs of the authors' program, and the small models they were made with (tests/golden/README.md).

Two folders of one layout: the selection in tests/golden, always there, whose weights are rounded; and the
complete one, whose place is the environment variable TEXTREGION_GOLDEN or ../shared/golden.
"""

import importlib.util
import json
import os
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import tiny_models
import torch
from open_clip import SimpleTokenizer
from open_clip.model import CLIP, CustomTextCLIP
from PIL import Image
from safetensors.torch import load_file
from timm.models.eva import checkpoint_filter_fn

from textregion.backbones import Backbone, ClipBackbone, PerceptionBackbone, SiglipBackbone

HERE = Path(__file__).parent / "golden"
MODELS = {"clip": "clip_tiny_openai", "pe": "pe_tiny", "siglip2": "siglip2_tiny"}
WEIGHTS = {"clip": "clip_tiny_openai", "pe": "pe_tiny_meta", "siglip2": "siglip2_tiny"}


@dataclass(frozen=True)
class Golden:
    """One folder of golden data. complete: with all files and the exact weights."""

    folder: Path
    complete: bool

    def __str__(self) -> str:
        return "complete" if self.complete else "selection"

    def json(self, name: str):
        """A JSON file."""
        return json.loads((self.folder / name).read_text())

    @cache  # noqa: B019 (two folders, alive as long as the tests)
    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """An npz file, all arrays read."""
        with np.load(self.folder / f"{name}.npz") as data:
            return {key: data[key] for key in data.files}

    def outputs(self) -> list[str]:
        """Names of the files with outputs of the program, like clip_eval_B_coffee."""
        return sorted(path.stem for path in self.folder.glob("*_*_?_*.npz") if path.stem.split("_")[0] in MODELS)

    def rgb(self, image: str) -> np.ndarray:
        """(H, W, 3) uint8."""
        return np.array(Image.open(self.folder / "images" / f"{image}.png").convert("RGB"))

    def scale(self, image: str) -> tuple[int, int]:
        """The scale pair the program ran with."""
        return tuple(self.json("inputs.json")[image]["scale"])

    @cache  # noqa: B019
    def backbone(self, family: str) -> Backbone:
        """The small model of a family."""
        config = self.json(f"{MODELS[family]}.json")["open_clip_model_config"]
        config.pop("custom_text", None)
        build, wrap, tokenizer = {
            "clip": (CLIP, ClipBackbone, {"context_length": 77}),
            "pe": (CustomTextCLIP, PerceptionBackbone, {"context_length": 32}),
            "siglip2": (CustomTextCLIP, SiglipBackbone, {"context_length": 64, "clean": "canonicalize"}),
        }[family]
        model = build(**config)
        self._load(family, model)
        return wrap.from_model(model, SimpleTokenizer(**tokenizer), name=f"golden-{family}")

    def _load(self, family: str, model: torch.nn.Module) -> None:
        """All weights strictly, or (rounded) the image tower strictly and the two logit scalars."""
        if self.complete:
            state = self._io.load_state(family)
            model.load_state_dict(_pe_names(state, model) if family == "pe" else state)
            return
        state = rounded_weights(self.arrays(WEIGHTS[family]))
        named = _pe_names(state, model) if family == "pe" else state
        visual = {k.removeprefix("visual."): v for k, v in named.items() if k.startswith("visual.")}
        model.visual.load_state_dict(visual)
        for name in named.keys() - {f"visual.{k}" for k in visual}:
            model.get_parameter(name).data.copy_(named[name])

    @cached_property
    def _io(self):
        spec = importlib.util.spec_from_file_location("golden_io", self.folder / "golden_io.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def sam2(self) -> torch.nn.Module:
        """The small SAM 2 (complete folder only)."""
        model = tiny_models.sam2.__wrapped__()
        state = load_file(self.folder / "sam2_cfg" / "sam2_tiny_random.safetensors")
        model.load_state_dict({name: value.float() for name, value in state.items()})
        return model


def rounded_weights(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Inverse of make_fixtures.py: byte planes (4, n) back to named float32 tensors."""
    values = torch.from_numpy(arrays["planes"].T.copy().view(np.float32)[:, 0])
    shapes = [[int(n) for n in shape.split(",") if n] for shape in arrays["shapes"]]
    parts = values.split([int(np.prod(shape)) for shape in shapes])
    return {str(n): part.reshape(shape) for n, part, shape in zip(arrays["names"], parts, shapes, strict=True)}


def _pe_names(state: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Meta's names to open_clip's: the tower by timm's own converter, the text tower by a prefix."""
    visual = {k: v for k, v in state.items() if k.startswith("visual.")}
    named = {f"visual.trunk.{k}": v for k, v in checkpoint_filter_fn(visual, model.visual.trunk).items()}
    rest = {k: v for k, v in state.items() if not k.startswith("visual.")}
    return named | {k if k.startswith("logit_") else f"text.{k}": v for k, v in rest.items()}


def folders() -> list[Golden]:
    """The selection, and the complete folder where there is one. A path that was asked for must exist."""
    asked = os.environ.get("TEXTREGION_GOLDEN")
    complete = Path(asked) if asked else HERE.parents[2] / "shared" / "golden"
    if asked and not (complete / "golden_io.py").is_file():
        raise FileNotFoundError(f"TEXTREGION_GOLDEN={asked} holds no golden data")
    found = [Golden(HERE, complete=False)]
    if (complete / "golden_io.py").is_file():
        found.append(Golden(complete, complete=True))
    return found


FOLDERS = folders()
