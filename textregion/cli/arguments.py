"""The command line of TextRegionSegmenter.py."""

import argparse
from collections.abc import Sequence

from textregion.boxes import MOST_BOXES
from textregion.cli.class_lists import LISTS, SIGN
from textregion.cli.command_line import BOOLEAN, Parser, positive
from textregion.cli.datasets import EXPORTED
from textregion.cli.engine_flags import add_engine_flags
from textregion.cli.flags import (
    CONCEPT_OPTIONS,
    add_concept_flags,
    add_memory_flags,
    add_model_flags,
    add_option_flags,
    add_regionspot_flags,
    chosen_preset,
    default_source,
    mask_source_flag,
)
from textregion.concepts import SAM3_CONCEPTS
from textregion.errors import InputError
from textregion.images import MAX_PIXELS, MAX_SIDE
from textregion.labels import MOST_LABELS
from textregion.outputs.export import EXPORTERS
from textregion.outputs.folder import DATASET, RESULT_FILES
from textregion.regionspot.loading import METHODS
from textregion.web.cached_segmenter import MEGABYTE, Limits
from textregion.web.server import DEFAULT_PORT

OF_CONCEPTS = ("sam3_checkpoint", *(field.name for field in CONCEPT_OPTIONS), "unlabelled")  # options it has
WITH_CONCEPTS = (  # all flags that mean something with it
    *("images", "image", "image_list", "labels", "labels_file", "image_query_cfg", "method", *OF_CONCEPTS),
    *("clip_download_root", "device", "engine", "address", "workers"),
    *("output", "resume", "export", "export_of", "no_pictures"),
)
DESCRIPTION = (
    "Label every pixel of an image with your own words. Without arguments: a drawn scene and tiny embedded models, no "
    "download. With images and --labels: your photos and real weights."
)
EXAMPLES = """examples:
  {prog}
  {prog} --image photo.jpg --labels dog sofa floor
  {prog} --image photo.jpg --labels dog sofa --preset clip-vit-b16
  {prog} --image photos/ --labels_file labels.txt --resume
  {prog} --image photos/ --labels dog sofa --engine ray          (many processes, or --address of a cluster)
  {prog} --image_query_cfg queries.yaml     (YAML: image path -> list of labels)
  {prog} --image photo.jpg --labels dog sofa --boxes detections.json
  {prog} --image photos/ --labels dog sofa --export coco yolo

what is written into every image's folder:
{files}

exit code: 0 all done, 1 some images were left out, 2 bad input, 130 stopped by Ctrl-C"""


def parse_arguments(arguments: Sequence[str] | None = None, prog: str = "TextRegionSegmenter.py") -> argparse.Namespace:
    """The demo's command line. InputError for flags that exclude each other."""
    width = max(map(len, RESULT_FILES))
    files = "\n".join(f"  {name:<{width}}  {what}" for name, what in RESULT_FILES.items())
    epilog = EXAMPLES.format(prog=prog if prog.startswith("textregion") else f"python {prog}", files=files)
    parser = Parser(prog=prog, description=DESCRIPTION, epilog=epilog)
    if prog.startswith("textregion"):  # the published program has flags only
        parser.add_argument("images", nargs="*", metavar="IMAGE", help="images, folders, globs in quotes, as --image")
    _add_inputs(parser)
    add_model_flags(parser)
    fast = (
        "smaller SAM 2.1, 12 x 12 clicks for 16 x 16, 7 prompts a label, bfloat16 on a CPU that has it: other results"
    )
    parser.add_argument("--fast", action="store_true", help=f"{fast} (docs/performance.md says how different)")
    _add_sources(parser)
    add_option_flags(parser)
    add_memory_flags(parser)
    add_regionspot_flags(parser)
    add_concept_flags(parser)
    add_engine_flags(parser)
    _add_outputs(parser)
    _add_page(parser)
    args = parser.parse_args(arguments)
    _check_concepts(args, parser, arguments)
    args.prog = prog if prog.startswith("textregion") else f".venv/bin/python {prog}"
    args.preset, args.clip_pretrained, args.clip_architecture = chosen_preset(args), None, None
    args.masks = args.masks or default_source(args)
    args.image_list = [*getattr(args, "images", []), *([args.image] if args.image else []), *(args.image_list or [])]
    return args


def _check_concepts(args: argparse.Namespace, parser: Parser, arguments: Sequence[str] | None) -> None:
    """InputError for a flag that is given and that --method has no use for, as far as sam3-concepts goes."""
    blank = argparse.Namespace(**dict.fromkeys(vars(args)))  # so that no flag has its default
    given = {name for name, value in vars(parser.parse_args(arguments, blank)).items() if value is not None}
    if args.method != SAM3_CONCEPTS:
        if wrong := [field.name for field in CONCEPT_OPTIONS if field.name in given]:
            raise InputError(f"got --{wrong[0]} without --method {SAM3_CONCEPTS}, which it is for; add it")
        return
    own = ", ".join(f"--{name}" for name in OF_CONCEPTS)
    for name in vars(args):
        if name in given and name not in WITH_CONCEPTS:
            raise InputError(
                f"got --{name} with --method {SAM3_CONCEPTS}, which has no use for it; leave it out (it has {own})"
            )
    if args.export_of == "regions":
        raise InputError(f"got --export_of regions with --method {SAM3_CONCEPTS}, which has none; leave it out")


def _add_inputs(parser: Parser) -> None:
    add = parser.add_argument_group("what to label").add_argument
    size = f"at most {MAX_PIXELS // 10**6} million pixels, {MAX_SIDE} on a side"
    image = f"an image (PNG, JPEG, WebP, …; {size}), a folder of images or a glob in quotes"
    labels = (
        """labels, also as "dog, sofa"; with a comma of its own '"red, round star"'; synonyms as "sofa; couch"; """
        f"whole lists by name: {', '.join(SIGN + name for name in LISTS)}, @FILE; at most {MOST_LABELS}"
    )
    add("--image", metavar="FILE", help=image)
    add("--image_list", nargs="+", metavar="FILE", help="several images, folders or globs")
    add("-l", "--labels", nargs="+", metavar="WORD", help=labels)
    add("--labels_file", metavar="FILE", help="text file with one label per line instead; lines with # are left out")
    add("--image_query_cfg", metavar="YAML", help="file that maps image paths to lists of labels")
    least = "least probability of a label, 0 to 1; pixels below it get the first label (0)"
    add("--threshold", type=float, default=0.0, metavar="P", help=least)
    none = "pixels in no region or below --threshold have no label: 255 in labels.png, not drawn, not exported (off)"
    add("--unlabelled", action="store_true", help=none)
    absent = "pixels of labels that score no better in the image than words of other things have no label (off)"
    add("--absent", action="store_true", help=absent)
    add("--seed", type=int, default=10, help="which scene to draw when no image is given (default 10)")
    add("--list-presets", action="store_true", help="print the table of presets and stop")


def _add_sources(parser: Parser) -> None:
    group = parser.add_argument_group("which regions")
    more = ", or a file or folder of masks: PNG (black and white, or labels), COCO JSON, npy, npz (the preset's)"
    mask_source_flag(group, more)
    boxes = (
        "boxes x1,y1,x2,y2 in pixels, or one FILE of them (COCO annotations or results, a detector's dict by "
        f"image, a JSON list, CSV), at most {MOST_BOXES} an image: "
        "SAM segments each, nothing else; boxes.json and boxes.png say what is in them"
    )
    method = (
        "textregion (default): region tokens; regionspot: --boxes recognised by a trained head, shipped for preset "
        f"tiny, else --regionspot_checkpoint; {SAM3_CONCEPTS}: SAM 3 asked for the words, without regions"
    )
    group.add_argument("--boxes", nargs="+", metavar="BOX", help=boxes)
    group.add_argument("--method", choices=(*METHODS, SAM3_CONCEPTS), default="textregion", help=method)


def _add_outputs(parser: Parser) -> None:
    add = parser.add_argument_group("what is written").add_argument
    add("--output", default="outputs", metavar="DIR", help="one folder per image is made in here (outputs/)")
    resume = "pass over images that are finished there: same content, labels and settings (off: all are done again)"
    add("--resume", action="store_true", help=resume)
    patches = "also global_patches.png, the score of every patch (False)"
    add("--visualize_global_patch", **BOOLEAN, default=False, help=patches)
    maps = "also one picture per label of its similarity with every region (off; at most 40)"
    add("--similarity_maps", action="store_true", help=maps)
    add("--save_tokens", action="store_true", help="also tokens.safetensors, for RegionTokens.load (off)")
    top = "best labels told of every region in regions.json and regions.png (5 and 3)"
    add("--top", type=positive, metavar="N", help=top)
    formats = f"also one data set of all images, in DIR/{DATASET}/: {', '.join(EXPORTERS)}; several at once (none)"
    add("--export", nargs="+", choices=tuple(EXPORTERS), metavar="FORMAT", help=formats)
    of = "its masks: labels (default), all pixels of a label in one mask, or regions, each under its best label"
    add("--export_of", choices=EXPORTED, default=EXPORTED[0], help=of)
    add("--no_pictures", action="store_true", help="with --export: the data set alone, no folder per image (off)")


def _add_page(parser: Parser) -> None:
    add = parser.add_argument_group("web page").add_argument
    add("--serve", action="store_true", help="open a page in the browser for images and labels (preset tiny)")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where it listens (127.0.0.1, this machine only)")
    port_help = f"its port, 0 for any free one (the first free one from {DEFAULT_PORT} on)"
    add("--port", type=port, metavar="N", help=port_help)
    add("--table", metavar="TABLE", help="with --serve: also search a table of textregion index")
    add("--image_root", metavar="DIR", help="where that table's images are now, if they have moved")
    limits = Limits()
    most, kept = limits.max_bytes // MEGABYTE, limits.cache_bytes // MEGABYTE
    disk, session = limits.disk_bytes // MEGABYTE, limits.session_bytes // MEGABYTE
    for flag, default, text in (
        ("max_pixels", limits.max_pixels, "larger images are refused by the page"),
        ("max_megabytes", most, "larger image files are refused by the page"),
        ("cache_megabytes", kept, "memory for encoded images, so that new labels need no new encoding"),
        ("queue_size", limits.queue_size, "requests that may wait while one is answered; further ones are told so"),
        ("disk_megabytes", disk, "of all files that the page keeps; those used longest ago are deleted"),
        ("session_megabytes", session, "of one browser's uploads; likewise"),
    ):
        add(f"--{flag}", type=positive, default=default, metavar="N", help=f"{text} ({default})")


def port(text: str) -> int:
    """Argument type: a port, 0 to 65535."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a port from 1 to 65535, or 0 for any free one")
    return int(text)


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits the command line asks for."""
    max_bytes, cache_bytes = args.max_megabytes * MEGABYTE, args.cache_megabytes * MEGABYTE
    disk = {"disk_bytes": args.disk_megabytes * MEGABYTE, "session_bytes": args.session_megabytes * MEGABYTE}
    return Limits(args.max_pixels, max_bytes, cache_bytes=cache_bytes, queue_size=args.queue_size, **disk)
