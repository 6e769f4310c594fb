"""Counts and figures against mmseg's IoUMetric and against slow obvious forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from eval.journalled_iou import add_up, count_pairs, mean_iou
from eval.mm import IoUMetric
from textregion.errors import InputError

CLASSES = 5
maps = arrays.arrays(np.uint8, (7, 11), elements=st.sampled_from([0, 1, 2, 3, 4, 255]))
predictions = arrays.arrays(np.int64, (7, 11), elements=st.integers(0, CLASSES - 1))


def slow_figures(pairs_of_maps):
    """Intersection over union of each class, by boolean masks."""
    values = []
    for c in range(CLASSES):
        intersection = union = 0
        for prediction, truth in pairs_of_maps:
            counts = truth != 255
            intersection += int(((prediction == c) & (truth == c) & counts).sum())
            union += int((((prediction == c) | (truth == c)) & counts).sum())
        values.append(intersection / union if union else np.nan)
    return np.array(values)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(predictions, maps), min_size=1, max_size=3))
def test_figures_equal_mmseg_and_the_slow_form(images):
    names = [f"class {c}" for c in range(CLASSES)]
    summary, per_class = mean_iou(add_up([count_pairs(p, t, CLASSES) for p, t in images], CLASSES), names)
    parts = [
        IoUMetric.intersect_and_union(torch.from_numpy(p), torch.from_numpy(t.astype(np.int64)), CLASSES, 255)
        for p, t in images
    ]
    theirs = IoUMetric.total_area_to_metrics(*(sum(area) for area in zip(*parts, strict=True)), ["mIoU"])
    ours = np.array([row["IoU"] for row in per_class.values()])
    np.testing.assert_allclose(ours, 100 * theirs["IoU"], rtol=1e-6)
    np.testing.assert_allclose([r["Acc"] for r in per_class.values()], 100 * theirs["Acc"], rtol=1e-6)
    np.testing.assert_allclose(summary["aAcc"], 100 * theirs["aAcc"], rtol=1e-6)
    np.testing.assert_allclose(ours, 100 * slow_figures(images), rtol=1e-12)
    if not np.isnan(ours).all():
        assert summary["mIoU"] == pytest.approx(np.nanmean(100 * theirs["IoU"]), rel=1e-6)


def test_pairs_leave_out_ignored_pixels():
    truth = np.array([[0, 0, 1], [255, 1, 1]], np.uint8)
    prediction = np.array([[0, 2, 1], [1, 1, 0]])
    assert count_pairs(prediction, truth, 3) == [[0, 0, 1], [0, 2, 1], [1, 0, 1], [1, 1, 2]]


@pytest.mark.parametrize(
    ("prediction", "truth", "said"),
    [
        ([[0, 3]], [[0, 1]], r"the prediction has labels \[3\] beyond the 3 classes"),
        ([[0, -1]], [[0, 1]], "the prediction has labels"),
        ([[0, 1]], [[0, 3]], "the label map has labels"),
        ([[0, 1]], [[254, 1]], "the label map has labels"),
    ],
)
def test_labels_beyond_the_classes_are_not_counted_as_others(prediction, truth, said):
    with pytest.raises(InputError, match=said):
        count_pairs(np.array(prediction), np.array(truth, np.uint8), 3)
    assert count_pairs(np.array([[7, 1]]), np.array([[255, 1]]), 3) == [[1, 1, 1]]


def test_an_image_without_a_counted_pixel_adds_nothing():
    truth = np.full((3, 5), 255, np.uint8)
    assert count_pairs(np.zeros((3, 5), int), truth, 3) == []
    assert add_up([[]], 3).sum() == 0


def test_large_counts_stay_exact():
    many = [[[1, 1, 2**24 + 1]], [[1, 1, 1]], [[1, 0, 1]]]
    total = add_up(many, 2)
    assert total[1].tolist() == [1, 2**24 + 2]
    summary, per_class = mean_iou(total, ["a", "b"])
    assert per_class["b"]["IoU"] == 100 * (2**24 + 2) / (2**24 + 3)
    assert per_class["a"] == {"IoU": 0.0, "Acc": pytest.approx(float("nan"), nan_ok=True), "pixels": 0}
    assert summary["aAcc"] == per_class["b"]["Acc"]


def test_classes_that_never_occur_are_left_out_of_the_mean():
    summary, per_class = mean_iou(add_up([[[0, 0, 3]]], 3), ["a", "b", "c"])
    assert summary == {"mIoU": 100.0, "mAcc": 100.0, "aAcc": 100.0}
    assert np.isnan(per_class["b"]["IoU"])
