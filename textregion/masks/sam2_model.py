"""SAM 2.1 as a model: its sizes, and building and loading it on the `sam2` package's own classes and YAML files."""

from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from os.path import isfile
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from textregion.checkpoints import load_strictly, read_state
from textregion.errors import InputError
from textregion.masks.sam2_names import MEMORY, MEMORY_MODULES, images_only, is_transformers, to_sam2
from textregion.weights import SAM2_VARIABLE, TRANSFORMERS_FILES, Asset
from textregion.yaml_files import read_yaml

ALLOWED_TARGETS = ("torch.nn.Identity",)  # besides those of sam2: what a model for images puts in place of its memory
MOST_NUMBERS = 500_000_000  # of a model of an own YAML: parameters and what else is computed; SAM 2.1 large has 224 M
SPARE_NUMBERS = 20_000_000  # besides those of the weights that are to be loaded; SAM 2.1 needs 7 M
MOST_VALUES = 2_000  # of such a YAML, aliases written out; SAM 2.1 has at most 234, OmegaConf takes up to 2 ms for each
MOST_STEPS = 20_000  # of torch, while such a model is made; SAM 2.1 large needs 2,069


@dataclass(frozen=True)
class Sam2Size:
    """One published SAM 2.1 model: its configuration in the sam2 package and its file on the hub.

    trunk: (width of the first stage, number of blocks), by which a file's size is recognised.
    """

    name: str
    config: str
    repository: str
    megabytes: int
    trunk: tuple[int, int]


SIZES = {
    size.name: size
    for size in (
        Sam2Size("tiny", "sam2.1_hiera_t.yaml", "facebook/sam2.1-hiera-tiny", 156, (96, 12)),
        Sam2Size("small", "sam2.1_hiera_s.yaml", "facebook/sam2.1-hiera-small", 184, (96, 16)),
        Sam2Size("base+", "sam2.1_hiera_b+.yaml", "facebook/sam2.1-hiera-base-plus", 324, (112, 24)),
        Sam2Size("large", "sam2.1_hiera_l.yaml", "facebook/sam2.1-hiera-large", 898, (144, 48)),
    )
}


def find_size(name: str) -> Sam2Size:
    """A published size by name; InputError listing the valid ones."""
    if name not in SIZES:
        raise InputError(f"unknown SAM 2.1 size {name!r}; expected one of {', '.join(SIZES)}")
    return SIZES[name]


def sam2_asset(size: str) -> Asset:
    """The weight file of a size, e.g. sam2.1_hiera_tiny.pt, or transformers' beside it."""
    repository = find_size(size).repository
    own = f"{repository.split('/')[-1].replace('-', '_')}.pt"
    return Asset(f"SAM 2.1 {size}", repository, (own, *TRANSFORMERS_FILES[:1]), SAM2_VARIABLE, "--sam2_checkpoint")


def size_of(model_cfg: str | Path | None) -> str | None:
    """The published size that a size name or a name inside the sam2 package means; None for anything else."""
    name = str(model_cfg)
    return next((s.name for s in SIZES.values() if name in (s.name, s.config, f"configs/sam2.1/{s.config}")), None)


def require_sam2() -> None:
    """InputError that names the other way to SAM 2 where the package sam2 is not installed."""
    try:
        import_module("sam2")
    except ModuleNotFoundError as error:
        way = "install it as setup_env.sh does, or take the mask source sam2-hf, which needs transformers instead"
        raise InputError(f"SAM 2 needs the package sam2, which is not installed; {way}") from error


def config_path(model_cfg: str | Path) -> Path:
    """The YAML of a size name, of a name inside the sam2 package, or of an own file; InputError otherwise.

    model_cfg: "large", "sam2.1_hiera_l.yaml", "configs/sam2.1/sam2.1_hiera_l.yaml" or a path.
    """
    require_sam2()
    package = Path(str(files("sam2")))
    name = SIZES[model_cfg].config if model_cfg in SIZES else str(model_cfg)
    for candidate in (Path(name), package / name, package / "configs" / "sam2.1" / name):
        if isfile(candidate):
            return candidate
    raise InputError(
        f"no SAM 2 configuration {name!r}; expected {', '.join(SIZES)}, a name such as "
        "configs/sam2.1/sam2.1_hiera_l.yaml, or the path of a YAML file"
    )


def build_sam2(model_cfg: str | Path = "large", most_numbers: int = MOST_NUMBERS) -> nn.Module:
    """A SAM 2 with random weights from a configuration; single clicks are never re-decided by stability (method 9.2).

    most_numbers: how large the model of an own YAML may be (`_Bounded`).
    Raises InputError when the YAML cannot be read, does not describe a sam2 model (`_check_targets`), or a larger one.
    """
    path = config_path(model_cfg)
    is_own = Path(str(files("sam2"))) not in path.parents
    try:
        content = read_yaml(path, "sam2's YAML form", MOST_VALUES)
        if not isinstance(content, dict) or "model" not in content:
            raise InputError("it has no key model")
        container: Any = OmegaConf.to_container(OmegaConf.load(path))  # which reads more spellings of numbers
        described = container["model"]
        _check_targets(described)
        with _Bounded(most_numbers) if is_own else nullcontext():
            return instantiate(described, _recursive_=True).eval()
    except (OmegaConfBaseException, InstantiationException, ImportError, AttributeError, ValueError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, (ImportError, OSError)) and not isinstance(cause, ModuleNotFoundError):
            raise cause from None  # a library that cannot be loaded tells its own story
        reason = " ".join(str(error).split()).replace(f"{path} ", "")[:160]
        if isinstance(cause, _TooLargeError):
            reason = str(cause)
        raise InputError(f"{path} is not a SAM 2 configuration ({reason}); expected sam2's YAML form") from error


class _TooLargeError(ValueError):
    """A configuration describes a model beyond its bounds."""


class _Bounded(TorchDispatchMode):
    """While it is on, at most `left` numbers are made, in MOST_STEPS steps at most; _TooLargeError otherwise.

    Each step is tried on shapes alone first, so that what is too large is never asked for.
    """

    def __init__(self, left: int) -> None:
        super().__init__()
        self.most, self.left, self.steps = left, left, MOST_STEPS

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Called by torch for every step."""
        kwargs = kwargs or {}
        self.steps -= len(args[0]) if func is torch.ops.aten.unbind.int else 1
        returns = func._schema.returns
        if any(str(made.type) == "Tensor" and made.alias_info is None for made in returns):  # no view, nor in place
            shapes, named = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
            try:
                made = func(*shapes, **named | ({"device": torch.device("meta")} if "device" in named else {}))
            except NotImplementedError:  # its shape depends on values, which are few then
                made = None
            self.left -= made.numel() if isinstance(made, Tensor) else 0
        if self.left < 0 or self.steps < 0:
            raise _TooLargeError(f"its model has more than {self.most} numbers, or takes too long to make")
        return func(*args, **kwargs)


def _check_targets(described: Any) -> None:
    """InputError unless everything that a configuration would make is a torch module that the package sam2 defines.

    A `_target_` could be any name that Python can import, `os.system` as well. OmegaConf's references (`${…}`) are
    refused: twenty short lines that name each other twice stand for a million values.
    """
    if isinstance(described, str) and "${" in described:
        raise InputError(f"it has the reference {described[:60]!r}; write out what it stands for")
    if isinstance(described, dict):
        if "_target_" in described and not _is_part_of_sam2(described["_target_"]):
            raise InputError(f"it names {described['_target_']!r}, but only sam2's own torch modules are made")
        if described.get("weights_path") is not None:
            raise InputError("it names weights_path, a file that sam2 would load without checks; leave it out")
    parts = described.values() if isinstance(described, dict) else described if isinstance(described, list) else ()
    for part in parts:
        _check_targets(part)


def _is_part_of_sam2(target: Any) -> bool:
    """Whether a name is that of a torch module defined in sam2, and not of what sam2's files import in turn."""
    if target in ALLOWED_TARGETS:
        return True
    if not isinstance(target, str) or not target.startswith("sam2."):
        return False
    module, _, name = target.rpartition(".")
    found = getattr(import_module(module), name)
    return isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith("sam2.")


def load_sam2(path: str | Path, model_cfg: str | Path | None = None) -> nn.Module:
    """A SAM 2 with the weights of a file (the original `.pt` with its `model` key, or safetensors), strictly.

    The names may be those of transformers' Sam2VideoModel, or of its Sam2Model, which has no memory: then the model has
    none either, and is for images alone. model_cfg: as for `config_path`; None finds the published size the file
    belongs to. Raises InputError: missing, truncated, unsafe, or of another architecture.
    """
    found = read_state(path)
    state = to_sam2(found)
    numbers = sum(value.numel() for value in state.values())
    most = min(MOST_NUMBERS, numbers + SPARE_NUMBERS)
    model = build_sam2(model_cfg if model_cfg is not None else matching_size(state, path), most)
    if is_transformers(found) and images_only(state):
        for name in MEMORY_MODULES:
            setattr(model, name, nn.Identity())
        own = {name: value for name, value in model.state_dict().items() if name.startswith(MEMORY)}
        state = {name: torch.zeros_like(value) for name, value in own.items()} | state
    load_strictly(model, state, f"SAM 2 ({model_cfg})" if model_cfg is not None else "SAM 2.1", path)
    return model


def matching_size(state: dict[str, Tensor], path: str | Path) -> str:
    """Which published size a state dict belongs to, by the width and depth of its image trunk; InputError if none."""
    patches = state.get("image_encoder.trunk.patch_embed.proj.weight")
    blocks = {name.split(".")[3] for name in state if name.startswith("image_encoder.trunk.blocks.")}
    for size in SIZES.values():
        if patches is not None and (len(patches), len(blocks)) == size.trunk:
            return size.name
    valid = ", ".join(SIZES)
    raise InputError(f"{path} is none of the SAM 2.1 sizes {valid}; give its YAML as model_cfg if it is another SAM 2")
