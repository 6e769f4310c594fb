"""The command line of TextRegionSegmenter.py."""

import argparse
from collections.abc import Sequence

from textregion.cli.command_line import Parser, Sides, boolean
from textregion.crops import RESIZE_METHODS
from textregion.masks import automatic_sources
from textregion.outputs.folder import RESULT_FILES
from textregion.presets import preset_for
from textregion.regionspot.loading import METHODS
from textregion.web.arguments import add_arguments


def files_table() -> str:
    """One line per result file."""
    width = max(map(len, RESULT_FILES))
    return "\n".join(f"  {name:<{width}}  {what}" for name, what in RESULT_FILES.items())


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The demo's command line."""
    parser = Parser(
        prog="TextRegionSegmenter.py",
        description="Label every pixel of an image with your own words. Without arguments: a drawn scene and tiny "
        "embedded models, no download. With --image and --labels: your photo and real weights.",
        epilog="examples:\n  python TextRegionSegmenter.py\n"
        "  python TextRegionSegmenter.py --image photo.jpg --labels dog sofa floor\n"
        "  python TextRegionSegmenter.py --image photo.jpg --labels dog sofa --preset clip-vit-b16\n"
        "  python TextRegionSegmenter.py --image photos/ --labels_file labels.txt --resume\n"
        "  python TextRegionSegmenter.py --image_query_cfg queries.yaml     (YAML: image path -> list of labels)\n"
        "  python TextRegionSegmenter.py --image photo.jpg --labels dog sofa --boxes detections.json\n\n"
        f"what is written into every image's folder:\n{files_table()}",
    )
    add = parser.add_argument_group("what to label").add_argument
    add(
        "--image",
        metavar="FILE",
        help="an image (PNG, JPEG, WebP, …; at most 100 million pixels), a folder of images or a glob in quotes",
    )
    add("--image_list", nargs="+", metavar="FILE", help="several images, folders or globs")
    add("--labels", nargs="+", metavar="WORD", help='labels; synonyms in one label as "sofa; couch"')
    add("--labels_file", metavar="FILE", help="text file with one label per line instead; lines with # are left out")
    add("--image_query_cfg", metavar="YAML", help="file that maps image paths to lists of labels")
    add("--seed", type=int, default=10, help="which scene to draw when no image is given (default 10)")
    add = parser.add_argument_group("which models").add_argument
    add("--preset", metavar="NAME", help="backbone, SAM 2 and recipe by name (default clip-vit-l14-336)")
    add("--list-presets", action="store_true", help="print the table of presets and stop")
    add(
        "--clip_pretrained",
        help="openai, laion2b_s32b_b79k, siglip2 or meta: selects a preset (with the next)",
    )
    add(
        "--clip_architecture",
        help="e.g. ViT-L/14@336px, ViT-B/16, ViT-H-14, ViT-L-16-SigLIP2-256, PE-Core-L14-336",
    )
    add("--clip_checkpoint", metavar="FILE", help="image-text weights on disk")
    add("--clip_download_root", metavar="DIR", help="where image-text weights are looked for and kept")
    add("--sam2_checkpoint", metavar="FILE", help="SAM 2.1 weights on disk")
    add("--model_cfg", metavar="SIZE|YAML", help="SAM 2.1 tiny, small, base+ or large, or the file's own configuration")
    add(
        "--random_weights",
        action="store_true",
        help="real architectures, random weights: a dry run, no download",
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps (default auto)")
    add(
        "--dtype",
        default="auto",
        help="auto (float16 on CUDA, else float32), float32/fp32, float16/fp16, bfloat16/bf16",
    )
    add = parser.add_argument_group("how").add_argument
    add(
        "--masks",
        default="sam2",
        metavar="SOURCE",
        help=f"{', '.join(automatic_sources())}, or a file or folder of masks: PNG label map, COCO-RLE JSON, npy, npz "
        "(sam2)",
    )
    add(
        "--boxes",
        nargs="+",
        metavar="BOX",
        help="boxes x1,y1,x2,y2 in pixels, or one FILE of them (COCO annotations or results, a detector's dict by "
        "image, a JSON list, CSV): SAM segments each, nothing else; boxes.json and boxes.png say what is in them",
    )
    add(
        "--method",
        choices=METHODS,
        default="textregion",
        help="what recognises --boxes: textregion (default, training-free) or regionspot, a trained head: shipped for "
        "preset tiny, else --regionspot_checkpoint",
    )
    add(
        "--points_per_side",
        type=int,
        metavar="N",
        help="SAM 2 clicks per side (16); more finds smaller things",
    )
    add("--scale", nargs="+", action=Sides, metavar="N", help="fit the image into these two sides (2016 672)")
    add("--crop_size", type=int, metavar="N", help="side of a crop in pixels (the model's own)")
    add("--resize_method", choices=RESIZE_METHODS, help="tiles plus whole image, or one squashed crop")
    add(
        "--remove_global_patch",
        type=boolean,
        nargs="?",
        const=True,
        metavar="BOOL",
        help="leave out patches that look like everything (True)",
    )
    add("--global_patch_threshold", type=float, metavar="D", help="they score below this (0.07)")
    add(
        "--visualize_global_patch",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="BOOL",
        help="also global_patches.png, the score of every patch (False)",
    )
    add = parser.add_argument_group("with --method regionspot").add_argument
    add(
        "--regionspot_checkpoint", metavar="FILE", help="a head you trained, or a published .pth (shipped head of tiny)"
    )
    add("--sam1_checkpoint", metavar="FILE", help="SAM v1 ViT-B weights, which published heads need")
    add("--regionspot_side", type=int, metavar="N", help="224 or 336: CLIP's input side of a published ViT-L/14 head")
    add(
        "--regionspot_isolate",
        action="store_true",
        default=None,
        help="a box's result does not depend on the other boxes (off, as published)",
    )
    add = parser.add_argument_group("what is written").add_argument
    add("--output", default="outputs", metavar="DIR", help="one folder per image is made in here (outputs/)")
    add(
        "--resume",
        action="store_true",
        help="pass over images that are finished there: same content, labels and settings (off: all are done again)",
    )
    add(
        "--similarity_maps",
        action="store_true",
        help="also one picture per label of its similarity with every region (off; at most 40)",
    )
    add("--save_tokens", action="store_true", help="also tokens.safetensors, for RegionTokens.load (off)")
    add_arguments(parser)
    args = parser.parse_args(arguments)
    if args.clip_pretrained or args.clip_architecture:
        if args.preset:
            parser.error("give either --preset or --clip_pretrained/--clip_architecture, not both")
        args.preset = preset_for(args.clip_pretrained, args.clip_architecture)
    return args
