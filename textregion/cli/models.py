"""`textregion presets` and `textregion weights`: the table of models, and their files for machines without internet."""

from collections.abc import Sequence
from pathlib import Path

from textregion.backbones import find_spec
from textregion.cli.command_line import Parser, run_program
from textregion.errors import InputError
from textregion.masks.sam2_model import find_size
from textregion.presets import TINY_WORLD, assets_of, find_preset, needs_of, preset_names
from textregion.render import markdown_table, text_table
from textregion.tiny.models import clip_config
from textregion.weights import CHECKSUMS, fetch, verify

WEIGHTS_HELP = """Fetching the weights of presets for machines without internet.

    python -m textregion weights --preset clip-vit-l14-336 --to weights     # on a machine with internet
    python -m textregion weights --verify weights                           # after copying, anywhere
    python TextRegionSegmenter.py --clip_download_root weights …            # looks there, for SAM 2 too

Environment: TEXTREGION_CLIP and TEXTREGION_SAM2 name a weight file, or a folder made by `--to`, of the
image-text model and of SAM 2. HF_HUB_OFFLINE=1 never asks the network; HF_HOME moves the cache.
"""
COLUMNS = (
    "preset",
    "open_clip model",
    "D",
    "crop",
    "masks",
    "points",
    "download",
    "needs",
    "published result (theirs)",
)


def preset_row(name: str) -> tuple[str, ...]:
    """A preset under COLUMNS: name, model, embedding width D, crop side in pixels, mask source with the size of its SAM
    2.1, points per side (– where nobody clicks), download size, what it needs besides, figures of papers (theirs, not
    measured here). The size of masks of transformers is not in the download.
    """
    preset = find_preset(name)
    points = str(preset.masks["points_per_side"]) if preset.mask_source != "eomt" else "–"
    if preset.backbone == TINY_WORLD:
        config = clip_config()
        sizes = str(config["embed_dim"]), str(config["vision_cfg"]["image_size"])
        return name, "tiny world", *sizes, "tiny world", points, "none", "–", "–"
    spec, masks, megabytes = find_spec(preset.backbone), preset.mask_source, 0
    if masks == "sam2":
        sam2 = find_size(preset.sam2)
        masks, megabytes = f"SAM 2.1 {sam2.name}", sam2.megabytes
    download = f"{(spec.megabytes + megabytes) / 1000:.1f} GB"
    needs = "; ".join(needs_of(name)) or "–"
    sizes = str(spec.width), str(spec.crop_size)
    return name, " ".join(spec.open_clip), *sizes, masks, points, download, needs, preset.published or "–"


def list_presets() -> str:
    """The table in aligned columns, for a terminal; the two wide columns, mostly empty, as lists below it."""
    rows, (*narrow, needs, published) = [preset_row(name) for name in preset_names()], COLUMNS
    told = [text_table(narrow, [row[: len(narrow)] for row in rows])]
    for heading, place in ((needs, -2), (published, -1)):
        told += ["", f"{heading}:", *(f"  {row[0]}: {row[place]}" for row in rows if row[place] != "–")]
    return "\n".join(told)


def readme_table() -> str:
    """The table for docs/models.md, which holds it between `<!-- presets -->` and `<!-- /presets -->`."""
    return "\n".join(markdown_table(COLUMNS, [(f"`{name}`", *preset_row(name)[1:]) for name in preset_names()]))


def presets(arguments: Sequence[str]) -> int:
    """The program that prints the table; returns its exit code."""
    parser = Parser(prog="textregion presets", description="Print the table of presets.")
    parser.add_argument("--markdown", action="store_true", help="as it stands in docs/models.md")
    options = parser.parse_args(arguments)
    return run_program(lambda: print(readme_table() if options.markdown else list_presets()))


def weights(arguments: Sequence[str]) -> int:
    """The program that fetches or checks weights; returns its exit code: 0, or 2 after one line on stderr."""
    parser = Parser(prog="python -m textregion weights", description=WEIGHTS_HELP)
    parser.add_argument("--preset", nargs="+", metavar="NAME", help="presets whose files are wanted")
    parser.add_argument("--to", metavar="DIR", default="weights", help="folder to put them in (default: weights)")
    parser.add_argument("--verify", metavar="DIR", help="check a folder against its checksums, fetch nothing")
    options = parser.parse_args(arguments)

    def body() -> None:
        if options.verify:
            print(f"{len(verify(options.verify))} files in {options.verify} are as they were fetched")
            return
        if not options.preset:
            raise InputError("nothing to do; give --preset NAME [NAME …] --to DIR, or --verify DIR")
        assets = list(dict.fromkeys(asset for name in options.preset for asset in assets_of(name)))
        if not assets:
            print(f"{', '.join(options.preset)} needs no files: its weights are in the repository")
            return
        for path in fetch(assets, options.to):
            print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
        print(f"checksums in {Path(options.to) / CHECKSUMS}; use it with --clip_download_root {options.to}")

    return run_program(body)
