"""`textregion presets`: the table of presets."""

from collections.abc import Sequence

from textregion.backbones import find_spec
from textregion.cli.command_line import Parser, run_program
from textregion.masks.sam2 import find_size
from textregion.presets import TINY_WORLD, Preset, find_preset, preset_names
from textregion.render import markdown_table, text_table
from textregion.tiny import models as tinyworld

COLUMNS = ("preset", "open_clip model", "D", "crop", "SAM 2.1", "points", "download", "published result (theirs)")


def preset_rows() -> list[tuple[str, ...]]:
    """One row of text per preset, under COLUMNS: name, model, embedding width D, crop side in pixels, SAM 2.1
    size, points per side, download size of everything, figures of the paper (theirs, not measured here).
    """
    return [_row(find_preset(name)) for name in preset_names()]


def _row(preset: Preset) -> tuple[str, ...]:
    points = str(preset.masks["points_per_side"])
    if preset.backbone == TINY_WORLD:
        config = tinyworld.clip_config()
        sizes = str(config["embed_dim"]), str(config["vision_cfg"]["image_size"])
        return preset.name, "tiny world", *sizes, "tiny world", points, "none", "–"
    spec, sam2 = find_spec(preset.backbone), find_size(preset.sam2)
    download = f"{(spec.megabytes + sam2.megabytes) / 1000:.1f} GB"
    sizes = str(spec.width), str(spec.crop_size)
    return preset.name, " ".join(spec.open_clip), *sizes, sam2.name, points, download, preset.published or "–"


def list_presets() -> str:
    """`preset_rows` in aligned columns, for a terminal."""
    return text_table(COLUMNS, preset_rows())


def readme_table() -> str:
    """`preset_rows` for README.md, which holds it between `<!-- presets -->` and `<!-- /presets -->`."""
    return "\n".join(markdown_table(COLUMNS, [(f"`{row[0]}`", *row[1:]) for row in preset_rows()]))


def main(arguments: Sequence[str] | None = None) -> int:
    """The program: print the table."""
    parser = Parser(prog="textregion presets", description="Print the table of presets.")
    parser.add_argument("--markdown", action="store_true", help="as it stands in README.md")
    options = parser.parse_args(arguments)
    return run_program(lambda: print(readme_table() if options.markdown else list_presets()))
