"""The mask generator, and its stages against the authors' program (tests/golden).

Two runs of the golden data are not reproduced: `bool` (binary masks before fusion, not offered) and `single` (another
entry point of that program).
"""

import json

import bounds
import numpy as np
import pytest
import torch
from golden_data import FOLDERS

from textregion.errors import InputError
from textregion.masks import filters
from textregion.masks.base import MaskGenerator
from textregion.masks.clicks import Candidates, ImageFeatures
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.types import RegionMasks

POINTS = 8
COMPLETE = [golden for golden in FOLDERS if golden.complete]
NAMED = ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "min_size", "fuse_mask_threshold")
each_folder = pytest.mark.parametrize("golden", FOLDERS, ids=str)
each_complete = pytest.mark.parametrize("golden", COMPLETE, ids=str)


def runs(golden) -> list[str]:
    """Runs whose candidates are in the published order and whose every stage is stored.

    `nofuse` numbers candidates click by click and `batched16` batch by batch: only their final masks are compared.
    """
    names = {key.split("/")[0] for key in golden.arrays("amg_D_chelsea") if key.endswith("ids_after_iou")}
    return sorted(names - {"bool", "nofuse", "batched16"})


RUNS = [pytest.param(golden, run, id=f"{golden}-{run}") for golden in FOLDERS for run in runs(golden)]
each_run = pytest.mark.parametrize(("golden", "run"), RUNS)


def generator(golden, run: str, model) -> Sam2MaskGenerator:
    config = golden.json("amg.json")
    options = {name: config["defaults"][name] for name in NAMED} | config["runs"][f"D_chelsea/{run}"]["kw"]
    return Sam2MaskGenerator(model, points_per_side=POINTS, **options)


def candidates(maker: Sam2MaskGenerator, logits: torch.Tensor, scores: torch.Tensor) -> Candidates:
    """Of N clicks, in two batches, the later one first."""
    half, total = len(logits) // 2, len(logits)
    parts = [maker.candidates(scores[half:], logits[half:].__getitem__, half, total)]
    parts += [maker.candidates(scores[:half], logits[:half].__getitem__, 0, total)]
    return Candidates.join(parts)


def stored(golden, run: str = "fuse"):
    """Candidates (in order) and their scores, as the program's network gave them."""
    data = golden.arrays("amg_D_chelsea")
    raw, scores = torch.from_numpy(data["fuse/raw_low_res"]), torch.from_numpy(data["fuse/raw_iou"])
    return raw, scores, {k.split("/")[1]: v for k, v in data.items() if k.startswith(f"{run}/")}


# ---------------------------------------------------------------- stage by stage


@each_run
def test_stages_are_exact(golden, run, tiny_sam2):
    raw, raw_scores, stages = stored(golden, run)
    maker = generator(golden, run, tiny_sam2)
    ordered, scores = filters.order_candidates(raw), filters.order_candidates(raw_scores)
    np.testing.assert_array_equal(scores, stages["cand_iou"])
    good = (scores > maker.pred_iou_thresh).nonzero()[:, 0]
    np.testing.assert_array_equal(good, stages["ids_after_iou"])
    stability = filters.stability_scores(ordered[good])
    stable = stability >= maker.stability_score_thresh
    np.testing.assert_array_equal(good[stable], stages["ids_after_stability"])
    np.testing.assert_array_equal(stability[stable], stages["stability_after_stability"])
    good = good[stable]
    boxes = filters.inclusive_boxes(ordered[good] > 0)
    np.testing.assert_array_equal(good, stages["ids_after_box_edge"])  # that filter never removes anything
    np.testing.assert_array_equal(boxes, stages["boxes_after_box_edge"])
    kept = filters.suppress(boxes, scores[good], maker.box_nms_thresh)
    np.testing.assert_array_equal(good[kept], stages["ids_after_nms"])
    np.testing.assert_array_equal(scores[good][kept], stages["iou_after_nms"])
    np.testing.assert_array_equal(boxes[kept], stages["boxes_after_nms"])


@each_run
def test_filtered_candidates_and_their_order_are_exact(golden, run, tiny_sam2):
    raw, raw_scores, stages = stored(golden, run)
    maker = generator(golden, run, tiny_sam2)
    scores = filters.order_candidates(raw_scores)
    found = candidates(maker, raw, raw_scores)
    found = found.take(maker.kept(found))
    np.testing.assert_array_equal(found.predicted_iou, scores[found.index])
    if run != "nonoverlap_nofuse":  # this one is stored before the size filter
        np.testing.assert_array_equal(found.index, stages["order_before_fuse"])
        xywh = torch.cat([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1)
        np.testing.assert_array_equal(xywh, stages["bbox_before_fuse"])


@pytest.mark.parametrize(("golden", "run"), [p for p in RUNS if "nofuse" not in p.id])
def test_fused_groups_are_exact(golden, run, tiny_sam2):
    raw, raw_scores, stages = stored(golden, run)
    maker = generator(golden, run, tiny_sam2)
    found = candidates(maker, raw, raw_scores)
    found = found.take(maker.kept(found))
    masks = RegionMasks(found.logits(), (128, 192), (128, 192), cut=0.0)
    groups = filters.fusion_groups(masks, found.boxes, maker.fuse_mask_threshold)
    assert [len(group) for group in groups] == stages["groups_len"].tolist()
    assert [i for group in groups for i in group] == stages["groups_flat"].tolist()


def final_runs() -> list:
    extra = [(golden, run) for golden in COMPLETE for run in ("nofuse", "batched16")]
    return RUNS + [pytest.param(golden, run, id=f"{golden}-{run}") for golden, run in extra]


@pytest.mark.parametrize(("golden", "run"), final_runs())
def test_final_masks_are_exact(golden, run, tiny_sam2):
    """Positive pixels equal; values within one unit in the last place of the stored half precision."""
    raw, raw_scores, stages = stored(golden, run)
    size = tuple(golden.json("inputs.json")["D_chelsea"]["resized_hw"])
    maker = generator(golden, run, tiny_sam2)
    masks = maker.select(candidates(maker, raw, raw_scores), (40, 60), size)
    assert masks.image_size == (40, 60)
    full = masks.full().numpy()
    if "final_masks" in stages:
        expected = stages["final_masks"]
    else:
        expected, full = stages["final_masks_stride2"], full[:, ::2, ::2]
    assert full.shape == expected.shape
    np.testing.assert_array_equal(full.astype(np.float16) > 0, expected > 0)  # the rest vanished in storage
    assert (np.abs(full - expected.astype(np.float32)) <= np.spacing(expected)).all()


@each_folder
@pytest.mark.parametrize("threshold", [0.8, 0.5])
@pytest.mark.parametrize("case", [0, 1, 2])
def test_fuse_cases_are_exact(golden, case, threshold):
    data = golden.arrays("fuse_cases")
    soft = torch.from_numpy(data[f"{case}/masks"]).float()
    xywh = torch.from_numpy(data[f"{case}/bbox_xywh"])
    boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    masks = RegionMasks(soft, tuple(soft.shape[1:]))
    groups = filters.fusion_groups(masks, boxes, threshold)
    assert groups == json.loads(str(data[f"{case}/thr{threshold}/groups_json"]))
    np.testing.assert_array_equal(filters.merge(masks, groups).full(), data[f"{case}/thr{threshold}/fused"])


# ---------------------------------------------------------------- through the network


def network(maker: Sam2MaskGenerator, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and predicted IoU of the model's input (1, 3, s, s), from POINTS x POINTS clicks."""
    with torch.inference_mode():
        *high, embedding = maker.model.forward_image(pixels)["backbone_fpn"]
        embedding = embedding + maker.model.no_mem_embed.reshape(1, -1, 1, 1)
    return maker.decode_with_tokens(ImageFeatures(embedding, high), filters.point_grid(POINTS)[:, None])[:2]


@each_complete
def test_network_input(golden):
    """What the model is fed, seen by a hook on its image encoder: a few operations from the image."""
    maker = Sam2MaskGenerator(golden.sam2(), points_per_side=POINTS)
    seen = []
    maker.model.image_encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    maker.encode(golden.arrays("inputs_D_chelsea")["resized_uint8"])
    expected = golden.arrays("amg_D_chelsea")["fuse/sam_input"]
    np.testing.assert_allclose(seen[0], expected, rtol=0, atol=bounds.steps(expected, torch.float32, 16))


@each_complete
def test_network_output(golden):
    """As near to the program's as rounding lets them be: this random network makes much of a last bit.

    On six kinds of processors the logits differ by 0.016 to 0.23 at most, those of inputs that differ in the last bit
    by 0.05 to 0.27; on average by 0.002 to 0.007 and 0.004 to 0.008. A wrong step changes them by whole numbers.
    """
    maker = Sam2MaskGenerator(golden.sam2(), points_per_side=POINTS)
    *expected, stages = stored(golden)
    given = torch.from_numpy(stages["sam_input"])
    whole_run = maker.decode_with_tokens(
        maker.encode(golden.arrays("inputs_D_chelsea")["resized_uint8"]), filters.point_grid(POINTS)[:, None]
    )[:2]
    noise = bounds.rounding_noise(lambda pixels: network(maker, pixels), given)
    assert noise[0].rms < 0.05, "the bounds below would say nothing"
    assert noise[1].rms < 0.005, "the bounds below would say nothing"
    for outputs in (network(maker, given), whole_run):
        for actual, program, allowed in zip(outputs, expected, noise, strict=True):
            allowed.check(actual, program)


@each_complete
def test_whole_run_gives_the_same_masks_but_for_borders(golden):
    maker = generator(golden, "fuse", golden.sam2())
    masks = maker.generate(golden.arrays("inputs_D_chelsea")["resized_uint8"])
    expected = stored(golden)[2]["final_masks"] > 0
    assert len(masks) == len(expected)
    assert ((masks.full() > 0).numpy() == expected).mean() > 0.999


# ---------------------------------------------------------------- the generator itself


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (41, 61, 3), dtype=np.uint8)


def lenient(model, **options) -> Sam2MaskGenerator:
    """Thresholds at which random weights give masks."""
    given = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "min_size": 0}
    return Sam2MaskGenerator(model, **(given | {"box_nms_thresh": 1.0} | options))


def test_it_is_a_mask_generator(tiny_sam2):
    assert isinstance(Sam2MaskGenerator(tiny_sam2), MaskGenerator)


def test_sizes_default_to_the_image(tiny_sam2, image):
    masks = lenient(tiny_sam2).generate(image)
    assert len(masks) > 0
    assert masks.image_size == masks.mask_size == (41, 61)
    masks = lenient(tiny_sam2).generate(image, (82, 122), (20, 30))
    assert (masks.image_size, masks.mask_size) == ((82, 122), (20, 30))
    assert masks.full().shape[1:] == (20, 30)
    assert 0 <= masks.full().min() <= masks.full().max() <= 3


def test_points_per_batch_does_not_matter(tiny_sam2, image):
    maker = lenient(tiny_sam2)
    features = maker.encode(image)
    whole = maker.decode_with_tokens(features, filters.point_grid(3)[:, None])[:2]
    maker.points_per_batch = 2
    parts = maker.decode_with_tokens(features, filters.point_grid(3)[:, None])[:2]
    assert whole[0].shape == (9, 3, 64, 64)
    assert whole[0].dtype == torch.float16
    torch.testing.assert_close(parts[0].float(), whole[0].float(), rtol=0, atol=0.02)
    torch.testing.assert_close(parts[1], whole[1], rtol=0, atol=1e-4)


def test_the_result_is_the_same_every_time(tiny_sam2, image):
    first, second = (lenient(tiny_sam2).generate(image) for _ in range(2))
    assert torch.equal(first.full(), second.full())
    assert torch.equal(first.predicted_iou, second.predicted_iou)


def test_no_mask_is_a_normal_result(tiny_sam2, image):
    masks = lenient(tiny_sam2, pred_iou_thresh=1.0).generate(image, (82, 122))
    assert len(masks) == 0
    assert masks.image_size == (82, 122)
    for options in ({"fuse_mask": False}, {"return_non_overlapping": True}, {"min_size": 64 * 64}):
        assert len(lenient(tiny_sam2, **({"pred_iou_thresh": 1.0} | options)).generate(image)) == 0
    assert len(lenient(tiny_sam2, min_size=64 * 64).generate(image)) == 0


def logits_of(*masks: list[list[float]]) -> torch.Tensor:
    """(1, 3, h, w): candidates of one click; the third output is the whole."""
    return torch.tensor(masks)[None].half()


def select(tiny_sam2, logits, scores, **options) -> RegionMasks:
    size = tuple(logits.shape[-2:])
    maker = lenient(tiny_sam2, fuse_mask=False, **options)
    return maker.select(candidates(maker, logits, torch.tensor([scores])), size, size)


def test_values_are_clamped_to_0_3(tiny_sam2):
    logits = logits_of([[-9.0] * 4], [[-9.0] * 4], [[-9.0, 0.5, 2.5, 31.0]])
    masks = select(tiny_sam2, logits, [0.1, 0.1, 0.9])
    assert masks.full().tolist() == [[[0, 0.5, 2.5, 3]]]
    assert masks.predicted_iou.tolist() == pytest.approx([0.9])
    assert masks.stability.tolist() == pytest.approx([2 / 3])


@pytest.mark.parametrize(("limit", "kept"), [(0.49, 2), (0.5, 1), (0.9, 0)])
def test_predicted_iou_must_be_above_its_threshold(tiny_sam2, limit, kept):
    logits = logits_of([[-9.0] * 4], [[9.0, 9, -9, -9]], [[-9.0, -9, 9, 9]])
    assert len(select(tiny_sam2, logits, [0.9, 0.5, 0.7], pred_iou_thresh=limit)) == kept


@pytest.mark.parametrize(("limit", "kept"), [(0.5, 2), (0.51, 1), (1.0, 1)])
def test_stability_must_reach_its_threshold(tiny_sam2, limit, kept):
    logits = logits_of([[-9.0] * 4], [[9.0, 0.5, -9, -9]], [[-9.0, -9, 9, 9]])
    assert len(select(tiny_sam2, logits, [0.9, 0.9, 0.9], stability_score_thresh=limit)) == kept


@pytest.mark.parametrize(("limit", "kept"), [(1, 2), (2, 1), (3, 0)])
def test_masks_must_be_larger_than_min_size(tiny_sam2, limit, kept):
    logits = logits_of([[-9.0] * 5], [[9.0, 9, -9, -9, -9]], [[-9.0, -9, 9, 9, 9]])
    assert len(select(tiny_sam2, logits, [0.9, 0.9, 0.9], min_size=limit)) == kept


@pytest.mark.parametrize("options", [{}, {"return_non_overlapping": True}, {"fuse_mask": True}])
def test_given_points_select_keeps_scores_with_their_masks(tiny_sam2, options):
    logits = torch.full((2, 3, 8, 8), -9.0)
    for point in range(2):
        for output in range(3):
            logits[point, output, point * 4 : point * 4 + 3, output * 2 : output * 2 + 2] = 9.0
    scores = torch.tensor([[0.3, 0.6, 0.5], [0.9, 0.7, 0.8]])
    maker = lenient(tiny_sam2, **({"fuse_mask": False} | options))
    masks = maker.select(candidates(maker, logits.half(), scores), (8, 8), (8, 8))
    by_level = [0.8, 0.5, 0.7, 0.6, 0.9, 0.3]
    assert masks.predicted_iou.tolist() == pytest.approx(by_level if options else sorted(by_level, reverse=True))
    for score, full in zip(masks.predicted_iou, masks.full(), strict=True):
        point, output = (scores == score).nonzero()[0].tolist()
        assert torch.equal(full > 0, logits[point, output] > 0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("points_per_side", 0), ("points_per_batch", 0), ("min_size", -1)),
        *(("pred_iou_thresh", -0.1), ("pred_iou_thresh", 1.1), ("stability_score_thresh", 2.0)),
        *(("box_nms_thresh", float("nan")), ("fuse_mask_threshold", -1.0)),
    ],
)
def test_bad_options_are_refused(tiny_sam2, option, value):
    with pytest.raises(InputError, match=f"got {option} .*expected") as error:
        Sam2MaskGenerator(tiny_sam2, **{option: value})
    assert "\n" not in str(error.value)
