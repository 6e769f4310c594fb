"""What a result depends on: the segmenter's options, their full record, the image's content; and its fingerprint."""

import argparse
import json
from collections.abc import Mapping
from os.path import isfile
from pathlib import Path
from typing import Any

from textregion.cli.flags import REGIONSPOT, given_options
from textregion.cli.jobs import ImageJob
from textregion.config import fingerprint
from textregion.errors import InputError
from textregion.masks import automatic_sources
from textregion.masks.given import SUFFIXES
from textregion.segmenter import TextRegionSegmenter
from textregion.storage import file_hash

FORMAT = 2  # of the output folder; a new one makes all earlier results count as different
WEIGHTS = ("clip_checkpoint", "sam2_checkpoint", "regionspot_checkpoint", "sam1_checkpoint")
EXTRAS = ("visualize_global_patch", "similarity_maps", "save_tokens")  # flags that ask for further files


def segmenter_options(args: argparse.Namespace) -> dict[str, Any]:
    """Only what the user gave: everything else stays as the preset has it."""
    options = {**given_options(args), "device": args.device}
    if args.boxes and args.masks != "sam2":
        raise InputError("got --boxes and --masks, which exclude each other; leave one out")
    if args.masks != "sam2":
        options["mask_generator"] = args.masks if args.masks in automatic_sources() else None
    if args.method == "regionspot" and args.sam1_checkpoint is not None:
        options["mask_generator"] = None  # SAM v1 makes the masks, so no SAM 2 is fetched
    return options


def run_settings(segmenter: TextRegionSegmenter, args: argparse.Namespace, preset: str) -> dict[str, Any]:
    """All settings of a run but the image and its labels, as JSON has them."""
    settings = {
        "preset": preset,
        **segmenter.settings(),
        "weights": {name: file_stamp(getattr(args, name)) for name in WEIGHTS},
        "model_cfg": args.model_cfg,
        "random_weights": args.random_weights,
        "mask_source": args.masks,
        "boxes": args.boxes and [file_hash(box) if isfile(box) else box for box in args.boxes],
        "method": args.method,
        "regionspot": {name: getattr(args, name) for name in REGIONSPOT if name not in WEIGHTS},
        "extras": {name: getattr(args, name) for name in EXTRAS},
    }
    return json.loads(json.dumps(settings))


def result_fingerprint(settings: Mapping, labels: tuple[str, ...], image: str, masks: str | None = None) -> str:
    """Short hash of all a result depends on; image, masks: content hashes of the image and of its given masks."""
    return fingerprint({"format": FORMAT, "settings": settings, "labels": labels, "image": image, "masks": masks})


def job_fingerprint(settings: Mapping, job: ImageJob, image: str) -> str:
    """The fingerprint of one image of a run; `image`: its content hash."""
    source = settings["mask_source"]
    masks = None if source in automatic_sources() else mask_file(Path(source), job.image)
    return result_fingerprint(settings, job.labels, image, None if masks is None else file_hash(masks))


def mask_file(source: Path, image: Path) -> Path | None:
    """The file of a --masks file or folder that belongs to an image; None when there is none."""
    candidates = [source, *(source / f"{image.stem}{suffix}" for suffix in SUFFIXES)]
    return next((path for path in candidates if isfile(path)), None)


def file_stamp(path: str | None) -> dict | None:
    """Path, size and time of change of a weights file, which is too large to be hashed for every run."""
    if path is None:
        return None
    found = Path(path).stat() if Path(path).exists() else None
    return {"path": path} if found is None else {"path": path, "bytes": found.st_size, "changed": found.st_mtime_ns}
