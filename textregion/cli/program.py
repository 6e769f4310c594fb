"""The demo program: a drawn scene, or photographs with labels, become folders of results and a few printed lines."""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from textregion import render
from textregion.cli.arguments import limits_of, parse_arguments
from textregion.cli.batch import RANDOM_WEIGHTS, DemoRun, Settings, photographs, print_files, print_shares
from textregion.cli.command_line import output_folder, run_program
from textregion.cli.engine_flags import engine_of
from textregion.cli.jobs import (
    ImageJob,
    boxes_of,
    check_export,
    check_images,
    check_masks,
    gather_jobs,
    segmenter_options,
)
from textregion.cli.models import list_presets
from textregion.cli.words import encode_words, templates_option
from textregion.concepts import SAM3_CONCEPTS, ConceptLabeller
from textregion.errors import InputError, at_least
from textregion.index.region_index import RegionIndex
from textregion.labeling import mean_iou
from textregion.outputs.folder import LabelledImage, clear_remains
from textregion.segmenter import TextRegionSegmenter
from textregion.tiny.scenes import draw_scene
from textregion.web.search import TableView
from textregion.web.server import serve


def run(args: argparse.Namespace, segmenter_class: type) -> int:
    """Do what the command line asks; returns the exit code. Raises InputError for anything the user can put right."""
    jobs = gather_jobs(args)
    if args.method == SAM3_CONCEPTS:
        return label_by_concepts(args, jobs)
    preset = args.preset or ("clip-vit-l14-336" if jobs else "tiny")
    output = output_folder(args.output)
    if args.visualize_global_patch and args.remove_global_patch is False:
        raise InputError("no global-patch scores to show: removal is off; drop --remove_global_patch False")
    check_export(args, jobs)
    boxes = boxes_of(args, preset)
    options = {**templates_option(args, preset), **segmenter_options(args)}
    check_images(jobs)
    check_masks(args.masks, jobs)
    settings = Settings(segmenter_class, args, preset, options, boxes)
    if jobs:
        return photographs(settings, jobs, output, engine_of(args))
    drawn_scene(settings.build(), args.seed, output)
    return 0


def label_by_concepts(args: argparse.Namespace, jobs: Sequence[ImageJob]) -> int:
    """SAM 3 asked for the words of every image; returns the exit code."""
    if not jobs:
        raise InputError(f"got --method {SAM3_CONCEPTS} but no image; add --image PHOTO and --labels")
    output = output_folder(args.output)
    check_export(args, jobs)
    check_images(jobs)
    return photographs(Settings(ConceptLabeller, args, SAM3_CONCEPTS, {}), jobs, output, engine_of(args))


def drawn_scene(run: DemoRun, seed: int, output: Path) -> None:
    """The demo without an image: draw scene number `seed`, whose labels are known, label it, compare, write."""
    segmenter, before = run.segmenter, dict(run.segmenter.timer.seconds)
    scene = draw_scene(at_least("--seed", seed, 0), distinct_colours=True)
    tokens = segmenter.encode_image(scene.image)
    encode_words(segmenter, scene.labels)
    labelled = run.label(tokens, scene.labels, scene.image, render.png_bytes(Image.fromarray(scene.image)))
    result = labelled["result"]
    uncovered = np.zeros(scene.label_map.shape, bool)
    known = render.overlay(scene.image, scene.label_map, result.palette, uncovered)
    job = ImageJob(Path(f"scene {seed}"), tuple(scene.labels))
    image = LabelledImage("scene.png", scene.image, tokens, **labelled, more_panels=[("truth", known)])
    clear_remains(output)
    folder = output / f"scene_{seed}"
    written = run.write(job, image, hashlib.sha256(scene.image.tobytes()).hexdigest(), folder, before)
    print(f"Drew scene {seed}, found {len(tokens)} regions, labelled every pixel: {folder / 'picture.png'}")
    print_shares(result, tokens)
    score = mean_iou(result.label_map, scene.label_map, len(scene.labels))
    print(f"mean IoU against the known truth: {score:.3f}")
    print_files(folder, written)
    print(f"({'; '.join(filter(None, [run.note, run.caution]))})")
    program = run.args.prog
    print(f"Next: another scene            {program} --seed {seed + 1}")
    print(f"      your photo, real weights {program} --image photo.jpg --labels dog sofa floor")


def serve_page(args: argparse.Namespace) -> None:
    """Serve the web page that the command line asks for. InputError for anything the user can put right."""
    if args.image_list or args.image_query_cfg or args.labels:
        raise InputError("with --serve images and labels are given on the page; leave --image, --labels, … out")
    if args.label_filter == "presence":
        raise InputError("label_filter presence is not for the page, which keeps no images; leave it out")
    if args.memory:
        raise InputError("got --memory with --serve, and the page has none; label images with it: leave --serve out")
    table = None
    if args.table is not None:
        index = RegionIndex.open(args.table, device=args.device)
        table = TableView(index, limits_of(args), args.image_root)
    preset = args.preset or (table.index.encoder.preset if table else "tiny")

    def build_segmenter() -> TextRegionSegmenter:
        return TextRegionSegmenter.from_preset(preset, **templates_option(args, preset), **segmenter_options(args))

    caution = RANDOM_WEIGHTS if args.random_weights else ""
    serve(build_segmenter, preset, limits_of(args), args.host, args.port, caution, table)


def main(arguments: Sequence[str] | None = None, prog: str = "TextRegionSegmenter.py") -> int:
    """Run the program; returns the exit code (`run_program`)."""

    def body() -> int:
        args = parse_arguments(arguments, prog)
        if not (args.list_presets or args.serve):
            return run(args, TextRegionSegmenter)
        if args.list_presets:
            print(list_presets())
        else:
            serve_page(args)
        return 0

    return run_program(body)
