"""Images become folders of results, one after the other; any may fail, be finished already, or be stopped.

A single image is told at length; of a batch every image has a line, and at the end there is a table: on the screen,
summary.csv and summary.md.
"""

import argparse
import csv
import io
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from textregion.boxes import BoxesFile
from textregion.cli.datasets import export
from textregion.cli.flags import concept_thresholds
from textregion.cli.jobs import EXTRAS, ImageJob, job_fingerprint, run_settings
from textregion.cli.words import encode_words
from textregion.concepts import SAM3_CONCEPTS, ConceptLabeller
from textregion.devices import resolve_device
from textregion.engines import Engine, Lost
from textregion.errors import InputError
from textregion.images import ImageInput, load_image
from textregion.index.memory import RegionMemory
from textregion.labeling import unlabel
from textregion.labels import LabelPrompts
from textregion.masks import automatic_sources, read_masks
from textregion.outputs.annotations import label_shares, no_region, no_region_note, told_labels, unlabelled_share
from textregion.outputs.folder import (
    BOXES_FILE,
    MOST_SIMILARITY_MAPS,
    RECORDS,
    LabelledImage,
    OutputError,
    clear_remains,
    name_boxes,
    output_names,
    read_run,
    write_results,
    writing,
)
from textregion.render import markdown_table, text_table
from textregion.storage import file_hash, set_aside, write_atomically
from textregion.tiny.models import unknown_words
from textregion.types import RegionTokens, Segmentation

RANDOM_WEIGHTS = "random weights: labels and scores mean nothing"
TINY_NOTE = "tiny embedded models, trained on drawn scenes only: a demo and test bed, not a claim about photographs"
MOST_LABELS = 40  # told on the screen; all are in labels.json
MOST_BOXES = 40  # told too; all are in boxes.json
MOST_ROWS = 40  # on the screen; the files have all
HEADER = ["image", "size", "regions", "labels", "time", "status"]


class DemoRun:
    """What all images of a run share, and how one of them is labelled and written.

    segmenter: a TextRegionSegmenter. args: the command line. boxes: those that it gives. memory: of --memory.
    """

    def __init__(
        self,
        segmenter,
        args: argparse.Namespace,
        preset: str,
        boxes: BoxesFile | None = None,
        memory: RegionMemory | None = None,
    ) -> None:
        self.segmenter, self.args, self.preset, self.boxes, self.memory = segmenter, args, preset, boxes, memory
        self.settings = run_settings(segmenter, args, preset, memory)  # as run.json records them
        trained = preset == "tiny" and not args.random_weights
        self.note = TINY_NOTE if trained else f"preset {preset}"  # the line under picture.png
        self.caution = RANDOM_WEIGHTS if args.random_weights else ""  # what every picture and file says

    def earlier(self, job: ImageJob, folder: Path) -> dict | None:
        """With --resume, the run.json of a finished folder of this image, labels and settings; None otherwise."""
        run = read_run(folder) if self.args.resume and isfile(job.image) else None
        if run is None or run.get("fingerprint") != job_fingerprint(self.settings, job, file_hash(job.image)):
            return None
        return run

    def photograph(self, job: ImageJob, folder: Path) -> tuple[LabelledImage, dict]:
        """Label one image and write its folder; returns what was found and what run.json says.

        With --boxes there is one region for every box, and files that say what is in them.
        """
        before, pixels = dict(self.segmenter.timer.seconds), load_image(job.image)
        content, source, box_files = file_hash(job.image), self.args.masks, {}
        encode_words(self.segmenter, job.labels)
        if self.boxes is not None:
            given, method = self.boxes.of(job.image), self.args.method
            tokens = self.segmenter.encode_boxes(pixels, given.boxes, method)
            box_files = name_boxes(self.segmenter, pixels, tokens, given, job.labels, method, self.caution)
        elif source in automatic_sources():
            tokens = self.segmenter.encode_image(pixels)
        else:
            tokens = self.segmenter.encode_image(pixels, masks=read_masks(source, pixels.shape[:2], job.image))
        told = {**self.label(tokens, job.labels, pixels, job.image), "source": job.image, "more_files": box_files}
        image = LabelledImage(job.image.name, pixels, tokens, **told)
        return image, self.write(job, image, content, folder, before)

    def label(self, tokens: RegionTokens, labels: Sequence[str], pixels: np.ndarray, source: ImageInput) -> dict:
        """The label map of an image as --threshold, --unlabelled, --absent and --memory ask for it; by field of
        LabelledImage. source: the image's file.
        """
        none = {name: getattr(self.args, name) for name in ("unlabelled", "absent")}
        memory = {"memory": self.memory, "source": source} if self.memory else {}
        result = self.segmenter.segment(tokens, labels, self.args.threshold, **none, **memory, pixels=pixels)
        names = LabelPrompts.parse(labels).names
        absent = [names[i] for i in self.segmenter.absent_labels(tokens, labels)] if self.args.absent else []
        least = self.args.threshold if self.args.unlabelled else 0.0
        kept = {"result": result, "labels": labels, "least": least, "absent": absent}
        absent_note = f"found nowhere by --absent: {', '.join(absent)}" if absent else ""
        return {**kept, "note": self.note, "caution": "; ".join(filter(None, [self.caution, absent_note]))}

    def write(self, job: ImageJob, image: LabelledImage, content: str, folder: Path, before: Mapping) -> dict:
        """Write the folder; returns what run.json says, with the seconds that writing took.

        content: SHA-256 of the image. before: seconds by stage before its work began.
        """

        def spent() -> dict[str, float]:
            now = self.segmenter.timer.seconds
            return {name: round(value - before.get(name, 0.0), 4) for name, value in now.items()}

        run = {
            "fingerprint": job_fingerprint(self.settings, job, content),
            "image": {"path": str(job.image), "sha256": content},
            "labels": list(job.labels),
            "settings": self.settings,
            "seconds": spent(),
        }
        extras = {name: getattr(self.args, name) for name in EXTRAS}
        only_masks = self.args.no_pictures
        return {
            **write_results(folder, image, self.segmenter, run, **extras, only_masks=only_masks),
            "seconds": spent(),
        }


@dataclass(frozen=True)
class Settings:
    """What a DemoRun is made of, in this process or in a worker: models travel as their names.

    segmenter_class: a TextRegionSegmenter's. options: of its `from_preset`.
    """

    segmenter_class: type
    args: argparse.Namespace
    preset: str
    options: Mapping[str, Any]
    boxes: BoxesFile | None = None

    def build(self) -> DemoRun:
        """Load the models, and the memory before them, which may not fit."""
        if self.args.method == SAM3_CONCEPTS:
            thresholds = concept_thresholds(self.args)
            labeller = ConceptLabeller.from_weights(
                self.args.sam3_checkpoint, self.args.clip_download_root, **thresholds
            )
            return ConceptRun(labeller.to(resolve_device(self.args.device)), self.args)
        memory = None
        if self.args.memory is not None:
            key = {"key": self.args.memory_key} if self.args.memory_key else {}
            checkpoint = self.args.memory_key_checkpoint
            options = {**key, "key_checkpoint": checkpoint, "device": self.args.device}
            memory = RegionMemory.open(self.args.memory, self.preset, **options)
        segmenter = self.segmenter_class.from_preset(self.preset, **self.options)
        if memory is not None:
            memory.check(segmenter)
        return DemoRun(segmenter, self.args, self.preset, self.boxes, memory)


class ConceptRun(DemoRun):
    """The same with SAM 3 asked for the words (`--method sam3-concepts`): labels without regions.

    labeller: in the place of a segmenter, whose records and times it has too.
    """

    def __init__(self, labeller: ConceptLabeller, args: argparse.Namespace) -> None:
        super().__init__(labeller, args, SAM3_CONCEPTS)
        self.note = "SAM 3 asked for the words, without regions"

    def photograph(self, job: ImageJob, folder: Path) -> tuple[LabelledImage, dict]:
        """Label one image and write its folder, without files of regions; as of DemoRun."""
        before, pixels, content = dict(self.segmenter.timer.seconds), load_image(job.image), file_hash(job.image)
        result = self.segmenter.segment(pixels, job.labels)
        if self.args.unlabelled:
            result = unlabel(result, result.region_map < 0)
        image = LabelledImage(job.image.name, pixels, None, result, job.labels, self.note, source=job.image)
        return image, self.write(job, image, content, folder, before)


class JobWorker:
    """What an engine runs for a batch: an image and its folder in, its Outcome out."""

    def __init__(self, settings: Settings) -> None:
        self.run = settings.build()

    def load(self, item: tuple[ImageJob, Path]) -> tuple[ImageJob, Path]:
        """Nothing: an image is read where its earlier results are looked for."""
        return item

    def work(self, loaded: list[tuple[ImageJob, Path]]) -> list["Outcome"]:
        """One after the other."""
        return [attempt(self.run, *item) for item in loaded]


def photographs(settings: Settings, jobs: Sequence[ImageJob], output: Path, engine: Engine) -> int:
    """Label every image; one that cannot be read is reported and the others are still done.

    Returns the exit code: 0, or 1 when some failed; InputError at the end when all did. Stopped by Ctrl-C, a full disk
    or the like, it keeps what is finished and says how to go on.
    """
    words = list(dict.fromkeys(word for job in jobs for word in job.labels))
    if settings.preset == "tiny" and (unknown := unknown_words(words)):
        print(f"note: the tiny model never saw the words: {', '.join(unknown)}", file=sys.stderr)
    place = output / RECORDS if settings.args.no_pictures else output
    clear_remains(place)
    folders = [place / name for name in output_names([job.image for job in jobs])]
    if len(jobs) > 1:
        results = engine.run(partial(JobWorker, settings), list(zip(jobs, folders, strict=True)))
        code, finished = batch(results, jobs, folders, output)
    else:
        code, finished = single(settings.build(), jobs[0], folders[0]), folders[0]
    if settings.args.export:
        made_with = (read_run(finished) or {}).get("settings", {})
        caution = RANDOM_WEIGHTS if settings.args.random_weights else ""
        export(output, jobs, folders, made_with, settings.args.export, settings.args.export_of, caution)
    return code


def single(run: DemoRun, job: ImageJob, folder: Path) -> int:
    """One image, told at length; returns the exit code."""
    if run.earlier(job, folder) is not None:
        print(f"{job.image}: already finished with these settings: {folder}")
        return 0
    image, written = run.photograph(job, folder)
    made = "" if run.args.no_pictures else f" -> {folder / 'picture.png'}"
    print(f"{job.image}: {'labelled' if image.tokens is None else f'{len(image.tokens)} regions'}{made}")
    if BOXES_FILE in image.more_files:
        print_boxes(image.more_files[BOXES_FILE]["boxes"])
    print_shares(image.result, image.tokens)
    if not run.args.no_pictures:
        print_files(folder, written)
    if run.caution:
        print(f"({run.caution})")
    return 0


def batch(
    results: Iterator[tuple[int, "Outcome | Lost"]], jobs: Sequence[ImageJob], folders: Sequence[Path], output: Path
) -> tuple[int, Path]:
    """Many images, a line each, then a table: (exit code, folder of one that is finished).

    results: of an engine's run over the jobs.
    """
    found: dict[int, Outcome] = {}
    try:
        for place, result in tqdm(results, "images", len(jobs), unit="image"):
            if isinstance(result, Lost):
                result = Outcome(str(jobs[place].image), str(folders[place]), "failed", message=result.reason)
            found[place] = result
            tqdm.write(result.line(), file=sys.stderr if result.status == "failed" else sys.stdout)
    except (KeyboardInterrupt, OutputError):
        told = f"{len(found)} of {len(jobs)} images dealt with; to go on: the same command with --resume"
        print(told, file=sys.stderr)
        raise
    finally:
        done = [found[place] for place in sorted(found)]
        if done:
            print_table(done)
    write_summary(output, done)
    failed = sum(outcome.status == "failed" for outcome in done)
    told = f"{failed} of {len(jobs)} images could not be labelled; see the lines above"
    if failed == len(jobs):
        raise InputError(told)
    if failed:
        print(f"error: {told}", file=sys.stderr)
    return int(failed > 0), next(Path(outcome.folder) for outcome in done if outcome.status != "failed")


def attempt(run: DemoRun, job: ImageJob, folder: Path) -> "Outcome":
    """One image of a batch: done, there already, or failed. OutputError passes through: it would hit them all."""
    start = time.perf_counter()
    try:
        written, status = run.earlier(job, folder), "resumed"
        if written is None:
            (_, written), status = run.photograph(job, folder), "done"
    except OutputError:
        raise
    except InputError as error:
        return Outcome(str(job.image), str(folder), "failed", message=str(error))
    return Outcome.of_run(str(job.image), str(folder), status, written, time.perf_counter() - start)


def print_shares(result: Segmentation, tokens: RegionTokens | None) -> None:
    """A line per label with its share of the pixels, and one for pixels that no region covers, be it all of them."""
    if nothing := no_region_note(result, tokens):
        print(f"  {nothing}")
    shares = label_shares(result, tokens)
    shown = [shares[i] for i in told_labels(shares, MOST_LABELS)]
    width = max((len(name) for name, _ in shown), default=0)
    for name, share in shown:
        print(f"  {name:<{width}}  {share:6.1%}")
    if len(shown) < len(shares):
        print(f"  ({len(shares) - len(shown)} more labels: labels.json)")
    if (without := unlabelled_share(result)) > 0:
        print(f"  ({without:.1%} of the pixels have no label)")
    bare = float(((result.region_map < 0) & (result.label_map >= 0)).mean())
    if bare > 0 and not nothing:
        first = f"counted as {result.labels[0]}, the first label"
        how = first if tokens is None or tokens.dense is None else "labelled from dense features"
        why = "reach --fallback_thresh with no label" if tokens is None else "lie in no region"
        print(f"  ({bare:.1%} of the pixels {why}: {how})")


def print_boxes(rows: Sequence[dict]) -> None:
    """A line per box with its best label and score; of very many only the first."""
    for row in rows[:MOST_BOXES]:
        best = row["labels"][0] if row["labels"] else None
        said = f"{best['name']} {best['score']:.0%}" if best else "no token: no patch lies in its mask"
        print(f"  box {row['box']} at {', '.join(f'{value:g}' for value in row['xyxy'])}: {said}")
    if len(rows) > MOST_BOXES:
        print(f"  ({len(rows) - MOST_BOXES} more boxes: boxes.json)")


def print_files(folder: Path, run: Mapping) -> None:
    """Which files there are, what was left out, where an earlier run is kept; seconds per stage and in all."""
    listed = sorted({name.split("/")[0] + "/" * ("/" in name) for name in run["files"]})
    print(f"files in {folder}: {', '.join(listed)}")
    if "kept" in run:
        print(f"note: {folder} held something else or another run; kept as {run['kept']}")
    maps = run.get("similarity_maps")
    if maps and maps["written"] < maps["labels"]:
        print(f"note: similarity maps of the first {MOST_SIMILARITY_MAPS} of {maps['labels']} labels only")
    parts = ", ".join(f"{name} {value:.2f}" for name, value in run["seconds"].items())
    print(f"seconds: {parts}; {sum(run['seconds'].values()):.2f} in all")


# ---------------------------------------------------------------------- the table of a batch


@dataclass(frozen=True)
class Outcome:
    """What became of one image of a batch, as summary.csv has it.

    status: done, resumed or failed; message: why, or where an earlier run is kept. regions: None of a method without
    them. seconds: of this run.
    """

    image: str
    folder: str
    status: str
    width: int = 0
    height: int = 0
    regions: int | None = 0
    labels: str = ""
    seconds: float = 0.0
    message: str = ""

    @classmethod
    def of_run(cls, image: str, folder: str, status: str, run: Mapping, seconds: float) -> "Outcome":
        """From what run.json holds."""
        sizes = {name: run[name] for name in ("width", "height", "regions")}
        nothing = "no label" if run["regions"] is None else no_region(run["regions"])
        labels = ", ".join(f"{name} {share:.0%}" for name, share in run["shares"][:3]) or nothing
        kept = f"an earlier run is kept as {run['kept']}" if "kept" in run else ""
        message = "; ".join(filter(None, [run["note"], kept]))
        return cls(image, folder, status, **sizes, labels=labels, seconds=seconds, message=message)

    def line(self) -> str:
        """The outcome as one line of running text."""
        if self.status == "failed":
            return f"skipped: {self.message}"
        regions = "" if self.regions is None else f": {self.regions} regions"
        head = f"{self.image}{regions} -> {self.folder}"
        return f"{head} ({'; '.join(filter(None, [self.status, self.labels, f'{self.seconds:.2f} s', self.message]))})"

    def cells(self) -> list[str]:
        """The columns of HEADER; the messages stand in lines above the table on the screen."""
        size = f"{self.width} x {self.height}" if self.width else ""
        regions = "" if self.regions is None or not self.width else str(self.regions)
        return [self.image, size, regions, self.labels, f"{self.seconds:.2f} s", self.status]


def totals(outcomes: Sequence[Outcome]) -> str:
    """`8 images: 5 done, 2 resumed, 1 failed; 12.3 s`."""
    counts = {status: sum(o.status == status for o in outcomes) for status in ("done", "resumed", "failed")}
    told = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    return f"{len(outcomes)} images: {told}; {sum(o.seconds for o in outcomes):.1f} s"


def print_table(outcomes: Sequence[Outcome]) -> None:
    """The table on the screen; of a long one the failures only."""
    shown = outcomes if len(outcomes) <= MOST_ROWS else [o for o in outcomes if o.status == "failed"][:MOST_ROWS]
    print(f"\n{text_table(HEADER, [[_clip(cell) for cell in outcome.cells()] for outcome in shown])}")
    if len(shown) < len(outcomes):
        print(f"({len(outcomes) - len(shown)} more rows)")
    print(totals(outcomes))


def _clip(text: str, width: int = 56) -> str:
    """One line of at most `width` characters; of a long path the end is what tells it apart."""
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width // 3]}…{text[-(width - width // 3 - 1) :]}"


def write_summary(output: Path, outcomes: Sequence[Outcome]) -> None:
    """summary.csv and summary.md; an earlier summary with other images than these is kept under another name."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [f.name for f in fields(Outcome)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(outcome), "seconds": f"{outcome.seconds:.2f}"} for outcome in outcomes)
    table = markdown_table([*HEADER, "note"], [[*outcome.cells(), outcome.message] for outcome in outcomes])
    files = {"summary.csv": text.getvalue(), "summary.md": "\n".join([*table, "", totals(outcomes), ""])}
    with writing(output):
        if not _images_of(output / "summary.csv") <= {outcome.image for outcome in outcomes}:
            kept = [set_aside(output / name) for name in files if (output / name).exists()]
            print(f"note: an earlier summary of other images is kept as {', '.join(map(str, kept))}")
        for name, content in files.items():
            write_atomically(output / name, content.encode("utf-8", "backslashreplace"))
    print(f"the same table: {output / 'summary.md'}, {output / 'summary.csv'}")


def _images_of(path: Path) -> set[str]:
    """The images an earlier summary.csv tells of; a file that is not one counts as other images."""
    if not path.exists():
        return set()
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {""}
    return {row.get("image") or "" for row in rows}
