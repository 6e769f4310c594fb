"""Photographs become folders of results, one after the other; any of them may fail, be there already, or be stopped."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from textregion.cli.boxes import BOXES_FILE, BoxFlags, name_boxes
from textregion.cli.folders import OutputError, clear_remains, output_names, read_run
from textregion.cli.jobs import Job
from textregion.cli.report import print_boxes, print_files, print_seconds, print_shares, spent
from textregion.cli.results import Extras, Found, write_results
from textregion.cli.settings import EXTRAS, file_hash, job_fingerprint, run_settings
from textregion.cli.summary import Row, print_table, write_summary
from textregion.errors import InputError
from textregion.images import load_image
from textregion.masks import automatic_sources, read_masks
from textregion.tiny.models import unknown_words
from textregion.types import RegionMasks, RegionTokens

TINY_NOTE = "tiny embedded models, trained on drawn scenes only: a demo and test bed, not a claim about photographs"


@dataclass(frozen=True)
class Session:
    """What all images of a run share. settings: as run.json records them."""

    segmenter: object
    args: argparse.Namespace
    preset: str
    settings: dict
    boxes: BoxFlags | None = None

    @property
    def note(self) -> str:
        """The line under every picture."""
        return TINY_NOTE if self.preset == "tiny" else f"preset {self.preset}"


def photographs(
    segmenter,
    jobs: Sequence[Job],
    output: Path,
    args: argparse.Namespace,
    preset: str,
    boxes: BoxFlags | None = None,
) -> None:
    """Label every image; one that cannot be read is reported and the others are still done.

    Raises InputError at the end when any failed. Stopped by Ctrl-C, a full disk or the like, it keeps what is
    finished and says how to go on.
    """
    if preset == "tiny" and (unknown := unknown_words(list(dict.fromkeys(w for job in jobs for w in job.labels)))):
        print(f"note: the tiny model never saw the words: {', '.join(unknown)}", file=sys.stderr)
    clear_remains(output)
    session = Session(segmenter, args, preset, run_settings(segmenter, args, preset), boxes)
    folders = [output / name for name in output_names([job.image for job in jobs])]
    if len(jobs) == 1:
        single(session, jobs[0], folders[0])
    else:
        batch(session, jobs, folders, output)


def single(session: Session, job: Job, folder: Path) -> None:
    """One image, told at length."""
    if earlier(session, job, folder) is not None:
        print(f"{job.image}: already finished with these settings: {folder}")
        return
    found, run = photograph(session, job, folder)
    print(f"{job.image}: {len(found.tokens)} regions -> {folder / 'picture.png'}")
    if BOXES_FILE in found.more_files:
        print_boxes(found.more_files[BOXES_FILE]["boxes"])
    print_shares(found.result, found.tokens.dense is not None)
    print_files(folder, run)
    print_seconds(run["seconds"])


def batch(session: Session, jobs: Sequence[Job], folders: Sequence[Path], output: Path) -> None:
    """Many images, a line each, then a table."""
    rows: list[Row] = []
    try:
        for job, folder in zip(tqdm(jobs, "images", unit="image"), folders, strict=True):
            rows.append(attempt(session, job, folder))
            tqdm.write(rows[-1].line(), file=sys.stderr if rows[-1].status == "failed" else sys.stdout)
    except (KeyboardInterrupt, OutputError):
        print(
            f"{len(rows)} of {len(jobs)} images dealt with; to go on: the same command with --resume", file=sys.stderr
        )
        raise
    finally:
        if rows:
            print_table(rows)
    write_summary(output, rows)
    failed = sum(row.status == "failed" for row in rows)
    if failed:
        raise InputError(f"{failed} of {len(jobs)} images could not be labelled; see the lines above")


def attempt(session: Session, job: Job, folder: Path) -> Row:
    """One image of a batch: done, there already, or failed. OutputError passes through: it would hit them all."""
    start = time.perf_counter()
    try:
        run, status = earlier(session, job, folder), "resumed"
        if run is None:
            (_, run), status = photograph(session, job, folder), "done"
    except OutputError:
        raise
    except InputError as error:
        return Row(str(job.image), str(folder), "failed", message=str(error))
    return Row.of_run(str(job.image), str(folder), status, run, time.perf_counter() - start)


def earlier(session: Session, job: Job, folder: Path) -> dict | None:
    """With --resume, the run.json of a finished folder of this very image, labels and settings; None otherwise."""
    run = read_run(folder) if session.args.resume and isfile(job.image) else None
    if run is None or run.get("fingerprint") != job_fingerprint(session.settings, job, file_hash(job.image)):
        return None
    return run


def photograph(session: Session, job: Job, folder: Path) -> tuple[Found, dict]:
    """Label one image and write its folder; returns what was found and what run.json says."""
    segmenter, before = session.segmenter, dict(session.segmenter.timer.seconds)
    image = load_image(job.image)
    content = file_hash(job.image)
    tokens, boxes = encode(session, job, image)
    result = segmenter.segment(tokens, job.labels)
    run = {
        "fingerprint": job_fingerprint(session.settings, job, content),
        "image": {"path": str(job.image), "sha256": content},
        "labels": list(job.labels),
        "settings": session.settings,
        "seconds": spent(segmenter.timer.seconds, before),
    }
    found = Found(job.image.name, image, tokens, result, job.labels, session.note, more_files=boxes)
    extras = Extras(**{name: getattr(session.args, name) for name in EXTRAS})
    run = write_results(folder, found, segmenter, extras, run)
    return found, {**run, "seconds": spent(segmenter.timer.seconds, before)}


def encode(session: Session, job: Job, image: np.ndarray) -> tuple[RegionTokens, dict]:
    """The image's regions; with --boxes one for every box, and the files that say what is in them."""
    segmenter, flags = session.segmenter, session.boxes
    if flags is None:
        return segmenter.encode_image(image, masks=given_masks(image, job.image, session.args)), {}
    given = flags.of(job.image)
    tokens = segmenter.encode_boxes(image, given.boxes, flags.method)
    return tokens, name_boxes(segmenter, image, tokens, given, job.labels, flags.method)


def given_masks(image: np.ndarray, path: Path, args: argparse.Namespace) -> RegionMasks | None:
    """The masks of a --masks file or folder; None leaves them to the mask generator."""
    if args.masks in automatic_sources():
        return None
    return read_masks(args.masks, image.shape[:2], path.stem)
