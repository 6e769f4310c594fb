"""What the evaluations that question region tokens share: flags, the models, the loop over images, the files it writes.

A task is a subclass of `Task`: `items` (the images), `answer` (what to keep of one image), `metrics` (what the kept
records add up to). Each image is encoded once. Everything is kept in a journal (eval/journal.py), so an interrupted run
goes on where it stopped.
"""

import argparse
import json
import math
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image
from tqdm import tqdm

from eval.contact_sheet import RgbImage, contact_sheet
from eval.identity import PLACES, data_identity, item_digests, run_identity, segmenter_weights
from eval.journal import LAUNCHERS, Journal, Processes, locked, processes
from eval.mask_cache import CachedMasks
from eval.results import (
    SCORED,
    Results,
    Skipped,
    describe_device,
    figure,
    nothing_measured,
    now,
    resumable,
    skipped_line,
    sum_seconds,
)
from eval.selection import Selection, default_folder, marks_of, selection_flags
from textregion.cli.command_line import Parser, output_folder, positive, run_program
from textregion.cli.flags import add_model_flags, add_option_flags, chosen_preset, given_options
from textregion.errors import InputError, out_of_memory
from textregion.presets import TINY_WORLD, find_preset
from textregion.segmenter import TextRegionSegmenter
from textregion.storage import write_atomically
from textregion.text import fills_context

GO_ON = "the same command with --resume goes on"
Record = dict[str, Any]
Records = dict[str, Record]


@dataclass(frozen=True)
class Run:
    """How to evaluate. model: arguments of TextRegionSegmenter.from_preset that override the published ones.

    work_dir: None is out/<parent>/<preset>-<identity>, parent the program's name. limit, images: only the first N
    images, only those named in a file. resume_anyway: go on with another identity's records. visualize: cases of each
    kind on the contact sheets.
    """

    preset: str
    work_dir: Path | None
    model: dict = field(default_factory=dict)
    limit: int | None = None
    images: Path | None = None
    resume: bool = False
    resume_anyway: bool = False
    parent: str = "task"
    save_predictions: bool = False
    visualize: int = 0
    mask_cache: Path | None = None
    launcher: str = "none"
    local_rank: int | None = None
    device: str = "auto"


class Task(ABC):
    """One evaluation: what there is to ask, how, and what the answers add up to.

    name, benchmark: as in results.json. part: what the rows of `parts` are. published: model arguments of the
    published evaluation. unusable: data of the benchmark that could not be used. sheet_titles: of right and wrong
    answers. sheet_unit: " boxes", what is counted there. sheet_note: what the pictures show. coco_results: whether
    predictions are COCO results, {"image_id", "category_id", "bbox", "score", …}, and are written as such too.
    uses_regionspot: whether the segmenter's trained head is asked, so that its weights count.
    """

    name: str
    benchmark: str
    part: str = "part"
    published: Mapping[str, Any] = MappingProxyType({})
    unusable: Sequence[Skipped] = ()
    sheet_titles: tuple[str, str] = ("Right", "Wrong")
    sheet_unit: str = ""
    sheet_note: str = ""
    coco_results: bool = False
    uses_regionspot: bool = False

    @abstractmethod
    def items(self) -> list[str]:
        """The images, in order."""

    @abstractmethod
    def answer(self, segmenter: TextRegionSegmenter, item: str) -> Record:
        """Everything to keep of one image; JSON-able. Odd data are told in the record; ImageError if it is one."""

    @abstractmethod
    def metrics(self, records: Records) -> dict[str, float]:
        """Metrics in percent; NaN for what there is none of."""

    def scored(self, records: Records) -> int:
        """How many answers the metrics are made of; without any, no metric is told. By default the images read."""
        return sum("unreadable" not in record for record in records.values())

    def settings(self) -> dict:
        """What decides the numbers, besides the model: JSON-able. Annotations by a hash of their content."""
        return {}

    def roots(self) -> Mapping[str, Path]:
        """The folders of the data, by what lies there."""
        return {}

    def files(self, item: str) -> Sequence[Path]:
        """The files that are read for an image (annotations count by `settings`)."""
        return ()

    def image_row(self, item: str, record: Record) -> dict[str, Any]:
        """What images.csv tells of a measured image: numbers by name."""
        return {name: value for name, value in record.items() if isinstance(value, (int, float))}

    def parts(self, records: Records) -> dict[str, dict]:
        """A row of metrics and counts per split or kind."""
        return {}

    def count(self, record: Record) -> Counter:
        """What one image adds to the running score."""
        return Counter()

    def running(self, counts: Counter) -> str:
        """A few words on the score so far, for the progress bar."""
        return ""

    def title(self, item: str) -> str:
        """How reports call an image."""
        return item

    def asked(self, item: str) -> str:
        """What is lost with an image that cannot be read, "; 3 sentences"; "" where an image is one question."""
        return ""

    def noted(self, item: str, record: Record) -> list[Skipped]:
        """What is odd about an image's answers: its record's "notes", [kind, reason] or [kind, reason, effect]."""
        return [Skipped(self.title(item), *note) for note in record.get("notes", ())]

    def skipped(self, records: Records) -> list[Skipped]:
        """What could not be used, or only in part: data, images, answers."""
        found = list(self.unusable)
        for item, record in records.items():
            if "unreadable" in record:
                kind, reason = record["unreadable"]
                found.append(Skipped(self.title(item), kind, reason + self.asked(item)))
            else:
                found += self.noted(item, record)
        return found

    def predictions(self, records: Records) -> Iterator[dict]:
        """One JSON-able line per answer."""
        return ({"image": item, **record} for item, record in records.items() if "unreadable" not in record)

    def shown(self, records: Records) -> Iterable[dict]:
        """The answers for contact sheets, each with its verdict, "right"."""
        return (one for one in self.predictions(records) if "right" in one and one.get("box") is not None)

    def cell(self, answer: dict) -> tuple[RgbImage, list[str]]:
        """What a contact sheet shows of an answer: a picture and the lines of its caption."""
        raise NotImplementedError(f"{type(self).__name__} has answers to show, but no cell")

    def sheets(self, records: Records, count: int) -> dict[str, Image.Image]:
        """{"right": …, "wrong": …}: sheets of up to `count` answers, evenly spaced; no sheet where there are none."""
        sheets, answers = {}, list(self.shown(records))
        for name, title in zip(("right", "wrong"), self.sheet_titles, strict=True):
            chosen = [answer for answer in answers if answer["right"] is (name == "right")]
            if number := min(count, len(chosen)):
                cells = [self.cell(chosen[place * len(chosen) // number]) for place in range(number)]
                heading = f"{title}: {number} of {len(chosen)}{self.sheet_unit}"
                sheets[name] = contact_sheet(heading, cells, self.sheet_note)
        return sheets


class ImageError(InputError):
    """An image that is missing, or not as it should be. kind: which of these, as reports say it."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@contextmanager
def image_file(path: Path) -> Iterator[None]:
    """What goes wrong with an image in the body is an ImageError of the kind that its record tells.

    Running out of memory is none.
    """
    try:
        yield
    except InputError as error:
        if out_of_memory(error):  # says nothing about the image: the run ends, and goes on with --resume
            raise
        raise ImageError("unreadable image" if path.is_file() else "missing image", str(error)) from error


def evaluate(task: Task, run: Run) -> tuple[Results, str] | None:
    """Run (or resume) a task: results and the summary line in the first process, None in the others.

    InputError: missing data or weights, a journal made with other settings.
    """
    with processes(run.launcher, run.device, run.local_rank) as group:
        done = evaluate_with(build_segmenter(task, run, group.device), task, run, group)
    if done is None:
        return None
    results, skipped = done
    metrics = ", ".join(f"{name} {figure(value)}" for name, value in results.metrics.items())
    return results, f"{task.name}, {run.preset}: {metrics} ({results.items} images); {skipped_line(skipped)}"


def evaluate_with(
    segmenter: TextRegionSegmenter, task: Task, run: Run, group: Processes
) -> tuple[Results, list[Skipped]] | None:
    """As `evaluate`, with models and processes that are there already: one task after another may use them.

    Returns the results and what was skipped in the first process, None in the others.
    """
    started, every = now(), task.items()
    selection = Selection.of(every, run.limit, run.images)
    items = selection.items
    identity = identity_of(segmenter, task, run, every)
    digests = group.gather(item_digests(items, task.files) if group.is_first else {})[0]
    work_dir = run.work_dir or default_folder(Path("out") / run.parent, run.preset, identity, run.resume)
    start, before = time.perf_counter(), Counter(segmenter.timer.seconds)
    resumes = (run.resume, group, digests, run.resume_anyway)
    with locked(work_dir, group), Journal.start(work_dir / "journal", identity, *resumes) as journal:
        todo = journal.left(items)
        _ask(task, segmenter, items, todo, journal, group)
        records = journal.collect(group)
        records = {item: records[item] for item in items}
        per_stage = sum_seconds(group.gather(dict(Counter(segmenter.timer.seconds) - before)))
        seconds = {"total": max(group.gather(time.perf_counter() - start)), "per_stage": per_stage}
        if not group.is_first:
            return None
        skipped, metrics = task.skipped(records), task.metrics(records)
        if not task.scored(records):
            metrics = dict.fromkeys(metrics, math.nan)
        read = {item: record for item, record in records.items() if "unreadable" not in record}
        results = Results(
            task=task.name,
            benchmark=task.benchmark,
            backbone=run.preset,
            metrics=metrics,
            items=len(read),
            config=identity["settings"],
            recipe=identity["settings"]["model"]["config"]["recipe"],
            per_class=task.parts(records),
            part=task.part,
            skipped=[one.row() for one in skipped],
            seconds=seconds,
            measured=len(todo),
            processes=group.count,
            device=describe_device(segmenter.device),
            identity=identity,
            selection=selection.told(digests),
            marks=marks_of(selection, run.model, {}, journal.differing),
            resumed_anyway=journal.differing,
            started=started,
        )
        results.save(work_dir, [{"id": item, **task.image_row(item, record)} for item, record in read.items()])
        _save_more(task, run, work_dir, records)
    return results, skipped


def identity_of(segmenter: TextRegionSegmenter, task: Task, run: Run, items: Sequence[str]) -> dict:
    """Everything that decides the numbers of a task. items: all its images."""
    settings = {"task": task.name, "model": describe(segmenter, run), "data": task.settings()}
    configuration = run.model.get("model_cfg")
    files = {"model_cfg": Path(configuration) if configuration else None}
    weights = segmenter_weights(segmenter, task.uses_regionspot)
    return run_identity(settings, data_identity(task.roots(), items, files), weights)


def _save_more(task: Task, run: Run, work_dir: Path, records: Records) -> None:
    """Predictions and contact sheets, where they are asked for."""
    if run.save_predictions:
        lines = [json.dumps(line, ensure_ascii=False) for line in task.predictions(records)]
        write_atomically(work_dir / "predictions.jsonl", "".join(f"{line}\n" for line in lines).encode())
        if task.coco_results:
            array = ",\n".join(lines)
            write_atomically(work_dir / "coco_results.json", f"[{array}]\n".encode())
    if run.visualize:
        for name, sheet in task.sheets(records, run.visualize).items():
            sheet.save(work_dir / f"{name}.png")


def _ask(
    task: Task, segmenter: TextRegionSegmenter, items: list[str], todo: list[str], journal: Journal, group: Processes
) -> None:
    """Answer this process's share of what is left, one image after another."""
    counts = sum((task.count(journal.done[item]) for item in items if item in journal.done), Counter())
    with tqdm(group.share(todo), desc=task.name, unit="image", disable=not group.is_first) as bar:
        for item in bar:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "the label .* is longer than the model reads")  # it is in `skipped`
                try:
                    record = task.answer(segmenter, item)
                except ImageError as error:
                    record = {"unreadable": [error.kind, str(error)]}
            journal.add(item, record)
            counts += task.count(record)
            bar.set_postfix_str(task.running(counts))


def build_segmenter(task: Task, run: Run, device: str) -> TextRegionSegmenter:
    """The preset's models with the task's published arguments, then the run's own.

    The tiny world's models keep their own scale and recipe: they were trained for these.
    """
    chosen = dict(task.published)
    if find_preset(run.preset).backbone == TINY_WORLD:
        chosen = {key: value for key, value in chosen.items() if key not in ("scale", "recipe")}
    chosen = {**chosen, **run.model, "dense_fallback": False, "device": device}
    segmenter = TextRegionSegmenter.from_preset(run.preset, **chosen)
    if run.mask_cache is not None:
        segmenter.mask_generator = CachedMasks(segmenter.mask_generator, run.mask_cache)
    return segmenter


def describe(segmenter: TextRegionSegmenter, run: Run) -> dict:
    """What of the model decides the numbers: JSON-able."""
    given = {key: str(value) for key, value in run.model.items() if key not in PLACES}
    return {"preset": run.preset, "given": given, **segmenter.settings()}


# ---------------------------------------------------------------------- command lines


def shared_arguments(parser: Parser, published: str, proposes: bool = True) -> None:
    """Flags that all programs have. published: what the published evaluation used, for the help; "" if there was none.

    proposes: whether regions are proposed, so that their masks can be kept.
    """
    add_model_flags(parser)
    add_option_flags(parser, f"as published, {published}; preset tiny: its own" if published else "the preset's own")
    add = parser.add_argument_group("the run").add_argument
    add("--work-dir", type=Path, metavar="DIR", help="results, journal, pictures (default out/TASK/PRESET-IDENTITY)")
    selection_flags(add)
    predictions = "also predictions.jsonl, masks as COCO RLE; of boxes with image ids also coco_results.json"
    add("--save-predictions", action="store_true", help=predictions)
    add("--visualize", type=positive, default=0, metavar="N", help="contact sheets of up to N right and N wrong cases")
    if proposes:
        add("--mask-cache", type=Path, metavar="DIR", help="keep the masks, and use those that are there")
    add("--launcher", choices=LAUNCHERS, help="default: pytorch when torchrun started this, else none")
    add("--local-rank", type=int, help=argparse.SUPPRESS)


def run_of(options: argparse.Namespace, task: str) -> Run:
    """The run that the flags describe. InputError for models that do not exist or flags that exclude each other."""
    preset = chosen_preset(options) or "clip-vit-l14-336"
    launcher = options.launcher or ("pytorch" if "TORCHELASTIC_RUN_ID" in os.environ else "none")
    names = ("limit", "images", "resume", "resume_anyway", "save_predictions", "visualize", "local_rank", "device")
    given = {name: getattr(options, name) for name in names}
    mask_cache = getattr(options, "mask_cache", None)
    places = {"parent": task, "mask_cache": mask_cache, "launcher": launcher}
    return Run(preset, options.work_dir, given_options(options), **places, **given)


def run_task(
    parser: Parser, make: Callable[[argparse.Namespace], Task], name: str, arguments: Sequence[str] | None
) -> int:
    """Parse, evaluate, print; returns the exit code (`run_program`): 1 when some images cannot be used, 2 for all."""
    options = parser.parse_args(arguments)

    def body() -> int:
        run = run_of(options, name)
        task = make(options)
        if run.work_dir is not None:
            output_folder(run.work_dir, "--work-dir")
        with resumable():
            done = evaluate(task, run)
        if done is None:
            return 0
        results, summary = done
        folder = Path(results.folder or ".")
        if results.without_numbers:
            raise nothing_measured(results.skipped, folder)
        print(f"{summary}\nwritten to {folder / 'results.json'}, results.md and images.csv beside it")
        return int(results.items < results.selection["count"])

    return run_program(body, GO_ON)


# ---------------------------------------------------------------------- small things that tasks need


def percent(share: float, whole: float) -> float:
    """100 * share / whole; NaN where there is nothing."""
    return 100 * share / whole if whole else math.nan


def long_notes(segmenter: TextRegionSegmenter, texts: Sequence[str]) -> list[list[str]]:
    """A note if the end of a sentence may be cut because the model reads no further; else none."""
    too_long = any(fills_context(text, segmenter.backbone.tokenizer) for text in texts)
    return [["long sentence", "its end may lie beyond the model's context", SCORED]] if too_long else []
