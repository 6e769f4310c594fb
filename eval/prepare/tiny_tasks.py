"""The tiny world as referring expressions and as reasoning segmentation, on disk as the real data are.

python -m eval.prepare.tiny_tasks --output data/tiny_tasks --scenes 12
"""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("python -m eval.prepare.tiny_tasks", "eval.prepare.tiny_tasks"))

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from eval.prepare.converters import claim, no_others, objects, tight_box, write_image, write_json
from textregion.cli.command_line import Parser, positive, run_program
from textregion.storage import write_atomically
from textregion.tiny.scenes import Scene, draw_scene

FIRST_SEED = 910_000  # scenes no training has seen
OBJECTS = 4
POLYGON_SHARE = 0.9  # a polygon has no hole, so things with a large one are not asked for
REFERRING_SPLITS = ("refcoco_val", "refcocog_val")  # one per format of detections


def write_referring(folder: Path, scenes: int, size: int = 256) -> None:
    """<split>.jsonl, <dataset>_dets_dict.json in both formats and images/COCO_….jpg below `folder`.

    Each split asks for every object of its scenes in two sentences. Detections: every object's box, its sides
    moved by up to 6 %, and as many boxes elsewhere.
    """
    written = {"images", *(f"{split}.jsonl" for split in REFERRING_SPLITS)}
    claim(folder, {"scenes": scenes, "size": size}, written)
    every = [seed for start, _ in enumerate(REFERRING_SPLITS) for seed in _seeds(FIRST_SEED + start, scenes)]
    no_others(folder / "images", {f"COCO_train2014_{seed:012d}.jpg" for seed in every})
    for start, split in enumerate(REFERRING_SPLITS):
        lines, detections = [], {}
        for seed, scene in _scenes(FIRST_SEED + start, scenes, size, split):
            write_image(folder / "images" / f"COCO_train2014_{seed:012d}.jpg", scene.image)
            lines += _expressions(seed, scene)
            detections[seed] = _detections(seed, scene)
        write_atomically(folder / f"{split}.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines).encode())
        as_rows = [{"image_id": seed, "box": box} for seed, boxes in detections.items() for box in boxes]
        write_json(folder / f"{split.rsplit('_', 1)[0]}_dets_dict.json", as_rows if start else detections)


def _seeds(first: int, count: int) -> range:
    return range(first, first + 2 * count, 2)


def _scenes(first: int, count: int, size: int, title: str) -> Iterator[tuple[int, Scene]]:
    """Every second seed with its scene: a split's, which shares none with the other split."""
    for seed in tqdm(_seeds(first, count), f"drawing {title}", disable=None):
        yield seed, draw_scene(seed, size, OBJECTS, distinct_colours=True)


def _expressions(seed: int, scene: Scene) -> list[dict]:
    lines = []
    anns = [{"id": seed * 10 + n, "bbox": tight_box(mask)} for n, (_, mask) in enumerate(objects(scene))]
    for n, (region, _) in enumerate(objects(scene)):
        line = {"image_id": seed, "file_name": f"COCO_train2014_{seed:012d}_{n}.jpg", "anns": anns}
        line["ann_id"] = [anns[n]["id"]] if n % 2 else anns[n]["id"]
        lines.append({**line, "sentences": [{"raw": f"The {region.name}"}, {"raw": f"the {region.colour} shape"}]})
    return lines


def _detections(seed: int, scene: Scene) -> list[list[float]]:
    random = np.random.default_rng(seed)
    boxes = []
    for _, mask in objects(scene):
        box = tight_box(mask)
        moved = np.array(box) + random.uniform(-0.06, 0.06, 4) * (2 * box[2:])
        elsewhere = random.uniform(0, 0.7, 2) * mask.shape[0]
        boxes += [moved.round(2).tolist(), [*elsewhere.round(2).tolist(), *box[2:]]]
    return [boxes[n] for n in random.permutation(len(boxes))]


def write_reasoning(folder: Path, answers: Path, scenes: int, size: int = 256) -> None:
    """<split>/<seed>.jpg and .json (polygons, question) below `folder`; answers/<split>/<seed>.json.

    Even scenes have a short question, odd ones a long one. Every third has a patch that does not count.
    """
    for place in (folder, answers):
        claim(place, {"scenes": scenes, "size": size}, {"val", "test"})
    for start, split in enumerate(("val", "test")):
        seeds = _seeds(FIRST_SEED + 1000 + start, scenes)
        no_others(folder / split, {f"{seed}.{ending}" for seed in seeds for ending in ("jpg", "json")})
        no_others(answers / split, {f"{seed}.json" for seed in seeds})
        pairs = _scenes(FIRST_SEED + 1000 + start, scenes, size, f"ReasonSeg {split}")
        for number, (seed, scene) in enumerate(pairs):
            name, polygons = _target(scene)
            shapes = [{"label": "target", "points": polygon} for polygon in polygons]
            if number % 3 == 0:
                patch = [[0, 0], [size // 8, 0], [size // 8, size // 8], [0, size // 8]]
                shapes += [{"label": "ignore", "points": patch}, {"label": "flag", "points": patch[:1]}]
            colour, shape = name.split()
            text = f"which {shape} in the picture is {colour}?" if number % 2 else name
            question = {"shapes": shapes, "text": [text, "another wording"], "is_sentence": bool(number % 2)}
            write_image(folder / split / f"{seed}.jpg", scene.image)
            write_json(folder / split / f"{seed}.json", question)
            answer = {"text": text, "answers": [name.capitalize(), f"the {shape}"]}
            write_json(answers / split / f"{seed}.json", answer)


def _target(scene: Scene) -> tuple[str, list[list[list[int]]]]:
    """The largest object that polygons describe well (the best described if none is), and its polygons."""
    found = []
    for region, mask in objects(scene):
        lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        filled = cv2.drawContours(np.zeros(mask.shape, np.uint8), lines, -1, 1, cv2.FILLED)
        share = mask.sum() / max(filled.sum(), 1)
        found.append((min(share, POLYGON_SHARE), mask.sum(), region.name, [line[:, 0].tolist() for line in lines]))
    return max(found, key=lambda one: one[:2])[2:]


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = Parser(prog="python -m eval.prepare.tiny_tasks", description="Draw the tiny world as both tasks' data.")
    where = "default data/tiny_tasks, of another number of scenes data/tiny_tasks-N"
    parser.add_argument("--output", type=Path, metavar="DIR", help=where)
    parser.add_argument("--scenes", type=positive, default=12, metavar="N", help="per split (default 12)")
    options = parser.parse_args(arguments)

    def body() -> None:
        scenes = options.scenes
        output = options.output or Path(f"data/tiny_tasks{f'-{scenes}' * (scenes != 12)}")
        write_referring(output / "referring", scenes)
        write_reasoning(output / "reasoning", output / "answers", scenes)
        print(f"2 x {scenes} scenes for each task written to {output}")

    return run_program(body, "the same command draws all anew")
