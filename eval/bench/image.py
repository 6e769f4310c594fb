"""python -m eval.bench image: a whole image stage by stage, against the rate of matrix products on the same machine.

Operations are counted, not estimated (torch's FlopCounterMode, 2 per multiply-add). The rate of products of large
matrices is measured right before and after every stage, in the stage's own type on its own device: what the machine
can do just then, which is the floor, not a data sheet. The obvious form of every stage runs beside it.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec as find_module
from itertools import pairwise
from typing import Any, cast

import cv2
import numpy as np
import torch
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from eval.bench.comparisons import (
    Facts,
    Formulations,
    Options,
    candidates_from,
    encode_with,
    fusion,
    patches_of,
    pool_with,
    postprocess,
    removal_with,
    segmenter_of,
    text_with,
)
from eval.bench.measure import measured, shown_seconds
from textregion.devices import resolve_dtype
from textregion.masks import Sam2MaskGenerator, filters
from textregion.render import markdown_table, text_table
from textregion.segmenter import TextRegionSegmenter
from textregion.tiny.scenes import draw_scene

SCENE = 10
TRANSFORMERS_SIDE = 1024  # of the images that its SAM 2 takes
MATRIX_SIDE = {torch.float32: 1536, torch.float16: 8192}  # of the products that measure the machine
COLUMNS = ("stage", "time", "operations", "of the machine's rate", "obvious form", "faster")
RIVAL_COLUMNS = ("masks of one image", "time", "ours", "faster", "masks", "ours")
Clock = Callable[[], float]  # seconds
MaskMaker = Callable[[], int]  # makes the masks of the image, returns how many


@dataclass(frozen=True)
class Stage:
    """One stage of an image, in seconds. operations: counted. rate: a second, of the machine's matrix products just
    then. obvious: seconds of the obvious form, None where it is the same. note: what was run.
    """

    name: str
    seconds: float
    operations: float
    rate: float
    obvious: float | None = None
    note: str = ""

    @property
    def floor(self) -> float:
        """Seconds that the operations take at the machine's rate."""
        return self.operations / self.rate

    @property
    def share(self) -> float:
        """Of the machine's rate, 0..1."""
        return self.floor / self.seconds

    @property
    def speed(self) -> float | None:
        """How many times faster than the obvious form."""
        return None if self.obvious is None else self.obvious / self.seconds


@dataclass(frozen=True)
class Rival:
    """The masks of one image by another program with equal settings. Both in seconds, and how many masks each found."""

    name: str
    seconds: float
    ours: float
    masks: int
    our_masks: int


def whole(stages: Sequence[Stage]) -> Stage:
    """All stages together; one without an obvious form counts alike in both."""
    seconds, operations = sum(stage.seconds for stage in stages), sum(stage.operations for stage in stages)
    obvious = sum(stage.seconds if stage.obvious is None else stage.obvious for stage in stages)
    return Stage("whole image", seconds, operations, operations / sum(stage.floor for stage in stages), obvious)


def summary(stages: Sequence[Stage]) -> str:
    """The one line that a table ends with."""
    image = whole(stages)
    said = (
        f"{image.share:.0%} of the machine's matrix-product rate, {image.speed:.1f} times faster than the obvious form"
    )
    return f"whole image: {shown_seconds(image.seconds)}, {said}"


# ---------------------------------------------------------------------- the stages


def stages_of(segmenter: TextRegionSegmenter, options: Options) -> Iterator[tuple[str, Formulations]]:
    """Every stage of an image: what it is called, our form and the obvious one. Made one by one, as they are run."""
    generator = cast(Sam2MaskGenerator, segmenter.mask_generator)
    if options.device == "cpu":
        generator.dtype = torch.float32
    image, points = scene(options), filters.point_grid(options.points)[:, None].to(generator.device)
    nothing = Facts(0.0, 0.0, f"{generator.model.image_size}² pixels")
    yield "SAM 2 image encoder", (lambda: generator.encode(image), None, nothing)
    features = generator.encode(image)
    yield "clicks, filters", candidates_from(generator, points, features, half_pass=options.random_weights)
    yield "fusion", fusion(options)
    yield "image-text encoder", encode_with(segmenter.backbone, options)
    patches, weights = patches_of(segmenter.backbone, options)
    yield "removal of global patches", removal_with(patches, weights)
    yield "pooling", pool_with(segmenter.backbone, patches, weights, options)
    yield "words", text_with(segmenter.backbone, options)
    yield "label map", postprocess(options)


def scene(options: Options) -> np.ndarray:
    """A drawn scene at the size of the resized image."""
    height, width = options.size
    return cv2.resize(draw_scene(SCENE).image, (width, height), interpolation=cv2.INTER_LINEAR)


def measure(
    name: str, formulations: Formulations, device: torch.device, repeats: int, clock: Clock = time.perf_counter
) -> Stage:
    """Count one run of ours, then time it and the obvious form, the machine's rate measured before and after."""
    ours, obvious, facts = formulations
    operations = count(ours) / facts.own_share
    before = product_rate(device, clock)
    seconds = median_seconds(ours, device, repeats, clock) / facts.own_share
    rate = (before + product_rate(device, clock)) / 2
    theirs = None if obvious is None else median_seconds(obvious, device, repeats, clock) / facts.share
    return Stage(name, seconds, operations, rate, theirs, facts.note)


def median_seconds(function: Callable[[], object], device: torch.device, repeats: int, clock: Clock) -> float:
    """Of several calls."""
    return statistics.median(measured(function, device, clock)[0] for _ in range(repeats))


def count(function: Callable[[], object]) -> float:
    """Operations of one call; those of attention kernels that torch's counter does not know are added."""
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        torch.ops.aten._native_multi_head_attention: _multi_head_attention,
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        function()
    return float(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _multi_head_attention(query: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    batch, length, width = query
    return 2 * batch * length * width * (4 * width + 2 * length)  # four projections, two products of attention


def product_rate(device: torch.device, clock: Clock = time.perf_counter, repeats: int = 3) -> float:
    """Operations a second of products of large square matrices, in the type in which encoders work there."""
    dtype = resolve_dtype("auto", device)
    side = MATRIX_SIDE[dtype]
    matrix = torch.rand(side, side, device=device, dtype=dtype)
    return 2.0 * side**3 / min(measured(lambda: matrix @ matrix, device, clock)[0] for _ in range(repeats))


# ---------------------------------------------------------------------- what a user would take instead


def rivals(
    segmenter: TextRegionSegmenter, options: Options, repeats: int, clock: Clock = time.perf_counter
) -> tuple[list[Rival], list[str]]:
    """Mask generation against other programs with equal settings, ours at full size too; and who is not installed."""
    generator = cast(Sam2MaskGenerator, segmenter.mask_generator)
    settings = {"fuse_mask": False, "min_size": 0, "points_per_side": options.points}
    with changed(generator, **settings):
        image, device = scene(options), torch.device(options.device)

        def ours() -> int:
            masks = generator.generate(image)
            return len(masks.binary()) if len(masks) else 0

        own = [measured(ours, device, clock) for _ in range(repeats)]
        found, missing = [], []
        makers = {"sam2's SAM2AutomaticMaskGenerator": package_generator(generator, image)}
        if find_module("transformers") is None:
            missing.append("transformers' mask-generation pipeline: the package is not installed here")
        elif generator.model.image_size != TRANSFORMERS_SIDE:
            missing.append(f"transformers' mask-generation pipeline: for models of {TRANSFORMERS_SIDE} pixels only")
        else:
            makers["transformers' mask-generation pipeline"] = transformers_pipeline(generator, image, device)
        for name, maker in makers.items():
            runs = [measured(maker, device, clock) for _ in range(repeats)]
            times = (statistics.median(run[0] for run in both) for both in (runs, own))
            found.append(Rival(name, *times, runs[0][2], own[0][2]))
    return found, missing


@contextmanager
def changed(target: object, **values: Any) -> Iterator[None]:
    """Attributes of an object with other values in the body."""
    before = {name: getattr(target, name) for name in values}
    vars(target).update(values)
    try:
        yield
    finally:
        vars(target).update(before)


def package_generator(generator: Sam2MaskGenerator, image: np.ndarray) -> MaskMaker:
    """sam2's own automatic generator, same model and thresholds."""
    package = SAM2AutomaticMaskGenerator(
        generator.model,
        points_per_side=generator.points_per_side,
        pred_iou_thresh=generator.pred_iou_thresh,
        stability_score_thresh=generator.stability_score_thresh,
        box_nms_thresh=generator.box_nms_thresh,
    )
    side = generator.model.image_size
    package.predictor._bb_feat_sizes = [(side // stride,) * 2 for stride in (4, 8, 16)]  # it has those of 1024 px only
    return lambda: len(package.generate(image))


def transformers_pipeline(generator: Sam2MaskGenerator, image: np.ndarray, device: torch.device) -> MaskMaker:
    """transformers' SAM 2 of the same size and its own pipeline, thresholds as ours.

    Its weights are random (files are in another layout), and random weights pass other thresholds: filters are set so
    that every mask passes predicted IoU and stability, and the number of masks says nothing.
    """
    import transformers  # pyright: ignore[reportMissingImports]
    from PIL import Image

    trunk: Any = generator.model.image_encoder.trunk
    widths = trunk.channel_list[::-1]
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=widths[0],
        num_attention_heads=trunk.blocks[0].attn.num_heads,
        blocks_per_stage=[end - start for start, end in pairwise([-1, *trunk.stage_ends])],
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[trunk.blocks[end].attn.num_heads for end in trunk.stage_ends],
        window_size_per_stage=list(trunk.window_spec),
        global_attention_blocks=list(trunk.global_att_blocks),
        window_positional_embedding_background_size=list(trunk.window_pos_embed_bkg_spatial_size),
    )
    vision = transformers.Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=trunk.channel_list)
    model = transformers.Sam2Model(transformers.Sam2Config(vision_config=vision)).eval()
    processor = getattr(transformers, "Sam2ImageProcessor", None) or transformers.Sam2ImageProcessorFast
    pipe = transformers.pipeline("mask-generation", model=model, image_processor=processor(), device=device)
    everything = {"pred_iou_thresh": -1.0, "stability_score_thresh": 0.0, "points_per_batch": 64}
    more = {"crops_nms_thresh": generator.box_nms_thresh, "points_per_crop": generator.points_per_side}
    return lambda: len(pipe(Image.fromarray(image), **everything, **more)["masks"])


# ---------------------------------------------------------------------- the table


def run(options: Options, repeats: int, clock: Clock = time.perf_counter) -> tuple[list[Stage], list[Rival], list[str]]:
    """Measure one model at one number of labels. Says on stderr how far it is."""
    stages, device, segmenter = [], torch.device(options.device), segmenter_of(options)
    with torch.inference_mode():
        for name, formulations in stages_of(segmenter, options):
            print(f"running {name} …", file=sys.stderr)
            stages.append(measure(name, formulations, device, repeats, clock))
            print("  ".join(_row(stages[-1])), file=sys.stderr)
        print("running other mask generators …", file=sys.stderr)
        return stages, *rivals(segmenter, options, repeats, clock)


def report(title: str, stages: Sequence[Stage], others: Sequence[Rival], missing: Sequence[str], markdown: bool) -> str:
    """What is printed of one model: the stages, the other mask generators, notes, and the line that sums up."""
    rows = [_row(stage) for stage in (*stages, whole(stages))]
    rates = [stage.rate / 1e9 for stage in stages]
    against = [
        (o.name, shown_seconds(o.seconds), shown_seconds(o.ours), f"{o.seconds / o.ours:.1f}×", o.masks, o.our_masks)
        for o in others
    ]
    table = markdown_table if markdown else lambda columns, cells: [text_table(columns, cells)]
    lines = [title, "", *table(COLUMNS, rows), "", *table(RIVAL_COLUMNS, [[str(c) for c in row] for row in against])]
    notes = [f"- {stage.name}: {stage.note}" for stage in stages if stage.note]
    machine = f"- machine's matrix products: {min(rates):.0f} to {max(rates):.0f} GFLOP/s while this ran"
    return "\n".join([*lines, "", *notes, *(f"- {line}" for line in missing), machine, summary(stages)])


def _row(stage: Stage) -> list[str]:
    obvious = ["–", "–"] if stage.obvious is None else [shown_seconds(stage.obvious), f"{stage.speed:.1f}×"]
    return [stage.name, shown_seconds(stage.seconds), _operations(stage.operations), f"{stage.share:.0%}", *obvious]


def _operations(number: float) -> str:
    """With three digits, in the unit that suits."""
    unit, name = next((pair for pair in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if number >= pair[0]), (1e6, "M"))
    return f"{number / unit:.3g} {name}FLOP"
