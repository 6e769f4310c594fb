"""The demo program: a drawn scene, or photographs with labels, become folders of results and a few printed lines."""

import argparse
from collections.abc import Sequence

from textregion.cli.arguments import parse_arguments
from textregion.cli.boxes import box_flags
from textregion.cli.command_line import output_folder, run_program
from textregion.cli.drawn_scene import drawn_scene
from textregion.cli.jobs import gather_jobs
from textregion.cli.photographs import photographs
from textregion.cli.presets import list_presets
from textregion.cli.settings import segmenter_options
from textregion.errors import InputError
from textregion.segmenter import TextRegionSegmenter


def run(args: argparse.Namespace, segmenter_class: type) -> None:
    """Do what the command line asks. Raises InputError for anything the user can put right."""
    jobs = gather_jobs(args)
    preset = args.preset or ("clip-vit-l14-336" if jobs else "tiny")
    output = output_folder(args.output)
    if args.visualize_global_patch and args.remove_global_patch is False:
        raise InputError("no global-patch scores to show: removal is off; drop --remove_global_patch False")
    boxes = box_flags(args, preset)
    segmenter = segmenter_class.from_preset(preset, **segmenter_options(args))
    if jobs:
        photographs(segmenter, jobs, output, args, preset, boxes)
    else:
        drawn_scene(segmenter, output, args, preset)


def main(arguments: Sequence[str] | None = None, prog: str = "TextRegionSegmenter.py") -> int:
    """Run the program; returns the exit code (`run_program`)."""

    def body() -> None:
        args = parse_arguments(arguments, prog)
        if args.list_presets:
            print(list_presets())
        elif args.serve:
            from textregion.web.server import serve

            serve(args, TextRegionSegmenter)
        else:
            run(args, TextRegionSegmenter)

    return run_program(body)
