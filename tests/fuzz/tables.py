"""Tables of regions: damaged files of one, hostile filters and words, what is no table at all."""

import shutil
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.case import EITHER, REFUSED, WORKS, Case
from tests.fuzz.system import files_up_to
from textregion.index import RegionIndex
from textregion.tiny.scenes import draw_scene

DAMAGES = 60
OPTIONS = {"mask_generator": "slic", "resize_method": "resize", "device": "cpu"}
FILTERS = (
    *("area >", "nothing > 1", "'", "area; delete", "1/0 > area", "image like '\\", "token[0] > 0", "(" * 2000),
    *("mask.counts = 1", "area > cast('a' as int)", "\0", "image = '\ud800'", "random() > 0.5", "x" * 9999),
    "regexp_like(image, '(')",
)


def cases(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """All cases about tables."""
    for number, seed in enumerate(random.integers(0, 2**31, DAMAGES).tolist()):
        yield Case("damaged table", f"table, damage {number}", None, lambda _, s=seed: damaged(folder, s), EITHER)
    for text in FILTERS:
        yield Case(
            "filter", f"--where {text[:30]!r}", None, lambda _, t=text: whole(folder).search("sky", where=t), EITHER
        )
    for words in ("", ";", "\0", "x" * 5000, "\ud800", "犬"):
        expected = (WORKS,) if words == "犬" else (REFUSED,)
        yield Case("words", f"search {words[:10]!r}", None, lambda _, w=words: whole(folder).search(w), expected)
    for place in (folder / "file", "/dev/null", "/proc/1", "nul\0", "x" * 300, "s3://", "nothing://x"):
        opened = partial(RegionIndex.open, place)
        yield Case("no table", f"table at {str(place)[-20:]!r}", None, lambda _, o=opened: o(), (REFUSED,))
    for size in (0, 500, 4000):
        around = partial(files_up_to, size)
        yield Case("full disk", f"table, files up to {size}", None, lambda _: grown(folder), EITHER, around)


@cache
def whole(folder: Path) -> RegionIndex:
    """A table of three small images."""
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text("text")
    for seed in range(3):
        Image.fromarray(draw_scene(seed, 64).image).save(photos / f"{seed}.png")
    index = RegionIndex.create(folder / "whole.lance", "tiny", **OPTIONS)
    index.add(photos)
    return index


def damaged(folder: Path, seed: int) -> None:
    """A copy of which one file is cut off, has some bytes changed, is empty or gone: opened, searched, added to."""
    random, place = np.random.default_rng(seed), folder / "damaged.lance"
    model = whole(folder).segmenter()
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / "whole.lance", place)
    files = sorted(path for path in place.rglob("*") if path.is_file() and path.stat().st_size)
    victim = files[random.integers(len(files))]
    data = bytearray(victim.read_bytes())
    kind = random.choice(["cut", "empty", "gone", "changed"], p=[0.2, 0.1, 0.2, 0.5])
    if kind == "changed":
        for at in random.integers(0, len(data), random.integers(1, 4)):
            data[at] = random.integers(256)
    victim.write_bytes({"changed": data, "cut": data[: random.integers(len(data))]}.get(kind, b""))
    if kind == "gone":
        victim.unlink()
    index = RegionIndex.open(place, device="cpu")
    index.share_words(model)
    for hit in index.search("sky", top=5, where="area > 0"):
        _ = hit.mask
    index.add(folder / "photos")


def grown(folder: Path) -> None:
    """More images into a table while no file may grow."""
    whole(folder).add(folder / "photos" / "0.png")
    Image.fromarray(draw_scene(7, 64).image)
