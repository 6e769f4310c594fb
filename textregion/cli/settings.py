"""What a result depends on: the segmenter's options, their full record, the image's content; and its fingerprint."""

import argparse
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from os.path import isfile
from pathlib import Path

from textregion.cli.jobs import Job
from textregion.errors import InputError
from textregion.masks import automatic_sources
from textregion.masks.precomputed import SUFFIXES

FORMAT = 1  # of the output folder; a new one makes all earlier results count as different
GIVEN = (  # flags that are passed on as the segmenter's options when they are given
    "clip_checkpoint",
    "clip_download_root",
    "sam2_checkpoint",
    "model_cfg",
    "points_per_side",
    "resize_method",
    "scale",
    "crop_size",
    "device",
    "dtype",
    "regionspot_checkpoint",
    "sam1_checkpoint",
    "regionspot_side",
    "regionspot_isolate",
)
WEIGHTS = ("clip_checkpoint", "sam2_checkpoint", "regionspot_checkpoint", "sam1_checkpoint")
RESOLVED = (  # the segmenter's attributes that decide its results
    "scale",
    "crop_size",
    "resize_method",
    "antialias",
    "global_patch_threshold",
    "mask_type",
    "pool_feature",
    "upsample_times",
    "mask_size",
    "global_splits",
    "dense_fallback",
)
EXTRAS = ("visualize_global_patch", "similarity_maps", "save_tokens")  # flags that ask for further files
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "sam2", "numpy", "opencv-python-headless", "pillow")


def segmenter_options(args: argparse.Namespace) -> dict:
    """Only what the user gave: everything else stays as the preset has it."""
    options = {name: value for name in GIVEN if (value := getattr(args, name)) is not None}
    if args.random_weights:
        options["random_weights"] = True
    if args.boxes and args.masks != "sam2":
        raise InputError("got --boxes and --masks, which exclude each other; leave one out")
    if args.masks != "sam2":
        options["mask_generator"] = args.masks if args.masks in automatic_sources() else None
    if args.method == "regionspot" and args.sam1_checkpoint is not None:
        options["mask_generator"] = None  # SAM v1 makes the masks, so no SAM 2 is fetched
    if args.remove_global_patch is False:
        options["global_patch_threshold"] = None
    elif args.global_patch_threshold is not None:
        options["global_patch_threshold"] = args.global_patch_threshold
    return options


def run_settings(segmenter, args: argparse.Namespace, preset: str) -> dict:
    """All settings of a run but the image and its labels, as JSON has them."""
    backbone = segmenter.backbone
    settings = {
        "preset": preset,
        "backbone": backbone.name,
        "recipe": vars(segmenter.recipe),
        **{name: getattr(segmenter, name) for name in RESOLVED},
        "device": segmenter.device.type,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "weights": {name: file_stamp(getattr(args, name)) for name in WEIGHTS},
        "model_cfg": args.model_cfg,
        "points_per_side": args.points_per_side,
        "random_weights": args.random_weights,
        "masks": args.masks,
        "boxes": args.boxes and [file_hash(Path(box)) if isfile(box) else box for box in args.boxes],
        "method": args.method,
        "regionspot_side": args.regionspot_side,
        "regionspot_isolate": args.regionspot_isolate,
        "extras": {name: getattr(args, name) for name in EXTRAS},
    }
    return json.loads(json.dumps(settings))


def fingerprint(settings: Mapping, labels: tuple[str, ...], image: str, masks: str | None = None) -> str:
    """Short hash of all a result depends on; image, masks: content hashes of the image and of its given masks."""
    content = {"format": FORMAT, "settings": settings, "labels": labels, "image": image, "masks": masks}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def job_fingerprint(settings: Mapping, job: Job, image: str) -> str:
    """The fingerprint of one image of a run; `image`: its content hash."""
    masks = None if settings["masks"] in automatic_sources() else mask_file(Path(settings["masks"]), job.image)
    return fingerprint(settings, job.labels, image, None if masks is None else file_hash(masks))


def mask_file(source: Path, image: Path) -> Path | None:
    """The file of a --masks file or folder that belongs to an image; None when there is none."""
    candidates = [source, *(source / f"{image.stem}{suffix}" for suffix in SUFFIXES)]
    return next((path for path in candidates if isfile(path)), None)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content. InputError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})") from error
    return digest.hexdigest()


def file_stamp(path: str | None) -> dict | None:
    """Path, size and time of change of a weights file, which is too large to be hashed for every run."""
    if path is None:
        return None
    found = Path(path).stat() if Path(path).exists() else None
    return {"path": path} if found is None else {"path": path, "bytes": found.st_size, "changed": found.st_mtime_ns}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
