"""Words on the command line: how long the text tower takes, a bar while it works, how many prompts a label on a CPU."""

import argparse
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from tqdm import tqdm

from textregion.devices import resolve_device
from textregion.labels import LabelPrompts
from textregion.presets import find_preset
from textregion.segmenter import TextRegionSegmenter

CPU_TEMPLATES = 7  # a label of a program that somebody waits for; docs/performance.md says what that costs
SLOW = 5.0  # seconds from which on it is said how long words take


def templates_option(args: argparse.Namespace, preset: str) -> dict[str, int]:
    """{"templates": CPU_TEMPLATES} on a CPU, where neither a flag nor the preset says how many; else nothing."""
    chosen = args.templates is not None or args.fast or "templates" in find_preset(preset).options
    if chosen or resolve_device(args.device).type != "cpu":
        return {}
    return {"templates": CPU_TEMPLATES}


def encode_words(segmenter: TextRegionSegmenter, labels: Sequence[str]) -> None:
    """Text embeddings of an image's labels, which the segmenter then remembers; says what takes long."""
    queries = LabelPrompts.parse(labels).queries
    new = [query for query in dict.fromkeys(queries) if query not in segmenter.remembered_labels]
    if new:
        with TextProgress(len(new), len(segmenter.templates), segmenter.device.type) as progress:
            segmenter.encode_text(new, progress)


class TextProgress:
    """Told of prompts that are done; from what the first ones took it says how long all take, and shows a bar.

    Silent where that is less than `SLOW` seconds. labels, templates: how many. device: where.
    """

    def __init__(self, labels: int, templates: int, device: str) -> None:
        self.labels, self.templates, self.device = labels, templates, device
        self.done, self.start = 0, time.perf_counter()
        self.bar: tqdm | None = None

    def __enter__(self) -> "TextProgress":
        return self

    def __call__(self, prompts: int) -> None:
        """So many more prompts are done."""
        total = self.labels * self.templates
        self.done += prompts
        if self.bar is None and self.done < total:
            seconds = (time.perf_counter() - self.start) * total / self.done
            if seconds < SLOW:
                return
            self.bar = tqdm(total=total, desc="words", unit="prompt", leave=False)
            each = f"{self.templates} prompts" if self.templates > 1 else "1 prompt"
            fewer = "; fewer with --templates" if self.templates > 1 else ""
            told = f"{self.labels} new labels of {each} each: about {seconds:.0f} s on {self.device}{fewer}"
            tqdm.write(told, file=sys.stderr)
            prompts = self.done
        if self.bar is not None:
            self.bar.update(prompts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
