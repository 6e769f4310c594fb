"""SAM 2.1 models by size, by file, by configuration; on the `sam2` package's own classes and YAML files."""

from dataclasses import dataclass
from importlib.resources import files
from os.path import isfile
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from yaml import YAMLError

from textregion.checkpoints import load_strictly, read_state
from textregion.errors import InputError
from textregion.storage import reading
from textregion.weights import SAM2_VARIABLE, Asset


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

    @property
    def file(self) -> str:
        """The weight file's name, e.g. sam2.1_hiera_tiny.pt."""
        return f"{self.repository.split('/')[-1].replace('-', '_')}.pt"


SIZES = {
    name: Sam2Size(name, f"sam2.1_hiera_{config}.yaml", f"facebook/sam2.1-hiera-{hub}", megabytes, trunk)
    for name, config, hub, megabytes, trunk in (
        ("tiny", "t", "tiny", 156, (96, 12)),
        ("small", "s", "small", 184, (96, 16)),
        ("base+", "b+", "base-plus", 324, (112, 24)),
        ("large", "l", "large", 898, (144, 48)),
    )
}


def find_size(name: str) -> Sam2Size:
    """A published size by name; InputError listing the valid ones."""
    if name not in SIZES:
        raise InputError(f"unknown SAM 2.1 size {name!r}; expected one of {', '.join(SIZES)}")
    return SIZES[name]


def sam2_asset(size: str) -> Asset:
    """The weight file of a size."""
    row = find_size(size)
    return Asset(f"SAM 2.1 {row.name}", row.repository, (row.file,), SAM2_VARIABLE, "--sam2_checkpoint")


def size_of(model_cfg: str | Path | None) -> str | None:
    """The published size that a size name or a name inside the sam2 package means; None for anything else."""
    name = str(model_cfg)
    return next((s.name for s in SIZES.values() if name in (s.name, s.config, f"configs/sam2.1/{s.config}")), None)


def config_path(model_cfg: str | Path) -> Path:
    """The YAML of a size name, of a name inside the sam2 package, or of an own file; InputError otherwise.

    model_cfg: "large", "sam2.1_hiera_l.yaml", "configs/sam2.1/sam2.1_hiera_l.yaml" or a path.
    """
    package = Path(str(files("sam2")))
    name = SIZES[model_cfg].config if model_cfg in SIZES else str(model_cfg)
    for candidate in (Path(name), package / name, package / "configs" / "sam2.1" / name):
        if isfile(candidate):
            return candidate
    raise InputError(
        f"no SAM 2 configuration {name!r}; expected {', '.join(SIZES)}, a name such as "
        "configs/sam2.1/sam2.1_hiera_l.yaml, or the path of a YAML file"
    )


def build_sam2(model_cfg: str | Path = "large") -> nn.Module:
    """A SAM 2 with random weights from a configuration; single clicks are never re-decided by stability (method 9.2).

    Raises InputError when the YAML cannot be read or does not describe a sam2 model.
    """
    path = config_path(model_cfg)
    try:
        with reading(path):
            config = OmegaConf.load(path)
        return instantiate(config.model, _recursive_=True).eval()
    except (YAMLError, OmegaConfBaseException, InstantiationException, UnicodeDecodeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, (ImportError, OSError)) and not isinstance(cause, ModuleNotFoundError):
            raise cause from None  # a library that cannot be loaded tells its own story
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} is not a SAM 2 configuration ({reason}); expected sam2's YAML form") from error


def load_sam2(path: str | Path, model_cfg: str | Path | None = None) -> nn.Module:
    """A SAM 2 with the weights of a file (the original `.pt` with its `model` key, or safetensors), strictly.

    model_cfg: as for `config_path`; None finds the published size the file belongs to.
    Raises InputError: missing, truncated, unsafe, or of another architecture.
    """
    state = read_state(path)
    model = build_sam2(model_cfg if model_cfg is not None else matching_size(state, path))
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
