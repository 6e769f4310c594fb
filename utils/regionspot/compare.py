"""TextRegion's and RegionSpot's tokens of the same boxes: how many are recognised, in one table.

python -m utils.regionspot.compare --preset tiny --data tiny=tiny/lvis_tiny_val.json:tiny/images
"""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("python -m utils.regionspot.compare", "utils.regionspot.compare"))

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor
from tqdm import tqdm

from textregion.cli.command_line import Parser, run_program
from textregion.cli.flags import add_model_flags, add_regionspot_flags, chosen_preset, given_options
from textregion.regionspot.loading import load_regionspot
from textregion.regionspot.model import RegionSpot, encode_names
from textregion.segmenter import TextRegionSegmenter
from utils.regionspot.data import BoxDataset, TokenCache, parse_data, read_dataset


@dataclass(frozen=True)
class Score:
    """boxes: how many. names: K. accuracy, shuffled: share recognised, with their own and with shuffled tokens.

    The second says what CLIP's map alone gives away: only the gap between both shows that the head uses the tokens.
    """

    boxes: int
    names: int
    accuracy: float
    shuffled: float

    def __str__(self) -> str:
        return (
            f"{100 * self.accuracy:.1f} % of {self.boxes} boxes recognised among {self.names} names, "
            f"{100 * self.shuffled:.1f} % with tokens shuffled between images (chance {100 / self.names:.1f} %)"
        )


@torch.inference_mode()
def score(model: RegionSpot, cache: TokenCache, text: Float32[Tensor, "K E"], seed: int = 0) -> Score:
    """Top-1 accuracy on a filled cache, the boxes of an image together. text: of its names. seed: of the shuffling."""
    images = cache.usable()
    tokens = [cache.read(image).tokens for image in images]
    order = torch.randperm(sum(map(len, tokens)), generator=torch.Generator().manual_seed(seed))
    dealt = torch.cat(tokens)[order].split([len(own) for own in tokens])
    text = text.to(model.backbone.device)
    right = torch.zeros(2, dtype=torch.long)
    for image, *choices in tqdm(list(zip(images, tokens, dealt, strict=True)), "scoring", disable=None, leave=False):
        kept = cache.read(image).clip_map
        clip_map = model.clip_map(cache.dataset.path(image)) if kept is None else kept.float().to(text.device)
        for place, own in enumerate(choices):
            found = (model.embed(own.to(text.device), clip_map) @ text.T).argmax(-1).cpu()
            right[place] += (found == torch.from_numpy(image.labels)).sum()
    return Score(len(order), len(text), *(right / len(order)).tolist())


def textregion_accuracy(segmenter: TextRegionSegmenter, dataset: BoxDataset) -> float:
    """Share of all boxes whose best name by TextRegion's token is their own; a box without a token counts as wrong."""
    text = segmenter.encode_text(list(dataset.names))
    right = 0
    for image in tqdm(dataset.images, "TextRegion", unit="image", disable=None, leave=False):
        found = segmenter.encode_boxes(dataset.path(image), image.boxes)
        named = found.similarity(text).argmax(-1).cpu()
        right += int((named == torch.from_numpy(image.labels)[found.source_index.cpu()]).sum())
    return right / sum(len(image.labels) for image in dataset.images)


def compare(options: argparse.Namespace) -> None:
    """Print one Markdown table per data set, in percent of its boxes. InputError for bad input."""
    datasets = [read_dataset(name, *paths) for name, paths in parse_data(options.data).items()]
    preset = chosen_preset(options) or "tiny"
    segmenter = TextRegionSegmenter.from_preset(preset, device=options.device, **given_options(options))
    model = segmenter.regionspot or load_regionspot(segmenter.backbone, segmenter.mask_generator)
    with tempfile.TemporaryDirectory() as nowhere:
        for dataset in datasets:
            cache = TokenCache(options.cache or nowhere, dataset, model)
            cache.fill(dataset.images)
            regionspot = score(model, cache, encode_names(model.backbone, dataset.names))
            shares = {
                "TextRegion (training-free)": textregion_accuracy(segmenter, dataset),
                "RegionSpot (trained head)": regionspot.accuracy,
                "RegionSpot, SAM's tokens shuffled between images": regionspot.shuffled,
                f"chance ({regionspot.names} names)": 1 / regionspot.names,
            }
            head = f"| tokens of {regionspot.boxes} boxes of {len(dataset.images)} images | top-1 |\n| --- | --- |"
            rows = [f"| {name} | {100 * share:.1f} % |" for name, share in shares.items()]
            print("\n".join([dataset.describe(), "", head, *rows, ""]))


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = Parser(prog="python -m utils.regionspot.compare", description=__doc__)
    add = parser.add_argument
    add("--data", nargs="+", required=True, metavar="NAME=FILE:FOLDER", help="boxes with names (COCO)")
    add("--cache", type=Path, metavar="DIR", help="keep SAM's tokens there (default: nowhere)")
    add_model_flags(parser, "tiny")
    add_regionspot_flags(parser)
    options = parser.parse_args(arguments)
    return run_program(lambda: compare(options))
