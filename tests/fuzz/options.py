"""Flags: unknown, out of range, contradictory; the constructor's options likewise."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.case import EARLIER, EITHER, FAST, OUTPUT, REFUSED, WORKS, Case
from textregion.tiny.scenes import draw_scene
from TextRegionSegmenter import TextRegionSegmenter

VALUES = (
    "",
    "0",
    "-1",
    "1",
    "7",
    "nan",
    "inf",
    "-inf",
    "1e9",
    "99999999999999999999",
    "x",
    "True",
    "0.5",
    "1,2",
    "\0",
    "é",
)
NUMBERS = ("--points_per_side", "--crop_size", "--global_patch_threshold", "--seed", "--scale", "--resize_method")
WORDS = ("--preset", "--device", "--dtype", "--masks", "--model_cfg", "--clip_pretrained", "--clip_architecture")
SWITCHES = ("--remove_global_patch", "--visualize_global_patch")
ENDLESS = {("--scale", "99999999999999999999"), ("--scale", "1e9")}


def cases(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """All cases of flags and options."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scene.png"
    Image.fromarray(draw_scene(3, 64).image).save(path)
    task = ("--image", str(path), "--labels", "sky", "red shape")
    for flag in (*NUMBERS, *WORDS, *SWITCHES):
        for value in VALUES:
            if flag == "--points_per_side" and value in ("0.5", "1e9"):
                continue
            output = EARLIER if flag in ("--preset", "--device", "--dtype") and value == "x" else OUTPUT
            yield Case("flags: values", f"{flag} {value!r}", (*FAST, *task, flag, value, "--output", output))
    for number, words in enumerate(refused_lines(str(path))):
        yield Case("flags: lines", f"line {number}: {' '.join(words)[:60]}", words, None, (REFUSED,))
    for number, words in enumerate(working_lines()):
        yield Case("flags: lines", f"good line {number}", (*FAST, *task, *words, "--output", OUTPUT), None, (WORKS,))
    for number in range(25):
        words = [word for _ in range(random.integers(1, 5)) for word in mixture(random)]
        yield Case("flags: mixtures", f"mixture {number}", (*FAST, *task, *words, "--output", OUTPUT), None, EITHER)
    yield from constructor()


def mixture(random: np.random.Generator) -> tuple[str, ...]:
    """A flag with a value out of the list, or without."""
    flag = str(random.choice([*NUMBERS, *WORDS, *SWITCHES, "--boxes", "--random_weights", "--nope", "-x", "--"]))
    return (flag,) if random.random() < 0.2 else (flag, str(random.choice(VALUES)))


def refused_lines(path: str) -> Iterator[tuple[str, ...]]:
    """Command lines that cannot be."""
    image, fast = ("--image", path), ("--preset", "tiny", "--device", "cpu", "--output", EARLIER)
    yield from (("--nope",), ("--labels",), ("--image",), ("sky",), ("--", "sky"), ("--image", "a", "--image_list"))
    yield from ((*fast, *image), (*fast, "--labels", "sky"), (*fast, *image, "--labels"))
    yield (*fast, "--boxes", "1,2,3,4")
    yield (*fast, *image, "--labels", "sky", "--boxes", "1,2,3,4", "--masks", "slic")
    yield (*fast, "--remove_global_patch", "False", "--visualize_global_patch")
    yield (*fast, *image, "--labels", "sky", "--scale", "1")
    yield (*fast, *image, "--labels", "sky", "--scale", "1", "2", "3")
    yield (*fast, *image, "--labels", "sky", "--scale", "0", "0")
    yield (*fast, *image, "--labels", "sky", "--scale", "100000", "100000")
    yield (*fast, *image, "--labels", "sky", "--points_per_side", "100000")
    yield (*fast, *image, "--labels", "sky", "--crop_size", "960000", "--masks", "slic")
    yield (*fast, *image, "--labels", "sky", "--crop_size", "7")
    yield (*fast, *image, "--labels", "sky", "--clip_pretrained", "openai")
    yield (*fast, *image, "--labels", "sky", "--model_cfg", "nope.yaml")
    yield (*fast, *image, "--labels", "sky", "--device", "cuda:99")
    yield (*fast, *image, "--labels", "sky", "--dtype", "float16")
    yield (*fast, "--seed", "-5")
    yield ("--image", path, "--labels", "sky", "--clip_pretrained", "nobody", "--output", EARLIER)
    yield ("--image", path, "--labels", "sky", "--preset", "open_clip:nope/nope", "--output", EARLIER)


def working_lines() -> Iterator[tuple[str, ...]]:
    """Flags that must work together."""
    yield ("--visualize_global_patch",)
    yield ("--remove_global_patch", "no")
    yield ("--global_patch_threshold", "-2")
    yield ("--global_patch_threshold", "2")
    yield ("--resize_method", "multi_resolution", "--scale", "33", "17")
    yield ("--resize_method", "multi_resolution", "--scale", "1", "1")
    yield ("--dtype", "bf16")


def constructor() -> Iterator[Case]:
    """Options of `from_preset` with values of every sort."""
    values = {"None": None, "negative": -1, "zero": 0, "NaN": float("nan"), "infinite": float("inf"), "word": "x"}
    values |= {"list": [], "pair": (0, 5), "floats": (1.5, 2.5), "three": (1, 2, 3), "object": object(), "true": True}
    options = ("scale", "crop_size", "resize_method", "global_patch_threshold", "mask_type", "pool_feature")
    options += (
        "upsample_times",
        "mask_size",
        "global_splits",
        "crops_per_batch",
        "recipe",
        "device",
        "dtype",
        "compile",
    )
    options += ("text_cache", "points_per_side", "min_size", "clip_checkpoint", "model_cfg")
    may_work = {("min_size", "zero"), ("global_patch_threshold", "zero")}
    for option in options:
        for name, value in values.items():

            def make(segmenter: TextRegionSegmenter, option: str = option, value: object = value) -> None:
                TextRegionSegmenter.from_preset("tiny", **{"device": "cpu", option: value})

            expected = (WORKS,) if (option, name) in may_work else EITHER
            yield Case("options", f"from_preset {option} {name}", None, make, expected)
    for name, preset in {"None": None, "number": 3, "empty": "", "prefix": "open_clip:", "path": "/etc/passwd"}.items():
        named = lambda _, preset=preset: TextRegionSegmenter.from_preset(preset)  # noqa: E731
        yield Case("options", f"from_preset name {name}", None, named, (REFUSED,))
