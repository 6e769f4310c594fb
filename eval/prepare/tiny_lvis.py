"""The tiny world as boxes with names, in the layout of LVIS v1 (which is COCO's with a few fields more).

python -m eval.prepare.tiny_lvis --output data/tiny_lvis --scenes 40

Writes lvis_tiny_train.json, lvis_tiny_val.json and images/{train,val}/*.png. As in LVIS, images have a `coco_url`
(here its last two parts alone) instead of a `file_name`; categories are rare, common or frequent by how many
training images have them (a third of the categories each); an image names categories that were looked for and are
absent (`neg_category_ids`) and such of which not every object has its box (`not_exhaustive_category_ids`).
"""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("python -m eval.prepare.tiny_lvis", "eval.prepare.tiny_lvis"))

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from eval.prepare.converters import claim, no_others, objects, tight_box, write_image, write_json
from textregion.cli.command_line import Parser, positive, run_program
from textregion.render import to_rle
from textregion.tiny.painting import COLOURS, SHAPES
from textregion.tiny.scenes import draw_scene

FIRST_SEEDS = {"train": 500_000, "val": 920_000}  # neither is a scene the shipped CLIP and SAM 2 were trained on
NAMES = {  # the tiny models hardly know shapes
    "objects": tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    "colours": tuple(f"{colour} shape" for colour in COLOURS),
}
NEGATIVES = 12  # categories per image that are known to be absent
UNFINISHED_SHARE = 0.5  # of the categories with several objects in an image: one object has no box


def write_split(folder: Path, split: str, scenes: int, names: str, seed: int = 0) -> dict:
    """Draw a split's images; its JSON content with the split's own image counts, frequencies left open."""
    numbers = {name: number for number, name in enumerate(NAMES[names], start=1)}
    images, annotations, categories = [], [], []
    first = FIRST_SEEDS[split] + seed
    for number in tqdm(range(first, first + scenes), f"drawing {split}", disable=None, leave=False):
        scene = draw_scene(number)
        path = f"{split}/{number:012d}.png"
        if not (folder / "images" / path).exists():  # a seed gives one scene, and files are written whole
            write_image(folder / "images" / path, scene.image)
        found = []
        for region, mask in objects(scene):
            category = numbers[region.name if names == "objects" else region.class_name]
            found.append({"image_id": number, "category_id": category, "bbox": tight_box(mask)})
            found[-1] |= {"area": int(mask.sum()), "segmentation": to_rle(mask)}
        image = {"id": number, "coco_url": path, "height": scene.image.shape[0], "width": scene.image.shape[1]}
        images.append(image | _federation(found, list(numbers.values()), np.random.default_rng(number)))
        annotations += found
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    for name, number in numbers.items():
        having = [annotation["image_id"] for annotation in annotations if annotation["category_id"] == number]
        category = {"id": number, "name": name, "synset": f"{name.replace(' ', '_')}.n.01", "synonyms": [name]}
        counts = {"image_count": len(set(having)), "instance_count": len(having)}
        categories.append({**category, "def": name, **counts})
    content = {"images": images, "annotations": annotations, "categories": categories}
    return {"info": {"description": "tiny world"}, **content}


def _federation(found: list[dict], numbers: list[int], rng: np.random.Generator) -> dict[str, list[int]]:
    """Which categories are known to be absent, and of which an object lost its box: it is removed from `found`."""
    present = [annotation["category_id"] for annotation in found]
    absent = [number for number in numbers if number not in present]
    repeated = sorted({number for number in present if present.count(number) > 1})
    unfinished = [number for number in repeated if rng.random() < UNFINISHED_SHARE]
    for number in unfinished:
        found.remove(next(annotation for annotation in found if annotation["category_id"] == number))
    negative = rng.choice(absent, min(NEGATIVES, len(absent)), replace=False)
    return {"neg_category_ids": sorted(negative.tolist()), "not_exhaustive_category_ids": unfinished}


def frequencies(image_counts: Sequence[int]) -> list[str]:
    """Per category "r", "c" or "f": the third with the fewest images is rare; ties by the order given."""
    thirds = np.empty(len(image_counts), int)
    thirds[np.argsort(image_counts, kind="stable")] = np.arange(len(image_counts)) * 3 // len(image_counts)
    return ["rcf"[third] for third in thirds]


def write_tiny_lvis(
    folder: Path, scenes: int, train_scenes: int | None = None, names: str = "colours", seed: int = 0
) -> None:
    """Both splits below `folder`. As in LVIS, the val file's categories carry the training split's counts.

    scenes, train_scenes: how many of each split (train: as many as val when None). names: "colours" or "objects".
    seed: 0 or more, shifts to other scenes. InputError for a folder that holds others, or other files.
    """
    counts = {"train": train_scenes or scenes, "val": scenes}
    written = {"images", *(f"lvis_tiny_{split}.json" for split in counts)}
    claim(folder, {"scenes": scenes, "train_scenes": counts["train"], "names": names, "seed": seed}, written)
    for split, count in counts.items():
        first = FIRST_SEEDS[split] + seed
        no_others(folder / "images" / split, {f"{number:012d}.png" for number in range(first, first + count)})
    train = write_split(folder, "train", counts["train"], names, seed)
    val = write_split(folder, "val", scenes, names, seed)
    groups = frequencies([category["image_count"] for category in train["categories"]])
    for category, group in zip(train["categories"], groups, strict=True):
        category["frequency"] = group
    val["categories"] = train["categories"]
    for split, content in (("train", train), ("val", val)):
        write_json(folder / f"lvis_tiny_{split}.json", content)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = Parser(prog="python -m eval.prepare.tiny_lvis", description="Draw the tiny world as LVIS-style data.")
    add = parser.add_argument
    add("--output", type=Path, metavar="DIR", help="default data/tiny_lvis, with other options their values behind it")
    add("--scenes", type=positive, default=40, metavar="N", help="images of val (default 40)")
    add("--train-scenes", type=positive, metavar="N", help="images of train (default: as many as val)")
    said = '"colours" (red shape, …: 9; default) or "objects" (red star, …: 90; the tiny models hardly know shapes)'
    add("--names", choices=NAMES, default="colours", help=said)
    add("--seed", type=int, default=0, metavar="S", help="0 to 99999, shifts to other scenes (default 0)")
    options = parser.parse_args(arguments)
    if not 0 <= options.seed < 100_000:
        parser.error(f"got --seed {options.seed}, expected 0 to 99999")

    def body() -> None:
        train = options.train_scenes or options.scenes
        decides = (options.scenes, train, options.names, options.seed)
        plain = decides == (40, 40, "colours", 0)
        output = options.output or Path("data") / "-".join(["tiny_lvis", *map(str, () if plain else decides)])
        write_tiny_lvis(output, options.scenes, train, options.names, options.seed)
        print(f"{train} scenes for training and {options.scenes} for evaluation written to {output}")

    return run_program(body, "the same command draws what is missing")
