"""The demo program: a drawn scene, or photographs with labels, become pictures and a few printed lines."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from tqdm import tqdm

from utils.command_line import output_folder
from utils.errors import InputError
from utils.images import load_image
from utils.masks import masks_from_boxes, read_masks
from utils.runtime import Stages
from utils.tinyworld.models import unknown_words
from utils.types import RegionMasks, RegionTokens, Segmentation
from utils.visualize import draw_regions, heat_map, sheet

GENERATORS = ("sam2", "slic")  # mask sources that need the image alone
TINY_NOTE = "tiny embedded models, trained on drawn scenes only: a demo and test bed, not a claim about photographs"


@dataclass(frozen=True)
class Job:
    """One image to label."""

    image: Path
    labels: tuple[str, ...]


def run(args: argparse.Namespace, segmenter_class: type) -> None:
    """Do what the command line asks. Raises InputError for anything the user can put right."""
    jobs = gather_jobs(args)
    preset = args.preset or ("clip-vit-l14-336" if jobs else "tiny")
    output = output_folder(args.output)
    if args.visualize_global_patch and args.remove_global_patch is False:
        raise InputError("no global-patch scores to show: removal is off; drop --remove_global_patch False")
    segmenter = segmenter_class.from_preset(preset, **segmenter_options(args))
    if jobs:
        photographs(segmenter, jobs, output, args, preset)
    else:
        drawn_scene(segmenter, args.seed, output, args.visualize_global_patch)


# ---------------------------------------------------------------------- what to do


def gather_jobs(args: argparse.Namespace) -> list[Job]:
    """Images with their labels, from --image/--image_list with --labels, or from the YAML --image_query_cfg."""
    paths = [Path(p) for p in [*([args.image] if args.image else []), *(args.image_list or [])]]
    if args.image_query_cfg:
        queries = read_query_cfg(Path(args.image_query_cfg))
        wanted = paths or list(queries)
        return [Job(path, tuple(args.labels or find_query(queries, path))) for path in wanted]
    if paths and not args.labels:
        raise InputError("got an image but no labels; add --labels dog sofa … or --image_query_cfg FILE.yaml")
    if not paths and (args.boxes or args.masks != "sam2"):
        raise InputError("got --boxes or --masks but no image; add --image PHOTO")
    if args.labels and not paths:
        raise InputError("got labels but no image; add --image PHOTO, or leave both out for the drawn scene")
    return [Job(path, tuple(args.labels)) for path in paths]


def read_query_cfg(path: Path) -> dict[Path, list[str]]:
    """The YAML mapping image path -> list of labels; relative paths are looked up beside the YAML file too."""
    if not path.is_file():
        raise InputError(f"no file {path}; expected a YAML file that maps image paths to lists of labels")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds {type(content).__name__}, expected a mapping of image path -> list of labels")
    queries = {}
    for name, labels in content.items():
        labels = labels.split(",") if isinstance(labels, str) else labels
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise InputError(f"{path}: got {labels!r} for {name}, expected a list of labels")
        image = Path(str(name))
        beside = path.parent / image
        queries[beside if not image.is_file() and beside.is_file() else image] = [x.strip() for x in labels]
    return queries


def find_query(queries: dict[Path, list[str]], path: Path) -> list[str]:
    """Labels of an image by its path, or by its file name when that is unique."""
    matches = [labels for known, labels in queries.items() if known == path]
    matches = matches or [labels for known, labels in queries.items() if known.name == path.name]
    if len(matches) != 1:
        raise InputError(f"{len(matches)} entries for {path} in the query file, expected one; add it or give --labels")
    return matches[0]


def segmenter_options(args: argparse.Namespace) -> dict:
    """Only what the user gave: everything else stays as the preset has it."""
    names = [
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
    ]
    options = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.random_weights:
        options["random_weights"] = True
    if args.boxes and args.masks != "sam2":
        raise InputError("got --boxes and --masks, which exclude each other; leave one out")
    if args.masks != "sam2":
        options["mask_generator"] = "slic" if args.masks == "slic" else None
    if args.remove_global_patch is False:
        options["global_patch_threshold"] = None
    elif args.global_patch_threshold is not None:
        options["global_patch_threshold"] = args.global_patch_threshold
    return options


def output_names(paths: Sequence[Path]) -> list[str]:
    """One stable folder name per image: its stem, numbered where two images share it."""
    seen: dict[str, int] = {}
    names = []
    for path in paths:
        seen[path.stem] = seen.get(path.stem, 0) + 1
        names.append(path.stem if seen[path.stem] == 1 else f"{path.stem}_{seen[path.stem]}")
    return names


# ---------------------------------------------------------------------- the two demos


def photographs(segmenter, jobs: list[Job], output: Path, args: argparse.Namespace, preset: str) -> None:
    """Label every image; one that cannot be read is reported and the others are still done.

    Raises InputError at the end when any failed.
    """
    if preset == "tiny" and (unknown := unknown_words(list(dict.fromkeys(w for job in jobs for w in job.labels)))):
        print(f"note: the tiny model never saw the words: {', '.join(unknown)}", file=sys.stderr)
    names, failures = output_names([job.image for job in jobs]), []
    for job, name in zip(tqdm(jobs, "images", disable=len(jobs) < 2), names, strict=True):
        try:
            photograph(segmenter, job, output / name, args, preset)
        except InputError as error:
            failures.append(error)
            if len(jobs) > 1:
                tqdm.write(f"skipped: {error}", file=sys.stderr)
    if len(jobs) == 1 and failures:
        raise failures[0]
    if failures:
        raise InputError(f"{len(failures)} of {len(jobs)} images could not be labelled; see the lines above")


def photograph(segmenter, job: Job, folder: Path, args: argparse.Namespace, preset: str) -> None:
    """Label one image, write its pictures, print what was found."""
    image = load_image(job.image)
    before = dict(segmenter.stages.seconds)
    tokens = segmenter.encode_image(image, masks=given_masks(segmenter, image, job.image, args))
    result = segmenter.segment(tokens, job.labels)
    note = {"tiny": TINY_NOTE}.get(preset, f"preset {preset}")
    write_pictures(folder, image, tokens, result, segmenter, args.visualize_global_patch, [], note)
    print(f"{job.image}: {len(tokens)} regions -> {folder / 'picture.png'}")
    print_shares(result, segmenter.dense_fallback)
    print_stages(segmenter.stages, before)


def given_masks(segmenter, image: np.ndarray, path: Path, args: argparse.Namespace) -> RegionMasks | None:
    """The masks of --boxes or of a --masks file or folder; None leaves them to the mask generator."""
    if args.boxes:
        return masks_from_boxes(segmenter, image, [box_of(text) for text in args.boxes])
    if args.masks in GENERATORS:
        return None
    return read_masks(args.masks, image.shape[:2], path.stem)


def box_of(text: str) -> list[float]:
    """Four numbers from `x1,y1,x2,y2`."""
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise InputError(f"got the box {text!r}, expected x1,y1,x2,y2 in pixels")
    return numbers


def drawn_scene(segmenter, seed: int, output: Path, show_global: bool) -> None:
    """Draw a scene whose truth is known, label it, compare."""
    from utils.tinyworld.scenes import draw_scene

    scene = draw_scene(seed, distinct_colours=True)
    tokens = segmenter.encode_image(scene.image)
    result = segmenter.segment(tokens, scene.labels)
    score = mean_iou(result.label_map, scene.label_map, len(scene.labels))
    truth = Segmentation(
        scene.label_map, np.ones(scene.label_map.shape, np.float32), scene.label_map * 0, result.labels
    )
    folder = output / f"scene_{seed}"
    panels = [("truth", truth.overlay(scene.image))]
    write_pictures(folder, scene.image, tokens, result, segmenter, show_global, panels, TINY_NOTE)
    Image.fromarray(scene.image).save(folder / "scene.png")
    print(f"Drew scene {seed}, found {len(tokens)} regions, labelled every pixel: {folder / 'picture.png'}")
    print_shares(result, segmenter.dense_fallback)
    print(f"mean IoU against the known truth: {score:.3f}")
    print_stages(segmenter.stages, {})
    print(f"({TINY_NOTE})")
    program = ".venv/bin/python TextRegionSegmenter.py"
    print(f"Next: another scene            {program} --seed {seed + 1}")
    print(f"      your photo, real weights {program} --image photo.jpg --labels dog sofa floor")


def mean_iou(prediction: np.ndarray, truth: np.ndarray, labels: int) -> float:
    """Mean over the labels present in the truth of intersection / union; both maps (H, W) of label indices."""
    counts = np.bincount(truth.ravel() * labels + prediction.ravel(), minlength=labels**2).reshape(labels, labels)
    shared = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - shared
    present = counts.sum(1) > 0
    return float((shared[present] / union[present]).mean())


# ---------------------------------------------------------------------- output


def write_pictures(
    folder: Path,
    image: np.ndarray,
    tokens: RegionTokens,
    result: Segmentation,
    segmenter,
    show_global: bool,
    more_panels: list,
    note: str,
) -> None:
    """picture.png (image, regions, labels, legend), labels.png (label map) and, if asked, global_patches.png."""
    panels = [
        ("image", image),
        ("regions", draw_regions(image, tokens.masks)),
        ("labels", result.overlay(image)),
    ]
    legend = [
        (colour, f"{name} {share:.0%}")
        for colour, (name, share) in zip(result.palette, result_shares(result), strict=True)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sheet([*panels, *more_panels], legend, note).save(folder / "picture.png")
        result.save_png(folder / "labels.png")
        if show_global and tokens.patch_scores is not None:
            scores = tokens.patch_scores.cpu().numpy()
            write_heat_map(folder, image, scores, segmenter.global_patch_threshold)
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error}); choose another --output") from error


def write_heat_map(folder: Path, image: np.ndarray, scores: np.ndarray, threshold: float) -> None:
    """global_patches.png: the difference score of every patch (Ph, Pw), hatched where the patch was removed."""
    picture = heat_map(image, scores, scores < threshold)
    note = f"score d in [{scores.min():.2f}, {scores.max():.2f}]; hatched: removed, d < {threshold:g}"
    sheet([("image", image), ("global-patch score", picture)], note=note).save(folder / "global_patches.png")


def result_shares(result: Segmentation) -> list[tuple[str, float]]:
    """(label, share of pixels) in the order of the labels, duplicates kept."""
    counts = np.bincount(result.label_map.ravel(), minlength=len(result.labels))
    return [(name, n / result.label_map.size) for name, n in zip(result.labels, counts, strict=True)]


def print_shares(result: Segmentation, dense_fallback: bool) -> None:
    """A line per label with its share of the pixels, and one for pixels that no region covers."""
    width = max(len(name) for name in result.labels)
    for name, share in result_shares(result):
        print(f"  {name:<{width}}  {share:6.1%}")
    bare = float((result.region_map < 0).mean())
    if bare > 0:
        how = "labelled from dense features" if dense_fallback else f"counted as {result.labels[0]}, the first label"
        print(f"  ({bare:.1%} of the pixels lie in no region: {how})")


def print_stages(stages: Stages, before: dict[str, float]) -> None:
    """Seconds per stage since `before`."""
    spent = {name: seconds - before.get(name, 0.0) for name, seconds in stages.seconds.items()}
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in spent.items())
    print(f"seconds: {parts}; {sum(spent.values()):.2f} in all")
