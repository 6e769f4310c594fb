"""What every image-text model must offer to the method, and the registry of known families and variants."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import open_clip
import torch
from jaxtyping import Float, Float32, Int
from open_clip.pretrained import get_pretrained_cfg
from open_clip.utils import to_2tuple
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.devices import constants
from textregion.errors import InputError
from textregion.pooling import PoolingRecipe
from textregion.text import TEMPLATES, Template
from textregion.text_tower import (
    Prefixes,
    Progress,
    embed_prompts,
    encode_prefixes,
    prompt_vectors,
    shares_prefixes,
)

Crops = Float[Tensor, "T 3 S S"]
Patches = Float32[Tensor, "P C"]
Weights = Float32[Tensor, "R P"]
Tokenizer = Callable[[list[str]], Int[Tensor, "N context"]]
OPEN_CLIP_PREFIX = "open_clip:"
PROBES = ("dog", "7")  # two labels that begin with different tokens, for what the prompts of a template share
SMALL_TEXT = {"width": 32, "heads": 2, "layers": 1, "vocab_size": 503}


@dataclass(frozen=True)
class CropFeatures:
    """What the encoder says about T crops.

    pooled: (T, C, g, g) features that regions pool. dense: (T, D, g, g) unit vectors of every patch, or None.
    spatial: (T, C, g, g) like pooled, of the middle blocks; classes: (T, R, C) every region's class token in every
    crop, after the final norm; patches: (T, R) how many patches it saw there. None where the recipe has no such term
    (method 7.7).
    """

    pooled: Float[Tensor, "T C g g"]
    dense: Float[Tensor, "T D g g"] | None = None
    spatial: Float[Tensor, "T C g g"] | None = None
    classes: Float[Tensor, "T R C"] | None = None
    patches: Int[Tensor, "T R"] | None = None

    def __repr__(self) -> str:
        crops, width, rows, columns = self.pooled.shape
        return f"CropFeatures({crops} crops, {rows} x {columns} patches of {width}, dense: {self.dense is not None})"


@dataclass(frozen=True)
class BackboneSpec:
    """One registry row: a variant and the published settings that belong to it.

    open_clip: (model name, pretrained tag); the tag's entry in open_clip says where the weights are.
    crop_size: side in pixels of the crops the method uses. width: D of the joint embedding.
    megabytes: download size of the weights, 0 if unknown. original: the file's name where the authors first
    published it, if that differs. mean, std, interpolation: only where a row differs from its family. repository: of a
    model that open_clip does not have: the hub's, in transformers' layout; its family then has `build`.
    """

    name: str
    family: str
    open_clip: tuple[str, str]
    crop_size: int
    width: int
    megabytes: int = 0
    original: str = ""
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str | None = None
    repository: str = ""


class Backbone(ABC):
    """A frozen open_clip model seen as: crops in, patch features out; pool; encode text.

    Class attributes of a family: family, its name; kind, what users call such a model ("a CLIP"); its published
    settings: mean, std, interpolation of the crops, global_weight, the weight of the upsampled global map when crops
    are fused (method 4); usual_crop_size, the side of crops for open_clip's models of smaller input, 0 for their own.
    logit_scale, logit_bias: from cosine to region logit (method 8.2). has_dense_fallback: whether
    `encode_crops(dense=True)` gives dense features (method 8.4a). patch_size: side of a patch in pixels.
    width: D, width of the joint image-text embedding.
    """

    family: str
    kind: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    global_weight: float = 1.0
    usual_crop_size: int = 0
    logit_scale: float = 1.0
    logit_bias: float = 0.0
    has_dense_fallback: bool = False
    patch_size: int
    width: int

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, name: str, crop_size: int | None) -> None:
        self.check(model)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.crop_size = crop_size or to_2tuple(model.visual.image_size)[0]
        self._prefixes: dict[tuple[Template, ...], Prefixes | None] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, D = {self.width}, crops of {self.crop_size} pixels)"

    @classmethod
    def from_model(
        cls, model: nn.Module, tokenizer: Tokenizer, name: str = "custom", crop_size: int | None = None
    ) -> "Backbone":
        """Wrap an open_clip model that already exists.

        tokenizer: list of N strings -> (N, context) int64. crop_size: side of a crop in pixels, default the
        model's own input size. Raises InputError in one line when the model has not the form the method needs.
        """
        return cls(model, tokenizer, name, crop_size)

    @classmethod
    def detect(cls, model_name: str, config: dict[str, Any]) -> bool:
        """Whether an open_clip model is of this family, by its name and open_clip's configuration of it."""
        return False

    @classmethod
    def owns(cls, state: dict[str, Tensor]) -> bool:
        """Whether the names of a weight file's tensors are those of this family, in any published layout."""
        return False

    @classmethod
    def to_open_clip(cls, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """A state dict in another published layout as open_clip's own for `model`; InputError if it cannot."""
        return state

    @classmethod
    def build(cls, spec: BackboneSpec) -> nn.Module:
        """The architecture of a row with a repository of its own, random float32 weights."""
        raise NotImplementedError(f"{cls.__name__} has no build, which rows outside open_clip need")

    @classmethod
    def stand_in(cls, spec: BackboneSpec) -> nn.Module:
        """A model of the row's input size, patches and D, with few narrow layers of random weights, for tests."""
        raise NotImplementedError(f"{cls.__name__} has no stand_in, which the contract test needs")

    @staticmethod
    @abstractmethod
    def check(model: nn.Module) -> None:
        """Raise InputError saying why this model cannot be used by the family."""

    @abstractmethod
    def encode_crops(self, crops: Crops, pool_feature: str = "value", dense: bool = False) -> CropFeatures:
        """Patch features of normalised crops (method 3)."""

    @abstractmethod
    def pool(
        self, features: Patches, weights: Weights, recipe: PoolingRecipe, unit_values: bool, pool_feature: str = "value"
    ) -> Float32[Tensor, "R D"]:
        """One unit vector per region (method 7). unit_values: pool features / ||features|| (families that do)."""

    def check_terms(self, recipe: PoolingRecipe) -> None:
        """InputError when the tower cannot give a recipe's further terms (method 7.7)."""
        if recipe.further_terms:
            raise InputError(f"the {self.family} family has no recipe {recipe.name}, which is CLIP's; take another")

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the encoder; pooling is always float32."""
        return next(self.model.parameters()).dtype

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "Backbone":
        """Move the model; returns self."""
        self.model.to(device=device, dtype=dtype)
        self._mean_and_std()  # uploaded with the model, not with the first image
        self._prefixes.clear()
        return self

    def _mean_and_std(self) -> Float32[Tensor, "2 3 1 1"]:
        return constants(self.device, tuple(self.mean), tuple(self.std))[..., None, None]

    def normalise(self, crops: Crops) -> Crops:
        """RGB in [0, 1] to the model's input range."""
        mean, std = self._mean_and_std()
        return ((crops - mean) / std).to(self.dtype)

    def check_crop_size(self, crop_size: int) -> None:
        """InputError when crops of that side cannot be encoded."""
        if crop_size < self.patch_size or crop_size % self.patch_size:
            raise InputError(f"got crop_size {crop_size}, expected a multiple of the patch size {self.patch_size}")

    @torch.inference_mode()
    def encode_labels(
        self, labels: Sequence[str], templates: Sequence[Template] = TEMPLATES, progress: Progress | None = None
    ) -> Float32[Tensor, "L D"]:
        """Mean of the unit embeddings of every label in every template, unit length again (method 8.1).

        What a causal tower makes of the templates' beginnings is kept with the model, from the first call on (20 to
        100 MB). progress: told of prompts that are done.
        """
        prompts = [template(label) for label in labels for template in templates]
        tokens, which = self.tokenizer(prompts), torch.arange(len(templates)).repeat(len(labels))
        prefixes = self.prefixes_of(tuple(templates))
        vectors = prompt_vectors(self.model, tokens, prefixes=prefixes, which=which, progress=progress)
        unit = F.normalize(vectors, dim=-1).unflatten(0, (len(labels), len(templates)))
        return F.normalize(unit.mean(1), dim=-1)

    def prefixes_of(self, templates: tuple[Template, ...]) -> Prefixes | None:
        """What the prompts of each template begin with, encoded once; None for towers that cannot start from it."""
        if templates not in self._prefixes:
            probes = ([template(probe) for template in templates] for probe in PROBES)
            some, others = (self.tokenizer(prompts) for prompts in probes)
            known = shares_prefixes(self.model)
            self._prefixes[templates] = encode_prefixes(self.model, some, others) if known else None
        return self._prefixes[templates]

    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[str]) -> Float32[Tensor, "N D"]:
        """Unit text embeddings of ready-made prompts, in large batches without needless padding."""
        return embed_prompts(self.model, self.tokenizer(list(prompts)))


Family = TypeVar("Family", bound=type[Backbone])
FAMILIES: dict[str, type[Backbone]] = {}
SPECS: dict[str, BackboneSpec] = {}


def register_backbone(*rows: BackboneSpec) -> Callable[[Family], Family]:
    """Class decorator: make a family and its variants known by name."""

    def add(family: Family) -> Family:
        FAMILIES[family.family] = family
        SPECS.update({row.name: row for row in rows})
        return family

    return add


def find_spec(name: str) -> BackboneSpec:
    """The row of a variant, or of "open_clip:MODEL/TAG", any model and tag of open_clip; else InputError listing them.

    The second form's crop size is the family's published one where the patches allow it, else the model's own input
    size; whether its image tower has the form the method needs is checked when the model is built.
    """
    if name in SPECS:
        return SPECS[name]
    if not name.startswith(OPEN_CLIP_PREFIX):
        valid = ", ".join(sorted(SPECS))
        raise InputError(f"unknown backbone {name!r}; expected one of {valid}, or {OPEN_CLIP_PREFIX}MODEL/TAG")
    model, _, tag = name.removeprefix(OPEN_CLIP_PREFIX).partition("/")
    config, tags = open_clip.get_model_config(model), open_clip.list_pretrained_tags_by_model(model)
    if config is None:
        raise InputError(f"open_clip has no model {model!r}; its names are those of open_clip.list_models()")
    if tag not in tags:
        raise InputError(f"open_clip has no weights {tag!r} for {model}; expected one of {', '.join(tags) or 'none'}")
    family = find_family(model, config)
    entry, vision = get_pretrained_cfg(model, tag), config["vision_cfg"]
    if entry.get("quick_gelu", False) and not config.get("quick_gelu", False):
        model = f"{model}-quickgelu"  # these weights were trained so; open_clip only warns
    own = to_2tuple(vision.get("image_size", 224))[0]
    usual, patch = family.usual_crop_size, vision.get("patch_size") or own
    crop_size = usual if own < usual and usual % patch == 0 else own
    preprocessing = {key: entry[key] for key in ("mean", "std", "interpolation") if entry.get(key)}
    return BackboneSpec(name, family.family, (model, tag), crop_size, config["embed_dim"], **preprocessing)


def find_family(model_name: str, config: dict[str, Any]) -> type[Backbone]:
    """The family that takes an open_clip model as its own; InputError naming the families when none does."""
    for family in FAMILIES.values():
        if family.detect(model_name, config):
            return family
    tower = config["vision_cfg"].get("timm_model_name", "unknown")
    raise InputError(
        f"the image tower is {tower}, expected open_clip's VisionTransformer or a timm tower of a known family: "
        f"{model_name} is of none of {', '.join(FAMILIES)}"
    )


def model_config(spec: BackboneSpec) -> dict[str, Any]:
    """open_clip's configuration of a row's model, a copy; InputError when this open_clip does not know it."""
    config = open_clip.get_model_config(spec.open_clip[0])
    if config is None:
        raise InputError(f"this open_clip has no model {spec.open_clip[0]!r}, which {spec.name} needs; update it")
    return config


def small_text(config: dict[str, Any]) -> dict[str, Any]:
    """The text tower of an open_clip configuration for a stand-in: one layer, narrow where its width is free."""
    fixed = config["text_cfg"].get("proj_type") == "none"  # its width is the embedding's
    small = {key: value for key, value in SMALL_TEXT.items() if not fixed or key in ("layers", "vocab_size")}
    return config["text_cfg"] | small
