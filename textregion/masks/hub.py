"""Models of the package transformers for mask sources: from a folder in the hub's layout, or from the hub itself."""

from pathlib import Path
from typing import Any

from httpx2 import HTTPError, InvalidURL
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from textregion.errors import InputError, first_line, needs
from textregion.weights import HUB, unreachable

EXTRA = "transformers"  # textregion's extra and the flag of setup_env.sh
FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
CONFIG = "config.json"
REFUSALS = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)


def transformers_class(name: str, what: str) -> Any:
    """A class of transformers by name; InputError that says what to install where the package is missing."""
    with needs(what, layer=EXTRA, extra=EXTRA):
        import transformers
    return getattr(transformers, name)


def load_model(class_name: str, where: str | Path, what: str, root: str | Path | None = None) -> nn.Module:
    """A model of transformers with its weights, float32, strictly; nothing of the folder is run.

    class_name: e.g. Sam2Model. where: a folder with config.json and model.safetensors (or its parts and their index),
    else the hub's "owner/name". what: who needs it. root: a hub cache to look in and to download to.
    Raises InputError in one line: the package or the folder is missing, the weights are of another model, damaged,
    gated, or not to be had without a network.
    """
    model_class = transformers_class(class_name, what)
    folder = Path(where).expanduser()
    if not folder.is_dir():
        folder = _download(str(where), what, root)
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} has no {CONFIG}, expected a repository of the hub's with its {class_name} for {what}"
        )
    options = {"dtype": "float32", "local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    try:
        model, found = model_class.from_pretrained(folder, output_loading_info=True, **options)
    except (*REFUSALS, SafetensorError, StrictDataclassError) as error:
        raise InputError(
            f"{folder} holds no {class_name} for {what} ({first_line(error)}); give its own folder"
        ) from error
    wrong = [
        f"{len(names)} {kind.removesuffix('_keys')}: {min(map(str, names))}" for kind, names in found.items() if names
    ]
    if wrong:
        raise InputError(f"{folder} does not fit {class_name} ({'; '.join(wrong)}); give the folder of such a model")
    return model.eval()


def _download(repository: str, what: str, root: str | Path | None) -> Path:
    """The repository's folder in the hub's cache, fetched where it is not there yet."""
    cache = {"cache_dir": str(Path(root).expanduser())} if root else {}
    why = unreachable()
    try:
        offline = bool(why)
        return Path(
            snapshot_download(repository, allow_patterns=FILES, endpoint=HUB, local_files_only=offline, **cache)
        )
    except HFValidationError as error:
        raise InputError(
            f"no folder {repository}; give a folder in the hub's layout, or owner/name, for {what}"
        ) from error
    except (HfHubHTTPError, HTTPError, InvalidURL, OSError, ValueError) as error:
        reason = why or first_line(error)
        raise InputError(
            f"{what} needs the weights of {repository}, which are not in the hub's cache and not to be had: {reason}; "
            "download that repository elsewhere (a gated one with your token) and give its folder as the checkpoint"
        ) from error
