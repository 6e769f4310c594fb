"""The demo program: a drawn scene, or photographs with labels, become folders of results and a few printed lines."""

import argparse

from utils.command_line import output_folder
from utils.demo.boxes import box_flags
from utils.demo.drawn_scene import drawn_scene
from utils.demo.jobs import gather_jobs
from utils.demo.photographs import photographs
from utils.demo.settings import segmenter_options
from utils.errors import InputError


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
