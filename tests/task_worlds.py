"""Small drawn data sets in the layouts of RefCOCO and ReasonSeg, and how the tests evaluate them."""

from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from eval.prepare.tiny_tasks import write_reasoning, write_referring
from eval.reasoning import ReasoningTask
from eval.referring import ReferringTask, find_splits
from eval.tasks import Run
from textregion.labeling import ANY_OTHER_THING
from textregion.masks import Sam2MaskGenerator
from textregion.segmenter import TextRegionSegmenter

MODEL = {"points_per_side": 8}


@contextmanager
def one_thread():
    """So that numbers are the same in every process, and small work is not spread over busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(root: Path, referring: int = 0, reasoning: int = 0) -> Path:
    """Data sets with so many scenes a split."""
    if referring:
        write_referring(root / "referring", referring)
    if reasoning:
        write_reasoning(root / "reasoning", root / "answers", reasoning)
    return root


def referring_task(root: Path, proposals: str = "detections") -> ReferringTask:
    folder = root / "referring"
    return ReferringTask(folder, folder / "images", find_splits(folder), proposals)


def reasoning_task(root: Path, interpreted: bool = True) -> ReasoningTask:
    answers = root / "answers" if interpreted else None
    return ReasoningTask(root / "reasoning", ["val", "test"], answers, placeholder=ANY_OTHER_THING)


def run(work_dir: Path, **options) -> Run:
    return Run("tiny", work_dir, MODEL, device="cpu", **options)


@contextmanager
def counted_calls():
    """Counts for how many images the two encoders run: {"sam2": n, "clip": n}."""
    calls = Counter()

    def counting(name, original):
        def method(*arguments, **options):
            calls[name] += 1
            return original(*arguments, **options)

        return method

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sam2MaskGenerator, "encode", counting("sam2", Sam2MaskGenerator.encode))
        patch.setattr(TextRegionSegmenter, "encode_crops", counting("clip", TextRegionSegmenter.encode_crops))
        yield calls
