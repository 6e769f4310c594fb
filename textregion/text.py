"""From words to unit text embeddings: templates, class files, a cache on disk (method 8.1)."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float32
from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from torch import Tensor

from textregion.errors import InputError
from textregion.storage import load_tensors, read_text, save_tensors

if TYPE_CHECKING:
    from textregion.backbones.base import Backbone

Template = Callable[[str], str]
TEMPLATES: tuple[Template, ...] = tuple(OPENAI_IMAGENET_TEMPLATES)
TEMPLATE_SETS: dict[int, tuple[Template, ...]] = {  # by their number, as the option `templates` names them
    80: TEMPLATES,
    7: tuple(SIMPLE_IMAGENET_TEMPLATES),
    1: ("a photo of a {}.".format,),
}
CACHE_KIND = "TextEmbedding"
CACHE_FORMAT = 1
logger = logging.getLogger(__name__)


def fills_context(
    label: str, tokenizer: Callable[[list[str]], Tensor], templates: Sequence[Template] = TEMPLATES
) -> bool:
    """Whether the label's longest prompt reaches the end of the model's context, so that words may be cut off."""
    longest = max((template(label) for template in templates), key=len)
    plain, longer = tokenizer([longest, f"{longest} more"])
    return bool((plain == longer).all())


def read_class_file(path: str | Path) -> list[str]:
    """One label per line, synonyms separated by "; ", UTF-8; blank lines are left out. InputError if unreadable."""
    lines = read_text(path, "a text file with one label per line").splitlines()
    return [line.strip() for line in lines if line.strip()]


# ---------------------------------------------------------------------- the cache on disk


class TextCache:
    """Unit embeddings of labels, by the content of the model that made them.

    folder: where the files are kept; made when needed. backbone: the model; its text tower's weights are hashed once,
    at the first use (about a second per GB), so other weights never find these files; later changes are not noticed.
    templates: those that a label is put into; other ones have files of their own.
    """

    def __init__(self, folder: str | Path, backbone: "Backbone", templates: Sequence[Template] = TEMPLATES) -> None:
        if not isinstance(folder, (str, Path)):
            raise InputError(f"got the text cache {folder!r}, expected the path of a folder")
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"got the text cache {folder}, which is a file; expected a folder")
        self.backbone, self.templates = backbone, templates

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that an embedding depends on besides the label."""
        return model_fingerprint(self.backbone, self.templates)

    def path(self, label: str) -> Path:
        """The file of a label."""
        name = hashlib.sha256(label.encode()).hexdigest()[:32]
        return self.folder / self.fingerprint[:32] / f"{name}.safetensors"

    def load(self, labels: Sequence[str]) -> dict[str, Float32[Tensor, " D"]]:
        """Those of the labels that are there, on the model's device; a damaged file counts as not there."""
        found = {label: self._read(label) for label in labels if self.path(label).is_file()}
        return {label: value.to(self.backbone.device) for label, value in found.items() if value is not None}

    def save(self, labels: Sequence[str], embeddings: Float32[Tensor, "L D"]) -> None:
        """Write one file per label, each in one step. InputError when the folder cannot be written."""
        for label, embedding in zip(labels, embeddings, strict=True):
            meta = {"kind": CACHE_KIND, "fingerprint": self.fingerprint, "label": label}
            try:
                save_tensors(self.path(label), {"embedding": embedding}, meta)
            except OSError as error:
                why = f"cannot write the text cache {self.folder} ({error})"
                raise InputError(f"{why}; free space or leave it out") from error

    def _read(self, label: str) -> Float32[Tensor, " D"] | None:
        path = self.path(label)
        try:
            tensors, meta = load_tensors(path, CACHE_KIND)
        except InputError as error:
            logger.warning("text cache: %s; made again", error)
            return None
        embedding = tensors.get("embedding")
        expected = {"fingerprint": self.fingerprint, "label": label}
        if meta != expected or embedding is None or embedding.shape != (self.backbone.width,):
            logger.warning("text cache: %s was made for something else; made again", path)
            return None
        return embedding


def model_fingerprint(backbone: "Backbone", templates: Sequence[Template] = TEMPLATES) -> str:
    """Hash of the text tower's weights, its arithmetic, the templates and what the tokenizer makes of them."""
    prompts = [template("the Grey-haired dog's 2 sofas, große Straße") for template in templates]
    described = [CACHE_FORMAT, str(backbone.dtype), backbone.device.type, prompts]
    digest = hashlib.sha256(json.dumps(described).encode())
    digest.update(_bytes(backbone.tokenizer(prompts)))
    for name, tensor in sorted(backbone.model.state_dict().items()):
        if not name.startswith("visual."):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The stored bytes of a tensor of any dtype (numpy knows no bfloat16)."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
