"""Trains the tiny CLIP: captions against crops, and a dense loss that makes value pooling work.

A step sees random crops, and whole scenes as the segmenter of preset `tiny` sees them: the picture and its tiles, their
values fused and summed over the regions. Region shares of patches, (B, 9, P): how much of each patch belongs to each
region of the crop.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import CLIP, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.pos_embed import get_2d_sincos_pos_embed
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.transforms.functional import normalize

from textregion.crops import CropGrid, cut_crops, fuse_crops
from textregion.tiny.models import TOKEN_IDS, build_clip, clip_config, read_clip, save_weights, tokenizer
from textregion.tiny.painting import COLOURS, SHAPES
from utils.tiny import data
from utils.tiny.data import (
    COLOUR_OF,
    IS_OBJECT,
    LABEL_SETS,
    NAME_ROWS,
    SHAPE_OF,
    Mention,
    SceneCrop,
    SceneSet,
    random_crop,
    region_shares,
)

BATCH = 128  # crops
SCENE_EVERY = 8  # crops of a step for each whole scene in it, which takes five
PATCH_SAMPLES = 400  # crops whose patches the patch embedding is computed from
MUON_RATE, OTHERS_RATE = 1e-2, 1e-3  # from scratch: of the blocks' matrices, of all else
CONTINUED = 0.5  # of these rates when weights are given
WEIGHTS = {"contrastive": 0.5, "patches": 0.5, "regions": 0.5, "scenes": 1.0, "side": 2.0}
MAX_LOGIT_SCALE = 4.6052  # log 100, as in CLIP
MIDDLE_BLOCK = 1  # the block whose output the objectness side loss reads
CLEAR_PATCH = 0.6  # a patch is labelled when one region covers at least this share of it
MIN_PATCHES = 0.8  # a region is pooled when it covers at least this many patches
SHAPE_SHARE = 0.2  # of the patches' shape among the side losses
OFFSET_UNIT, EXTENT_UNIT = 24.0, 32.0  # pixels; they bring the side targets to about one


class VisionFeatures(NamedTuple):
    """Middle and last: (B, 1+P, C) tokens after MIDDLE_BLOCK and before the last block. Values: (B, P, C)."""

    middle: Tensor
    last: Tensor
    values: Tensor


def vision_features(visual: VisionTransformer, images: Tensor) -> VisionFeatures:
    """Runs all blocks but the last; the last gives only its attention's value vectors of the patches."""
    *blocks, final = visual.transformer.resblocks
    outputs = [visual._embeds(images)]
    for block in blocks:
        outputs.append(block(outputs[-1]))
    tokens, width, attention = outputs[-1], outputs[-1].shape[-1], final.attn
    patches = final.ln_1(tokens)[:, 1:]
    values = F.linear(patches, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    return VisionFeatures(outputs[MIDDLE_BLOCK + 1], tokens, values)


def embed_values(visual: VisionTransformer, values: Tensor) -> Tensor:
    """Value vectors, pooled or not, (..., C) to unit vectors (..., D) comparable with text."""
    attended = visual.transformer.resblocks[-1].attn.out_proj(values)
    return F.normalize(visual.ln_post(attended) @ visual.proj, dim=-1).float()


def caption_matches(facts: np.ndarray, mentions: Sequence[list[Mention]]) -> Tensor:
    """Whether caption j is true of crop i: facts (B, things) bool, mentions per caption -> (B, B) bool."""
    columns = [np.all([facts[:, mention.matches].any(1) for mention in said], axis=0) for said in mentions]
    return torch.from_numpy(np.stack(columns, axis=1))


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, matches: Tensor) -> Tensor:
    """Symmetric cross-entropy of (B, D) against (B, D); other pairs that match as well do not count."""
    own = torch.eye(len(images), dtype=torch.bool)
    logits = (scale * images @ texts.T).masked_fill(matches & ~own, -1e4)
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def encode_texts(model: CLIP, tokens: Tensor) -> Tensor:
    """Unit vectors (N, D) of token ids (N, L), without the padding that all of them have; ends are the largest ids."""
    length = int(tokens.argmax(1).max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(x)), tokens.argmax(1)] @ model.text_projection, dim=-1).float()


def same_colour_logits(features: Tensor, things: Tensor, bank: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Of the objects among unit vectors (N, D): logits (n, 10) of the names of their own colour, shapes (n,).

    These names differ in the shape's word alone.
    """
    colours, shapes = (torch.from_numpy(values)[things] for values in (COLOUR_OF, SHAPE_OF))
    chosen = colours >= 0
    names = bank[torch.from_numpy(NAME_ROWS)].unflatten(0, (len(COLOURS), len(SHAPES)))
    return scale * torch.einsum("nd,nsd->ns", features[chosen], names[colours[chosen]]), shapes[chosen]


def label_loss(features: Tensor, things: Tensor, bank: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of unit vectors (N, D) whose things (N,) are known, summed over all questions (`LABEL_SETS`, and
    the shape where the colour is told).
    """
    logits, shapes = same_colour_logits(features, things, bank, scale)
    loss = F.cross_entropy(logits, shapes, reduction="sum") / max(1, len(shapes))
    for labels in LABEL_SETS:
        target = torch.from_numpy(labels.of_thing)[things]
        chosen = target >= 0
        logits = scale * features[chosen] @ bank[torch.from_numpy(labels.rows)].T
        loss = loss + F.cross_entropy(logits, target[chosen], reduction="sum") / chosen.sum().clamp(min=1)
    return loss


def clear_patches(shares: Tensor, things: Tensor) -> tuple[Tensor, Tensor]:
    """Patches that show one thing: indices (N,) into the flattened (B * P) patches, their things (N,)."""
    share, region = shares.max(1)
    thing = torch.gather(things, 1, region).flatten()
    chosen = torch.nonzero((share.flatten() >= CLEAR_PATCH) & (thing >= 0))[:, 0]
    return chosen, thing[chosen]


def pooling_weights(shares: Tensor, things: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Regions worth pooling: crop index (N,), weights (N, P), which are summed with (method 7.1), things (N,)."""
    is_object = torch.from_numpy(IS_OBJECT)[things]
    chosen = (shares.sum(2) >= MIN_PATCHES) & (things >= 0) & (~is_object | (visible > 0.2))
    crop, region = torch.nonzero(chosen, as_tuple=True)
    return crop, shares[crop, region], things[crop, region]


def geometry_targets(shares: Tensor, things: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """For patches on objects: the way to the object's centre and its size, in units of about one.

    Returns (B, P, 3): offset y, offset x, log of the size; and (B, P) bool: patches on an object for the larger part.
    """
    axis = (torch.arange(round(shares.shape[2] ** 0.5)) + 0.5) * patch
    centres, total = torch.cartesian_prod(axis, axis), shares.sum(2, keepdim=True).clamp(min=1e-6)
    object_centre = shares @ centres / total  # (B, 9, 2)
    share, region = shares.max(1)
    index = region[..., None]
    offset = torch.gather(object_centre, 1, index.expand(-1, -1, 2)) - centres
    extent = torch.gather(total, 1, index).sqrt() * patch
    targets = torch.cat([offset / OFFSET_UNIT, torch.log(extent / EXTENT_UNIT)], dim=2)
    return targets, (share > 0.5) & torch.from_numpy(IS_OBJECT)[torch.gather(things, 1, region)]


class SideHeads(nn.Module):
    """Training-only heads that make the patches know objects: per-pixel objectness, centre, size and shape."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.objectness = nn.Linear(width, patch * patch)
        self.geometry = nn.Linear(width, 3)
        self.shape = nn.Linear(width, len(SHAPES))

    def forward(self, features: VisionFeatures, region_ids: Tensor, things: Tensor, shares: Tensor) -> Tensor:
        """Sum of the side losses; region ids (B, S, S), things (B, 9)."""
        is_object = torch.from_numpy(IS_OBJECT)[torch.gather(things, 1, region_ids.flatten(1))]
        pixels = is_object.view(region_ids.shape)[:, None].float()
        pixels = F.unfold(pixels, self.patch, stride=self.patch).transpose(1, 2)  # (B, P, patch * patch)
        logits = self.objectness(features.middle[:, 1:].float())
        targets, chosen = geometry_targets(shares, things, self.patch)
        error = F.smooth_l1_loss(self.geometry(features.last[:, 1:].float()), targets, reduction="none").mean(-1)
        geometry = (error * chosen).sum() / chosen.sum().clamp(min=1)
        share, region = shares.max(1)
        shape = torch.from_numpy(SHAPE_OF)[torch.gather(things, 1, region)]
        clear = (share >= CLEAR_PATCH) & (shape >= 0)
        named = F.cross_entropy(self.shape(features.last[:, 1:][clear].float()), shape[clear], reduction="sum")
        objectness = F.binary_cross_entropy_with_logits(logits, pixels)
        return objectness + geometry + SHAPE_SHARE * named / clear.sum().clamp(min=1)


def patch_filters(patches: Tensor, width: int) -> Tensor:
    """Whitening filters from patches (N, K): principal components by variance, (width, K), width <= K."""
    centred = patches - patches.mean(0)
    variance, components = torch.linalg.eigh(centred.T @ centred / len(centred))
    variance, components = variance.flip(0)[:width].clamp(min=0), components.flip(1)[:, :width]
    return (components / (variance.sqrt() + 0.05 * variance[min(10, width - 1)].sqrt())).T


@torch.no_grad()
def initialise_vision(visual: VisionTransformer, images: Tensor) -> None:
    """Starts the tower from whitened patches of `images` (N, 3, S, S) and sine-cosine positions."""
    filters = visual.conv1.weight
    patches = F.unfold(images, visual.patch_size, stride=visual.patch_size).transpose(1, 2).flatten(0, 1)
    positions = get_2d_sincos_pos_embed(filters.shape[0], visual.grid_size[0], cls_token=True)
    filters.copy_(0.5 * patch_filters(patches, filters.shape[0]).view_as(filters))
    visual.positional_embedding.copy_(0.7 * torch.from_numpy(positions))


def _pixels(crops: Sequence[SceneCrop]) -> Tensor:
    """The crops' images as CLIP takes them: (B, 3, S, S) float32."""
    images = torch.from_numpy(np.stack([crop.image for crop in crops])).permute(0, 3, 1, 2)
    return normalize(images.float() / 255, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


class WholeScenes(NamedTuple):
    """N scenes as the segmenter sees them: crops (N * T, 3, s, s), T of each; shares (N, 9, P) of the fused patches,
    things (N, 9), and how the crops lie.
    """

    crops: Tensor
    shares: Tensor
    things: Tensor
    grid: CropGrid

    def fuse(self, values: Tensor) -> Tensor:
        """Values (N * T, p, C) of the crops' patches, summed over regions: (N, 9, C) (methods 4 and 7.1)."""
        side = round(values.shape[1] ** 0.5)
        maps = values.float().transpose(1, 2).unflatten(2, (side, side)).unflatten(0, (len(self.things), -1))
        fused = torch.stack([fuse_crops(own, self.grid) for own in maps])
        return torch.einsum("nrp,ncp->nrc", self.shares, fused.flatten(2))


def whole_scenes(scenes: SceneSet, count: int, size: int, patch: int, rng: np.random.Generator) -> WholeScenes:
    """Random scenes, mirrored half the time. size: of a crop. patch: side of its patches, in pixels."""
    chosen, steps = rng.integers(len(scenes), size=count), rng.choice((-1, 1), size=count)
    images = [scenes.images[index][:, ::step] for index, step in zip(chosen, steps, strict=True)]
    ids = np.stack([scenes.region_ids[index][:, ::step] for index, step in zip(chosen, steps, strict=True)])
    grid = CropGrid(*ids.shape[1:], size)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    crops = torch.cat([cut_crops(image, grid.crops, size) for image in pixels])
    cell = ids.shape[1] // grid.patch_shape(size // patch)[0]
    shares = region_shares(torch.from_numpy(ids[:, ::2, ::2].astype(np.int64)), cell // 2)  # every fourth pixel will do
    things = torch.from_numpy(scenes.things[chosen].astype(np.int64))
    return WholeScenes(normalize(crops, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD), shares, things, grid)


class ClipTraining:
    """The Training of the tiny CLIP (see train.py). It works on a compact token table.

    scenes: training scenes. weights: safetensors to continue from; None starts from scratch. batch: crops per step.
    ValueError for weights of another vocabulary.
    """

    warm_up = 100
    clip_norm = 1.0

    def __init__(self, scenes: SceneSet, weights: Path | None = None, batch: int = BATCH) -> None:
        self.scenes, self.batch = scenes, batch
        self.token_ids = data.vocabulary()
        self.image_size = clip_config()["vision_cfg"]["image_size"]
        self.model = build_clip(len(self.token_ids))
        if weights is None:
            crops = [random_crop(scenes, self.image_size, np.random.default_rng([1, n])) for n in range(PATCH_SAMPLES)]
            initialise_vision(self.model.visual, _pixels(crops))
        else:
            state, token_ids = read_clip(weights)
            if token_ids.tolist() != self.token_ids.tolist():
                raise ValueError(f"got {weights} with another vocabulary, expected the one of data.vocabulary()")
            self.model.load_state_dict(state)
        self.patch = self.model.visual.patch_size[0]
        self.heads = SideHeads(self.model.visual.class_embedding.shape[0], self.patch)
        self.modules = nn.ModuleDict({"model": self.model, "heads": self.heads})
        groups: dict[str, list[nn.Parameter]] = {"muon": [], "decayed": [], "free": [*self.heads.parameters()]}
        for name, parameter in self.model.named_parameters():
            matrix = parameter.ndim >= 2 and "embedding" not in name
            kind = "muon" if matrix and "resblocks" in name else "decayed" if matrix else "free"
            groups[kind].append(parameter)
        share = 1.0 if weights is None else CONTINUED
        self.groups = [
            {"params": groups["muon"], "lr": share * MUON_RATE, "weight_decay": 0.1, "muon": True},
            {"params": groups["decayed"], "lr": share * OTHERS_RATE, "weight_decay": 0.1},
            {"params": groups["free"], "lr": share * OTHERS_RATE, "weight_decay": 0.0},
        ]

    def loss(self, progress: float, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Contrastive, dense and side losses of one batch; also shown: shapes told among names of one colour."""
        scenes = self.batch // SCENE_EVERY
        whole = whole_scenes(self.scenes, scenes, self.image_size, self.patch, rng)
        batch: list[tuple[SceneCrop, str, list[Mention]]] = []
        while len(batch) < self.batch - len(whole.crops):
            crop = random_crop(self.scenes, self.image_size, rng)
            text, said = data.describe(crop, rng)
            if said:
                batch.append((crop, text, said))
        crops, captions, mentions = zip(*batch, strict=True)
        matches = caption_matches(np.stack([crop.facts() for crop in crops]), mentions)
        stacks = (np.stack([getattr(crop, name) for crop in crops]) for name in ("region_ids", "things", "visible"))
        region_ids, things, visible = map(torch.from_numpy, stacks)
        region_ids = region_ids.long()
        visual, scale = self.model.visual, self.model.logit_scale.exp()
        shares = region_shares(region_ids, self.patch)
        patches, patch_things = clear_patches(shares, things)
        owner, weights, region_things = pooling_weights(shares, things, visible)
        seen = (whole.shares.sum(2) >= MIN_PATCHES) & (whole.things >= 0)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # fastest on a CPU here
            found = vision_features(visual, torch.cat([_pixels(crops), whole.crops]))
            features = VisionFeatures(*(part[: len(crops)] for part in found))
            class_token = visual.ln_post(visual.transformer.resblocks[-1](features.last))[:, 0]
            images = F.normalize(class_token @ visual.proj, dim=-1).float()
            tokens = torch.searchsorted(self.token_ids, tokenizer()([*captions, *data.bank_phrases(rng)]))
            texts, bank = encode_texts(self.model, tokens).tensor_split([len(captions)])
            single = embed_values(visual, features.values.flatten(0, 1)[patches])
            pooled = embed_values(visual, torch.einsum("np,npc->nc", weights, features.values.float()[owner]))
            fused = embed_values(visual, whole.fuse(found.values[len(crops) :])[seen])
        losses = {
            "patches": label_loss(single, patch_things, bank, scale),
            "regions": label_loss(pooled, region_things, bank, scale),
            "scenes": label_loss(fused, whole.things[seen], bank, scale),
            "contrastive": contrastive_loss(images, texts, scale, matches),
            "side": self.heads(features, region_ids, things, shares),
        }
        total = sum(WEIGHTS[name] * value for name, value in losses.items())
        logits, shapes = same_colour_logits(fused, whole.things[seen], bank, scale)
        right = (logits.argmax(1) == shapes).sum() / max(1, len(shapes))
        return total, {**{name: value.item() for name, value in losses.items()}, "shapes told": right.item()}

    def after_step(self) -> None:
        """Keeps the temperature in CLIP's range."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def save(self, path: Path) -> None:
        """Writes the compact CLIP as safetensors."""
        save_weights({**self.model.state_dict(), TOKEN_IDS: self.token_ids.int()}, path)
