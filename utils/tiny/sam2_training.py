"""Trains the tiny SAM 2 on clicks, boxes, and clicks that correct what an earlier click gave.

From scratch it goes through three phases of the run (see Phase): first the features alone learn which pixels
belong together, then all masks of a prompt learn the same region, then the best of three is trained.
Continued training starts in the last phase.

A step draws P picks on each of B images, a pixel and the region it belongs to. CLICKS of them are asked for by that
pixel alone; CORRECTED of these once more, with further clicks and half the time with the mask of the first answer, as
SAM was trained; the others by the box around their region.
"""

from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from scipy import ndimage
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from textregion.masks.clicks import LOGIT_LIMIT, MEAN, STD
from textregion.tiny.models import build_sam2, load_sam2, save_weights
from utils.tiny.data import IS_OBJECT, SceneSet, region_shares

BATCH = 8  # images
ANYWHERE = 0.2  # share of points drawn from all pixels; the others pick a region first
ON_OBJECT = 0.7  # share of the region picks that ask for an object
CLICKS, CORRECTED, BOXES = 5, 3, 4  # prompts on every image in a step
MORE_CLICKS = (1, 3)  # fewest and most clicks that a correction adds, alike in a step
WITH_MASK = 0.5  # share of the corrections that are told the first answer as well
BOX_SLACK = 0.04  # deviation of a drawn box's sides, of the box's own
AFFINITY_PHASE, MEAN_PHASE = 0.1, 0.25  # ends of the first two phases, as progress
EDGE_WEIGHT = 4.0  # a cell at an outline counts as much more than others
ENERGY_LIMIT = 0.5  # mean square of the coarse features above which they are held back
FROM_SCRATCH_RATE, CONTINUED_RATE = 6e-4, 4e-4
COARSE_STD = 0.5  # of the coarse image features at the start, beside position encodings of about one


class Pyramid(NamedTuple):
    """Feature maps (B, 12, S/4, S/4), (B, 24, S/8, S/8) and (B, 96, S/16, S/16)."""

    fine: Tensor
    middle: Tensor
    coarse: Tensor


def encode(model: SAM2Base, images: Tensor) -> Pyramid:
    """Image features (B, 3, S, S) as the mask decoder takes them."""
    fine, middle, coarse = model.forward_image(images)["backbone_fpn"]
    return Pyramid(fine, middle, coarse + model.no_mem_embed.view(1, -1, 1, 1))


def pixel_features(model: SAM2Base, pyramid: Pyramid) -> Tensor:
    """Features upscaled by the decoder's own layers, without any prompt: (B, K, S/4, S/4)."""
    channels = pyramid.coarse.permute(0, 2, 3, 1)
    source = F.layer_norm(channels, channels.shape[-1:]).permute(0, 3, 1, 2)
    first, norm, activation, second, final = model.sam_mask_decoder.output_upscaling
    return final(second(activation(norm(first(source) + pyramid.middle))) + pyramid.fine)


class Prompts(NamedTuple):
    """N prompts of K points each: (N, K, 2) as (x, y) in pixels and (N, K) labels, 0 and 1 or a box's 2 and 3.

    masks: (N, 1, S/4, S/4) logits of an earlier answer, given to the prompts where `masked` (N,) is True.
    """

    points: Tensor
    labels: Tensor
    masks: Tensor | None = None
    masked: Tensor | None = None


class Answers(NamedTuple):
    """Logits (N, 4, S/4, S/4), predicted IoU (N, 4), and the weights (N, 4, K) that made the masks."""

    logits: Tensor
    iou: Tensor
    weights: Tensor


def decode(model: SAM2Base, pyramid: Pyramid, asked: Prompts) -> Answers:
    """The single mask and the three others of every prompt; pyramid of N images, one a prompt."""
    decoder, prompts = model.sam_mask_decoder, model.sam_prompt_encoder
    sparse, dense = prompts(points=(asked.points, asked.labels), boxes=None, masks=None)
    if asked.masks is not None and asked.masked is not None:
        dense = torch.where(asked.masked[:, None, None, None], prompts.mask_downscaling(asked.masks), dense)
    masks, iou, tokens, _ = decoder.predict_masks(  # pyright: ignore[reportAssignmentType]
        pyramid.coarse, prompts.get_dense_pe(), sparse, dense, repeat_image=False, high_res_features=[*pyramid[:2]]
    )
    networks = zip(decoder.output_hypernetworks_mlps, tokens.unbind(1), strict=True)
    return Answers(masks, iou, torch.stack([network(token) for network, token in networks], dim=1))


@torch.no_grad()
def initialise(model: SAM2Base, images: Tensor) -> None:
    """Sets the starting values of decoder, prompts and neck; the trunk keeps the library's.

    The neck is scaled so that the coarse features of `images` (B, 3, S, S) get a std of COARSE_STD.
    """
    decoder, prompts = model.sam_mask_decoder, model.sam_prompt_encoder
    blocks, layers = [*decoder.transformer.layers.children()], []
    to_image = [block.cross_attn_token_to_image for block in blocks] + [decoder.transformer.final_attn_token_to_image]
    from_image = [block.cross_attn_image_to_token for block in blocks]
    for attention in [
        *to_image,
        *from_image,
    ]:  # queries equal keys: with position encodings a point finds its own place
        nn.init.orthogonal_(attention.q_proj.weight, gain=2.0)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        layers += [attention.q_proj, attention.k_proj]
    for attention in to_image:  # values and output undo each other: a token receives what it attends to
        nn.init.orthogonal_(attention.v_proj.weight)
        attention.out_proj.weight.copy_(2 * attention.v_proj.weight.T)
        layers += [attention.v_proj, attention.out_proj]
    for layer in (blocks[0].self_attn.v_proj, blocks[0].self_attn.out_proj):
        nn.init.eye_(layer.weight)
        layers.append(layer)
    decoder.iou_token.weight.mul_(0.1)
    decoder.mask_tokens.weight.mul_(0.3)
    for layer in (layer for network in decoder.output_hypernetworks_mlps for layer in network.layers.children()):
        nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
        layers.append(layer)
    upscaling = [decoder.output_upscaling[0], decoder.output_upscaling[3]]
    for layer, gain in zip([*upscaling, decoder.conv_s0, decoder.conv_s1], (2, 2, 1, 1), strict=True):
        nn.init.normal_(layer.weight, std=(gain / layer.in_channels) ** 0.5)
        layers.append(layer)
    for embedding in (prompts.not_a_point_embed, prompts.no_mask_embed, *prompts.point_embeddings.children()):
        embedding.weight.mul_(0.1)
    neck = [level.conv for level in model.image_encoder.neck.convs]
    for layer in [*layers, *neck]:
        nn.init.zeros_(layer.bias)
    factor = COARSE_STD / encode(model, images).coarse.std()
    for layer in neck[:2]:
        layer.weight.mul_(factor)


class Phase(Enum):
    """What is trained: pixel affinity only, all masks alike, or the best of three masks."""

    AFFINITY = auto()
    MEAN = auto()
    BEST = auto()


class Affinity(nn.Module):
    """Training-only head: does a pixel belong with the point's pixel? A bilinear form on pixel features."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.form = nn.Linear(channels, channels)
        self.form.weight.data = 2 * torch.eye(channels)
        nn.init.constant_(self.form.bias, -0.5)

    def forward(self, features: Tensor, points: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
        """Features (B, K, h, w), points (B, P, 2) to logits (B*P, 1, h, w) and query vectors (B*P, K)."""
        places = (points[:, :, None] + 0.5) / image_size * 2 - 1
        queries = self.form(F.grid_sample(features, places, align_corners=False)[..., 0].transpose(1, 2))
        logits = torch.einsum("bpk,bkhw->bphw", queries, features).flatten(0, 1)
        return logits[:, None], queries.flatten(0, 1)


class Picks(NamedTuple):
    """What is drawn for B images, normalised (B, 3, S, S).

    points: (B, P, 2) pixels as (x, y). boxes: (B, P, 2, 2) corners (x, y) of their regions, the second one outside.
    target: (B * P, 1, S/4, S/4) in [0, 1], the share of each cell that the region of the point covers.
    """

    images: Tensor
    points: Tensor
    boxes: Tensor
    target: Tensor


def draw_batch(scenes: SceneSet, images: int, picks: int, rng: np.random.Generator) -> Picks:
    """Random scenes, turned and mirrored, and pixels of them: first some of all, then some of a chosen region."""
    pictures, places, corners, targets = [], [], [], []
    for index in rng.integers(len(scenes), size=images):
        turns, step = rng.integers(4), -1 if rng.random() < 0.5 else 1
        image, region_ids = (np.rot90(array[index], turns)[:, ::step] for array in (scenes.images, scenes.region_ids))
        flat, present = region_ids.ravel(), np.unique(region_ids)
        objects = [region for region in present if IS_OBJECT[scenes.things[index][region]]]
        chosen = list(rng.integers(flat.size, size=round(picks * ANYWHERE)))
        while len(chosen) < picks:
            choices = objects if objects and rng.random() < ON_OBJECT else present
            chosen.append(rng.choice(np.flatnonzero(flat == rng.choice(choices))))
        rows, columns = np.divmod(chosen, region_ids.shape[1])
        pictures.append(image * np.float32(rng.uniform(0.9, 1.1) / 255))
        places.append(np.stack([columns, rows], axis=1))
        found = ndimage.find_objects(region_ids.astype(np.int32) + 1)
        around = [found[region] for region in region_ids[rows, columns]]
        corners.append([[(x.start, y.start), (x.stop, y.stop)] for y, x in around])
        ids = torch.from_numpy(region_ids.astype(np.int64))
        targets.append(region_shares(ids[None], 4)[0, ids[rows, columns]])
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    target = torch.cat(targets).unflatten(1, (1, scenes.images.shape[1] // 4, -1))
    points, boxes = (torch.from_numpy(np.array(values)).float() for values in (places, corners))
    return Picks(normalize(pixels, MEAN, STD), points, boxes, target)


def box_prompts(boxes: Tensor, size: int, rng: np.random.Generator) -> Prompts:
    """Boxes (N, 2, 2) as somebody draws them: every side a little off, by BOX_SLACK of the box, inside the image."""
    extent = (boxes[:, 1:] - boxes[:, :1]).expand(-1, 2, -1)
    moved = boxes + torch.from_numpy(rng.normal(0, BOX_SLACK, boxes.shape)).float() * extent
    return Prompts(moved.clamp(0, size), torch.tensor([2, 3], dtype=torch.int).expand(len(boxes), 2))


def corrections(points: Tensor, logits: Tensor, target: Tensor, rng: np.random.Generator) -> Prompts:
    """First clicks (N, 1, 2) and others, MORE_CLICKS of them, where their answer, logits (N, 1, h, w), is wrong.

    A third of these, and all where nothing is wrong, lie on the target. Some prompts are told the answer as well.
    """
    more = int(rng.integers(MORE_CLICKS[0], MORE_CLICKS[1] + 1))
    inside = target[:, 0] > 0.5
    wrong = (logits[:, 0] > 0) != inside
    width, cell = inside.shape[2], 4
    added, labels = [], []
    for inner, error in zip(inside.flatten(1).numpy(), wrong.flatten(1).numpy(), strict=True):
        places = [error if error.any() and rng.random() < 2 / 3 else inner for _ in range(more)]
        cells = np.array([rng.choice(np.flatnonzero(place)) if place.any() else 0 for place in places])
        rows, columns = np.divmod(cells, width)
        added.append(np.stack([columns, rows], axis=1) * cell + rng.uniform(0, cell - 1, (more, 2)))
        labels.append(inner[cells])
    clicks = torch.cat([points, torch.from_numpy(np.stack(added)).float()], dim=1)
    marks = torch.cat([torch.ones(len(points), 1), torch.from_numpy(np.stack(labels))], dim=1).int()
    masked = torch.from_numpy(rng.random(len(points)) < WITH_MASK)
    return Prompts(clicks, marks, logits, masked)


def mask_losses(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three losses of logits (N, M, h, w) against target (N, 1, h, w) in [0, 1], each (N, M).

    The mean cross-entropy of the cells, those at an outline counting more; the same with inside and outside counted
    equally; one minus the soft Dice overlap.
    """
    error = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    outline = F.max_pool2d(target, 3, 1, 1) + F.max_pool2d(-target, 3, 1, 1) > 0
    weight = 1 + EDGE_WEIGHT * outline
    pixels = (error * weight).sum((2, 3)) / weight.sum((2, 3))
    area, outside = target.sum((2, 3)), (1 - target).sum((2, 3))
    covered = (error * target).sum((2, 3))
    balanced = covered / area.clamp(min=1) + (error.sum((2, 3)) - covered) / outside.clamp(min=1)
    soft = logits.sigmoid()
    dice = 1 - (2 * (soft * target).sum((2, 3)) + 1) / (soft.sum((2, 3)) + area + 1)
    return pixels, balanced / 2, dice


def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of the hard masks: (N, M, h, w) to (N, M)."""
    predicted, true = logits > 0, target > 0.5
    shared, either = (predicted & true).sum((2, 3)), (predicted | true).sum((2, 3))
    return (shared + 1e-6) / (either + 1e-6)


def best_mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Trains the single mask, the best of the three others, and a little all three: (N, 4, h, w) to ()."""
    pixels, balanced, dice = mask_losses(logits, target)
    loss = 2 * pixels + 1.5 * dice + 0.25 * balanced
    single, three = loss[:, 0], loss[:, 1:]
    return single.mean() + three.min(1).values.mean() + 0.1 * three.mean()


def all_masks_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Trains all masks alike: (N, M, h, w) to ()."""
    pixels, balanced, dice = mask_losses(logits, target)
    return (balanced + 2 * pixels + dice).mean()


def prompt_loss(answers: Answers, target: Tensor, queries: Tensor | None = None) -> Tensor:
    """Masks and predicted IoU of N prompts against target (N, 1, h, w).

    queries: (N, K) what all weights are drawn towards; then all masks are trained alike, else the best of them.
    """
    logits, iou, weights = answers
    loss = F.mse_loss(iou, mask_iou(logits, target))
    if queries is None:
        return loss + best_mask_loss(logits, target)
    towards = F.mse_loss(weights, queries[:, None].expand_as(weights))
    return loss + all_masks_loss(logits, target) + 0.5 * towards


def _scale(name: str) -> float:
    """Learning-rate factor: small for the decoder, tiny for its MLPs, which are huge beside its width."""
    if name.startswith("sam_mask") and ".mlp.layers.1." in name:
        return 0.04 if name.endswith("weight") else 0.1
    in_decoder = name.startswith("sam_") and "upscaling" not in name and "conv_s" not in name
    return 0.5 if in_decoder else 1.0


class Sam2Training:
    """The Training of the tiny SAM 2 (see train.py).

    scenes: training scenes. weights: safetensors to continue from; None starts from scratch. batch: images per step.
    """

    warm_up = 60
    clip_norm = 2.0

    def __init__(self, scenes: SceneSet, weights: Path | None = None, batch: int = BATCH) -> None:
        self.scenes, self.batch = scenes, batch
        self.from_scratch = weights is None
        peak = FROM_SCRATCH_RATE if weights is None else CONTINUED_RATE
        self.model = build_sam2() if weights is None else load_sam2(weights)
        if weights is None:
            initialise(self.model, draw_batch(scenes, batch, 1, np.random.default_rng(0)).images)
        self.affinity = Affinity()
        self.modules = nn.ModuleDict({"model": self.model, "affinity": self.affinity})
        groups: dict[tuple[float, float], list[nn.Parameter]] = {(1.0, 0.0): [*self.affinity.parameters()]}
        for name, parameter in self.model.named_parameters():
            decay = 0.0 if parameter.ndim < 2 or "embed" in name or "token" in name else 0.05
            groups.setdefault((_scale(name), decay), []).append(parameter)
        self.groups = [
            {"params": group, "lr": scale * peak, "weight_decay": decay} for (scale, decay), group in groups.items()
        ]

    def phase(self, progress: float) -> Phase:
        """The phase at this share of the run."""
        if not self.from_scratch or progress >= MEAN_PHASE:
            return Phase.BEST
        return Phase.AFFINITY if progress < AFFINITY_PHASE else Phase.MEAN

    def loss(self, progress: float, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch in the current phase."""
        picks = draw_batch(self.scenes, self.batch, CLICKS + BOXES, rng)
        phase, size, target = self.phase(progress), self.model.image_size, picks.target
        with torch.autocast("cpu", torch.bfloat16):  # the decoder needs more precision, and gains no time
            pyramid = encode(self.model, picks.images)
        pyramid = Pyramid(*(level.float() for level in pyramid))
        loss, queries = target.new_zeros(()), torch.zeros(())
        if self.from_scratch:
            logits, queries = self.affinity(pixel_features(self.model, pyramid), picks.points, size)
            loss = (1.0 if phase is Phase.AFFINITY else 0.25) * all_masks_loss(logits, target)
            if phase is Phase.AFFINITY:
                return loss, {"affinity iou": mask_iou(logits, target).mean().item()}
        loss = loss + 0.1 * F.relu(pyramid.coarse.square().mean() - ENERGY_LIMIT)
        places = torch.arange(len(target)).unflatten(0, (self.batch, -1))
        clicked, boxed = places[:, :CLICKS].flatten(), places[:, CLICKS:].flatten()
        points, boxes = picks.points.flatten(0, 1)[:, None], picks.boxes.flatten(0, 1)
        first = self._answer(pyramid, clicked, Prompts(points[clicked], torch.ones(len(clicked), 1, dtype=torch.int)))
        again = (torch.arange(len(clicked)) % CLICKS < CORRECTED).nonzero()[:, 0]
        corrected, before = clicked[again], first.logits[again, :1].detach().clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        asked = {
            "click": (clicked, first),
            "box": (boxed, self._answer(pyramid, boxed, box_prompts(boxes[boxed], size, rng))),
            "corrected": (
                corrected,
                self._answer(pyramid, corrected, corrections(points[corrected], before, target[corrected], rng)),
            ),
        }
        shown = {}
        for name, (chosen, answers) in asked.items():
            towards = queries[chosen].detach() if phase is Phase.MEAN else None
            share = len(chosen) / (self.batch * (CLICKS + BOXES + CORRECTED))
            loss = loss + share * prompt_loss(answers, target[chosen], towards)
            shown[f"{name} iou"] = mask_iou(answers.logits, target[chosen])[:, 0].mean().item()
        return loss, shown

    def _answer(self, pyramid: Pyramid, chosen: Tensor, asked: Prompts) -> Answers:
        """The answers to prompts about the images that these picks (N,) belong to."""
        image = chosen // (CLICKS + BOXES)
        return decode(self.model, Pyramid(*(level[image] for level in pyramid)), asked)

    def after_step(self) -> None:
        """Nothing to do."""

    def save(self, path: Path) -> None:
        """Writes the model as safetensors."""
        save_weights(self.model.state_dict(), path)
