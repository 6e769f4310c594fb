"""Which images are labelled with which words: files, folders and globs; labels and boxes as flags or in files.

And what a result depends on: the segmenter's options, their full record, the image's content; and its fingerprint.
"""

import argparse
import glob
import json
import os
import reprlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np

from textregion.boxes import ANY_IMAGE, BoxesFile, GivenBoxes, read_boxes
from textregion.cli.class_lists import LISTS, SIGN, expand, read_labels_file, text_cache
from textregion.cli.flags import REGIONSPOT, default_source, given_options
from textregion.concepts import SAM3_CONCEPTS, ConceptLabeller
from textregion.config import fingerprint
from textregion.errors import InputError
from textregion.images import format_and_orientation
from textregion.index.memory import RegionMemory
from textregion.labels import merge_labels, split_labels
from textregion.masks import automatic_sources
from textregion.masks.given import mask_file
from textregion.outputs.folder import RUN_FILE
from textregion.regionspot.loading import TINY
from textregion.segmenter import TextRegionSegmenter
from textregion.storage import file_hash
from textregion.yaml_files import read_yaml

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
FORMAT = 3  # of the output folder; a new one makes all earlier results count as different
WEIGHTS = ("clip_checkpoint", "sam2_checkpoint", "sam3_checkpoint", "regionspot_checkpoint", "sam1_checkpoint")
EXTRAS = ("visualize_global_patch", "similarity_maps", "save_tokens", "top")  # flags that ask for further files


@dataclass(frozen=True)
class ImageJob:
    """One image to label."""

    image: Path
    labels: tuple[str, ...]


def gather_jobs(args: argparse.Namespace) -> list[ImageJob]:
    """Images with their labels, from --image/--image_list with --labels or --labels_file, or from --image_query_cfg.

    Labels of the same name are merged, which is said. An empty list means the drawn scene. InputError for anything
    that is missing or excludes each other.
    """
    paths = find_images(args.image_list)
    if args.labels and args.labels_file:
        raise InputError("got --labels and --labels_file, which exclude each other; leave one out")
    labels = read_labels_file(Path(args.labels_file)) if args.labels_file else None
    if args.labels:
        labels = expand([label for text in args.labels for label in split_labels(text)])
    labels = labels and distinct(labels)
    if args.image_query_cfg is not None:
        queries = read_query_cfg(Path(args.image_query_cfg))
        wanted = paths or list(queries)
        return [ImageJob(path, labels or distinct(find_query(queries, path), f"{path}: ")) for path in wanted]
    if paths and not labels:
        raise InputError("got an image but no labels; add --labels dog sofa …, --labels_file or --image_query_cfg")
    if not paths and (args.boxes or args.masks not in automatic_sources()):
        raise InputError("got --boxes or --masks but no image; add --image PHOTO")
    if labels and not paths:
        raise InputError("got labels but no image; add --image PHOTO, or leave both out for the drawn scene")
    return [ImageJob(path, labels or ()) for path in paths]


def distinct(labels: Sequence[str], whose: str = "") -> tuple[str, ...]:
    """Labels of different names (`merge_labels`); says which came more than once. whose: begins any line."""
    try:
        merged, repeated = merge_labels(labels)
    except InputError as error:
        raise InputError(f"{whose}{error}") from error
    if repeated:
        told = ", ".join(repeated[:5]) + ", …" * (len(repeated) > 5)
        print(f"note: {whose}labels named more than once, taken once: {told}", file=sys.stderr)
    return merged


def check_images(jobs: Sequence[ImageJob]) -> None:
    """InputError when no image has a header that can be read and a size within the bounds; a line for each of several.

    Looks only until one is found that does: the others are told in their turn.
    """
    errors = []
    for job in jobs:
        try:
            format_and_orientation(job.image)
            return
        except InputError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    for error in errors:
        print(f"skipped: {error}", file=sys.stderr)
    if errors:
        raise InputError(f"{len(jobs)} of {len(jobs)} images could not be labelled; see the lines above")


def check_masks(source: str, jobs: Sequence[ImageJob]) -> None:
    """InputError when one file of a folder of masks would serve two images, as a.npy a.png and a.jpg.

    One file that is given for all images serves them all, as those of a camera that stands still.
    """
    if source in automatic_sources() or not os.path.isdir(source):
        return
    image_of: dict[Path, Path] = {}
    for image in dict.fromkeys(job.image for job in jobs):
        if (file := mask_file(source, image)) is None:
            continue
        if (other := image_of.setdefault(file, image)) != image:
            files = [f"{other.name}{file.suffix}", f"{image.name}{file.suffix}"]
            remedy = "name the images differently" if files[0] == files[1] else f"name them {' and '.join(files)}"
            raise InputError(f"got {file} as masks of {other} and of {image}, expected a file for each: {remedy}")


def find_images(sources: Sequence[str]) -> list[Path]:
    """Image files that files, folders and globs name, in this order, each once; says what was passed over.

    A file named in full is taken whatever it is called, even when it is missing (the reader then says so). Of a
    folder (not its subfolders) or glob, sorted, the files with an ending of IMAGE_SUFFIXES are taken. InputError
    when there are none.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if os.path.isdir(path):  # the functions of os.path take any text for a path, however long or odd
            found += _images_among(path.iterdir(), str(path))
        elif glob.has_magic(source) and not os.path.exists(path):
            found += _images_among((Path(match) for match in glob.glob(source, recursive=True)), source)
        else:
            found.append(path)
    once: dict[str, Path] = {}
    for path in found:
        try:
            place = os.path.realpath(path)
        except ValueError:  # a path that cannot exist is its own place
            place = str(path)
        once.setdefault(place, path)
    if len(once) < len(found):
        print(f"{_count(len(found) - len(once), 'image')} named more than once: labelled once")
    return list(once.values())


def _images_among(paths: Iterable[Path], source: str) -> list[Path]:
    """The images among some paths, sorted; hidden files and what this program wrote do not count at all."""
    files = [p for p in sorted(paths) if p.is_file() and not p.name.startswith(".")]
    files = [p for p in files if not (p.parent / RUN_FILE).is_file()]
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise InputError(f"no image in {source}; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    other = len(files) - len(images)
    print(f"{source}: {_count(len(images), 'image')}" + (f", {_count(other, 'other file')} passed over" * bool(other)))
    return images


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def read_query_cfg(path: Path) -> dict[Path, list[str]]:
    """The YAML mapping image path -> list of labels, each taken as it stands, or one text (`split_labels`).

    Relative paths are looked up beside the YAML file too.
    """
    content = read_yaml(path, "a YAML file that maps image paths to lists of labels")
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds {type(content).__name__}, expected a mapping of image path -> list of labels")
    queries = {}
    for name, labels in content.items():
        labels = split_labels(labels) if isinstance(labels, str) else labels
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise InputError(f"{path}: got {reprlib.repr(labels)} for {name}, expected a list of labels")
        image, beside = Path(str(name)), path.parent / str(name)
        queries[beside if not isfile(image) and isfile(beside) else image] = [x.strip() for x in labels]
    return queries


def find_query(queries: dict[Path, list[str]], path: Path) -> list[str]:
    """Labels of an image by its path, or by its file name when that is unique."""
    matches = [labels for known, labels in queries.items() if known == path]
    matches = matches or [labels for known, labels in queries.items() if known.name == path.name]
    if len(matches) != 1:
        raise InputError(f"{len(matches)} entries for {path} in the query file, expected one; add it or give --labels")
    return matches[0]


def check_export(args: argparse.Namespace, jobs: Sequence[ImageJob]) -> None:
    """InputError for --export without images, and for --no_pictures without it or with flags that ask for more."""
    if args.export and not jobs:
        raise InputError("got --export but no image; add --image photos/ and --labels")
    if args.no_pictures and not args.export:
        raise InputError("got --no_pictures without --export, so nothing would be written; add --export coco, say")
    more = [name for name in (*EXTRAS, "boxes") if getattr(args, name)]
    if args.no_pictures and more:
        raise InputError(f"got --no_pictures and --{more[0]}, which asks for files of an image's folder; leave one out")


def boxes_of(args: argparse.Namespace, preset: str) -> BoxesFile | None:
    """The boxes of --boxes, of a file or the same for every image; None without. A single word without "," is a file.

    InputError in one line for what cannot be read, and for --method regionspot where there is no box or no head.
    """
    if args.method == "regionspot" and not args.boxes:
        raise InputError("got --method regionspot without boxes; add --boxes x1,y1,x2,y2 … or --boxes FILE")
    if args.method == "regionspot" and args.regionspot_checkpoint is None and preset != TINY:
        raise InputError(f"no RegionSpot head is shipped for preset {preset}; give one as --regionspot_checkpoint")
    if not args.boxes:
        return None
    if len(args.boxes) == 1 and (isfile(args.boxes[0]) or "," not in args.boxes[0]):
        return read_boxes(args.boxes[0])
    boxes = np.array([box_of(text) for text in args.boxes], np.float32)
    return BoxesFile(Path(), {ANY_IMAGE: GivenBoxes(boxes)})


def box_of(text: str) -> list[float]:
    """Four numbers from `x1,y1,x2,y2`."""
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise InputError(f"got the box {text!r}, expected x1,y1,x2,y2 in pixels, or a single file of boxes")
    return numbers


# ---------------------------------------------------------------------- what a result depends on


def segmenter_options(args: argparse.Namespace) -> dict[str, Any]:
    """Only what the user gave: everything else stays as the preset has it."""
    options = {**given_options(args), "device": args.device, **({"fast": True} if args.fast else {})}
    named = {word for text in args.labels or [] for word in split_labels(text)}
    if named & {SIGN + name for name in LISTS} and (folder := text_cache()) is not None:
        options["text_cache"] = folder
    own = default_source(args)
    if args.boxes and args.masks != own:
        raise InputError("got --boxes and --masks, which exclude each other; leave one out")
    if args.masks != own:
        options["mask_generator"] = args.masks if args.masks in automatic_sources() else None
    if args.method == "regionspot" and args.sam1_checkpoint is not None:
        options["mask_generator"] = None  # SAM v1 makes the masks, so no SAM 2 is fetched
    return options


def run_settings(
    segmenter: TextRegionSegmenter | ConceptLabeller,
    args: argparse.Namespace,
    preset: str,
    memory: RegionMemory | None = None,
) -> dict[str, Any]:
    """All settings of a run but the image and its labels, as JSON has them."""
    settings = {
        "preset": preset,
        **segmenter.settings(),
        "weights": {name: file_stamp(getattr(args, name)) for name in WEIGHTS},
        "model_cfg": args.model_cfg,
        "random_weights": args.random_weights,
        "fast": args.fast,
        "mask_source": args.masks if args.method != SAM3_CONCEPTS else None,
        "memory": memory and memory.settings(),
        "boxes": args.boxes and [file_hash(box) if isfile(box) else box for box in args.boxes],
        "method": args.method,
        "regionspot": {name: getattr(args, name) for name in REGIONSPOT if name not in WEIGHTS},
        "no_label": {name: getattr(args, name) for name in ("threshold", "unlabelled", "absent")},
        "extras": {name: getattr(args, name) for name in EXTRAS},
    }
    return json.loads(json.dumps(settings))


def job_fingerprint(settings: Mapping, job: ImageJob, image: str) -> str:
    """Short hash of all that the result of one image of a run depends on; image: its content hash."""
    source, masks = settings["mask_source"], None
    if source not in (None, *automatic_sources()) and (path := mask_file(source, job.image)) is not None:
        masks = file_hash(path)
    content = {"format": FORMAT, "settings": settings, "labels": job.labels, "image": image, "masks": masks}
    return fingerprint(content)


def file_stamp(path: str | None) -> dict | None:
    """Path, size and time of change of a weights file, which is too large to be hashed for every run."""
    if path is None:
        return None
    found = Path(path).stat() if Path(path).exists() else None
    return {"path": path} if found is None else {"path": path, "bytes": found.st_size, "changed": found.st_mtime_ns}
