"""TextRegion's and RegionSpot's tokens of the same boxes: how many are recognised, in one table.

python -m utils.regionspot.compare --preset tiny --data tiny=tiny/lvis_tiny_val.json:tiny/images
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from textregion.cli.command_line import Parser, run_program
from textregion.regionspot.loading import load_regionspot
from textregion.regionspot.text import encode_names
from utils.regionspot.accuracy import Score, score
from utils.regionspot.arguments import parse_data
from utils.regionspot.data import BoxDataset, read_dataset
from utils.regionspot.token_cache import TokenCache

if TYPE_CHECKING:
    from textregion.segmenter import TextRegionSegmenter


def textregion_accuracy(segmenter: "TextRegionSegmenter", dataset: BoxDataset) -> float:
    """Share of all boxes whose best name by TextRegion's token is their own; a box without a token counts as wrong."""
    text = segmenter.encode_text(list(dataset.names))
    right = 0
    for image in tqdm(dataset.images, "TextRegion", unit="image", disable=None, leave=False):
        found = segmenter.encode_boxes(dataset.path(image), image.boxes, method="textregion")
        named = found.similarity(text).argmax(-1).cpu()
        right += int((named == torch.from_numpy(image.labels)[found.source_index.cpu()]).sum())
    return right / sum(len(image.labels) for image in dataset.images)


def regionspot_score(segmenter: "TextRegionSegmenter", dataset: BoxDataset, cache: Path) -> Score:
    """RegionSpot's, with the boxes' own tokens and with shuffled ones. InputError when an image cannot be used."""
    model = segmenter.regionspot or load_regionspot(segmenter.backbone, segmenter.mask_generator)
    tokens = TokenCache(cache, dataset, model)
    tokens.fill(dataset.images)
    return score(model, tokens, encode_names(model.backbone, dataset.names))


def table(dataset: BoxDataset, textregion: float, regionspot: Score) -> str:
    """Markdown: one row per method, in percent of the boxes."""
    rows = (
        ("TextRegion (training-free)", textregion),
        ("RegionSpot (trained head)", regionspot.accuracy),
        ("RegionSpot, SAM's tokens shuffled between images", regionspot.shuffled),
        (f"chance ({regionspot.names} names)", 1 / regionspot.names),
    )
    head = f"| tokens of {regionspot.boxes} boxes of {len(dataset)} images | top-1 |\n| --- | --- |\n"
    return head + "\n".join(f"| {name} | {100 * share:.1f} % |" for name, share in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = Parser(prog="python -m utils.regionspot.compare", description=__doc__)
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=FILE:FOLDER", help="boxes with names (COCO)")
    parser.add_argument("--preset", default="tiny", help="which models (default tiny)")
    parser.add_argument("--regionspot_checkpoint", metavar="FILE", help="the head (default: the shipped one of tiny)")
    parser.add_argument("--sam1_checkpoint", metavar="FILE", help="SAM v1, which published heads need")
    parser.add_argument("--regionspot_side", type=int, metavar="PX", help="CLIP's input side of a published head")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep SAM's tokens there (default: nowhere)")
    options = parser.parse_args(arguments)

    def body() -> None:
        from textregion.segmenter import TextRegionSegmenter

        datasets = [read_dataset(name, *paths) for name, paths in parse_data(options.data).items()]
        names = ("regionspot_checkpoint", "sam1_checkpoint", "regionspot_side")
        given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        segmenter = TextRegionSegmenter.from_preset(options.preset, **given)
        with tempfile.TemporaryDirectory() as nowhere:
            for dataset in datasets:
                found = regionspot_score(segmenter, dataset, options.cache or Path(nowhere))
                print(f"{dataset.describe()}\n\n{table(dataset, textregion_accuracy(segmenter, dataset), found)}\n")

    return run_program(body)


if __name__ == "__main__":
    sys.exit(main())
