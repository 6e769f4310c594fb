"""Trains the tiny CLIP: captions against views, and a dense loss that makes value pooling work."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.pos_embed import get_2d_sincos_pos_embed
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from textregion.tiny.captions import bank_phrases, vocabulary
from textregion.tiny.models import build_clip, clip_config, read_clip, save_clip, tokenizer
from utils.tiny.clip_features import embed_image, embed_values, normalise, vision_features
from utils.tiny.clip_losses import (
    SideHeads,
    clear_patches,
    contrastive_loss,
    label_loss,
    pooling_weights,
    region_shares,
    truth_matrix,
)
from utils.tiny.scene_cache import SceneSet
from utils.tiny.views import View, describe, random_view

BATCH = 128
PATCH_SAMPLES = 400  # views whose patches the patch embedding is computed from
POSITION_SCALE = 0.7
FROM_SCRATCH_RATE, CONTINUED_RATE = 1e-3, 5e-4
WEIGHTS = {"contrastive": 0.5, "patches": 0.5, "regions": 0.5, "side": 2.0}
MAX_LOGIT_SCALE = 4.6052  # log 100, as in CLIP


def patch_filters(patches: Tensor, width: int) -> Tensor:
    """Whitening filters from patches (N, K): principal components by variance, (width, K), width <= K."""
    centred = patches - patches.mean(0)
    variance, components = torch.linalg.eigh(centred.T @ centred / len(centred))
    variance, components = variance.flip(0)[:width].clamp(min=0), components.flip(1)[:, :width]
    return (components / (variance.sqrt() + 0.05 * variance[min(10, width - 1)].sqrt())).T


def initialise_vision(visual: VisionTransformer, images: Tensor) -> None:
    """Starts the tower from whitened patches of `images` (N, 3, S, S) and sine-cosine positions."""
    filters = visual.conv1.weight
    patches = F.unfold(images, visual.patch_size, stride=visual.patch_size).transpose(1, 2).flatten(0, 1)
    positions = get_2d_sincos_pos_embed(filters.shape[0], visual.grid_size[0], cls_token=True)
    with torch.no_grad():
        filters.copy_(0.5 * patch_filters(patches, filters.shape[0]).view_as(filters))
        visual.positional_embedding.copy_(POSITION_SCALE * torch.from_numpy(positions))


def _has_decay(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and "embedding" not in name


class ClipTraining:
    """The Training of the tiny CLIP (see training_loop). It works on a compact token table.

    Args:
        scenes: training scenes.
        weights: safetensors to continue from; None starts from scratch.
        batch: views per step.
    """

    warm_up = 100
    clip_norm = 1.0

    def __init__(self, scenes: SceneSet, weights: Path | None = None, batch: int = BATCH) -> None:
        self.scenes, self.batch = scenes, batch
        self.token_ids = vocabulary()
        self.image_size = clip_config()["vision_cfg"]["image_size"]
        self.model = build_clip(len(self.token_ids))
        self.learning_rate = FROM_SCRATCH_RATE if weights is None else CONTINUED_RATE
        if weights is None:
            views = [random_view(scenes, self.image_size, np.random.default_rng([1, n])) for n in range(PATCH_SAMPLES)]
            initialise_vision(self.model.visual, self._pixels(views))
        else:
            self._load(weights)
        visual = self.model.visual
        self.patch = visual.patch_size[0]
        self.heads = SideHeads(visual.class_embedding.shape[0], self.patch)
        self.modules = nn.ModuleDict({"model": self.model, "heads": self.heads})
        self.groups = self._groups()

    def _load(self, path: Path) -> None:
        state, token_ids = read_clip(path)
        if token_ids.tolist() != self.token_ids.tolist():
            raise ValueError(f"got {path} with another vocabulary, expected the one of captions.vocabulary()")
        self.model.load_state_dict(state)

    def _groups(self) -> list[dict]:
        named = list(self.model.named_parameters())
        decayed = [parameter for name, parameter in named if _has_decay(name, parameter)]
        others = [parameter for name, parameter in named if not _has_decay(name, parameter)]
        others += self.heads.parameters()
        return [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]

    def _pixels(self, views: list[View]) -> Tensor:
        return normalise(np.stack([view.image for view in views]), self.image_size)

    def _compact_tokens(self, texts: list[str]) -> Tensor:
        """Token ids of texts as rows of the compact table: (N, 32) int64."""
        return torch.searchsorted(self.token_ids, tokenizer()(texts))

    def _draw_batch(self, rng: np.random.Generator) -> tuple[list[View], list[str], Tensor]:
        """Views, their captions, and which caption is true of which view (B, B) bool."""
        views, captions, mentions = [], [], []
        while len(views) < self.batch:
            view = random_view(self.scenes, self.image_size, rng)
            text, said = describe(view, rng)
            if said:
                views.append(view)
                captions.append(text)
                mentions.append(said)
        return views, captions, truth_matrix(np.stack([view.facts() for view in views]), mentions)

    def _encode_texts(self, captions: list[str], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Unit vectors of the captions (B, D) and of the label bank, in one pass."""
        tokens = self._compact_tokens([*captions, *bank_phrases(rng)])
        texts = F.normalize(self.model.encode_text(tokens), dim=-1).float()
        return texts[: len(captions)], texts[len(captions) :]

    def _dense_losses(
        self, values: Tensor, shares: Tensor, views: list[View], bank: Tensor, scale: Tensor
    ) -> dict[str, Tensor]:
        """Values of single patches and of whole regions against the names of what they show."""
        visual, things = self.model.visual, torch.from_numpy(np.stack([view.things for view in views]))
        visible = torch.from_numpy(np.stack([view.visible for view in views]))
        patches, patch_things = clear_patches(shares, things)
        owner, weights, region_things = pooling_weights(shares, things, visible)
        pooled = torch.einsum("np,npc->nc", weights, values.float()[owner])
        return {
            "patches": label_loss(
                embed_values(visual, values.flatten(0, 1)[patches]).float(), patch_things, bank, scale
            ),
            "regions": label_loss(embed_values(visual, pooled).float(), region_things, bank, scale),
        }

    def loss(self, progress: float, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Contrastive, dense and side losses of one batch."""
        views, captions, true = self._draw_batch(rng)
        region_ids = torch.from_numpy(np.stack([view.region_ids for view in views])).long()
        things = torch.from_numpy(np.stack([view.things for view in views]))
        shares, scale = region_shares(region_ids, self.patch), self.model.logit_scale.exp()
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # fastest on a CPU here
            features = vision_features(self.model.visual, self._pixels(views))
            images = embed_image(self.model.visual, features.last).float()
            texts, bank = self._encode_texts(captions, rng)
            losses = self._dense_losses(features.values, shares, views, bank, scale)
        losses["contrastive"] = contrastive_loss(images, texts, scale, true)
        losses["side"] = self.heads(features.middle, features.last, region_ids, things, shares)
        total = sum(WEIGHTS[name] * value for name, value in losses.items())
        return total, {name: value.item() for name, value in losses.items()}

    def after_step(self) -> None:
        """Keeps the temperature in CLIP's range."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def save(self, path: Path) -> None:
        """Writes the compact CLIP as safetensors."""
        save_clip(self.model.state_dict(), self.token_ids, path)
