"""Class names as RegionSpot's head knows them: other templates and another mean than TextRegion's labels have."""

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from textregion.backbones import Backbone
from textregion.labels import as_labels
from textregion.text import TEMPLATES as IMAGENET_TEMPLATES
from textregion.text import prompt_vectors

TEMPLATES = (*IMAGENET_TEMPLATES, "{}.".format)
NAMES_AT_ONCE = 50
LEFT_OUT = re.compile(r"-(other|merged|stuff)\b|\([^()]*\)")
SPACES = re.compile(r"[\s_]+")


@torch.inference_mode()
def encode_names(backbone: Backbone, names: Sequence[str], clean: bool = False) -> Float32[Tensor, "K E"]:
    """Unit text embeddings of class names: plain mean over 81 templates of the vectors as they are, then length 1.

    RegionSpot 1.11: the 80 ImageNet templates and the bare "{}."; unlike `encode_text`, the vectors are not
    normalised before the mean. clean: `clean_name` first; published heads were trained and scored on raw names
    ("bat_(animal)"). InputError for no names or a blank one.
    """
    names = [clean_name(name) if clean else name for name in as_labels(names)]
    starts, parts = range(0, len(names), NAMES_AT_ONCE), []
    for start in tqdm(starts, "names", disable=len(starts) < 4):
        chunk = names[start : start + NAMES_AT_ONCE]
        prompts = backbone.tokenizer([template(name) for name in chunk for template in TEMPLATES])
        vectors = prompt_vectors(backbone.model, prompts.to(backbone.device)).unflatten(0, (len(chunk), -1))
        parts.append(F.normalize(vectors.mean(1), dim=-1))
    return torch.cat(parts)


def clean_name(name: str) -> str:
    """A data set's name as a person would write it: "bat_(animal)" is "bat", "wall-other" is "wall".

    Underscores become spaces, "(…)" and the endings -other, -merged, -stuff go; a name with nothing left stays.
    """
    return SPACES.sub(" ", LEFT_OUT.sub(" ", name)).strip() or name
