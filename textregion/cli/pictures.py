"""The pictures of one image: sheet of all, overlay, global patches, similarity maps. They are returned, not written."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from textregion.outputs.pictures import Picture, draw_regions, grey, heat_map, sheet, with_footer
from textregion.outputs.region_crops import RegionCrop
from textregion.types import RegionTokens, Segmentation

MOST_IN_LEGEND = 48
QUICK = 2  # zlib's level: a third of the time of the default, a tenth more bytes


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG. OSError passes through."""
    picture.save(path, compress_level=QUICK)


def result_shares(result: Segmentation) -> list[tuple[str, float]]:
    """(label, share of pixels) in the order of the labels, duplicates kept."""
    counts = np.bincount(result.label_map.ravel(), minlength=len(result.labels))
    return [(name, n / result.label_map.size) for name, n in zip(result.labels, counts, strict=True)]


def told_labels(shares: Sequence[tuple[str, float]], most: int) -> list[int]:
    """Which labels to tell, ascending: all, or of more than `most` the largest of those that have any pixel."""
    if len(shares) <= most:
        return list(range(len(shares)))
    present = [i for i, (_, share) in enumerate(shares) if share > 0]
    return sorted(sorted(present, key=lambda i: -shares[i][1])[:most])


def legend(result: Segmentation, most: int = MOST_IN_LEGEND) -> tuple[list[tuple[np.ndarray, str]], str]:
    """(colour, "label share") of the labels in order, of very many the largest only; and a note about the others."""
    shares = result_shares(result)
    chosen = told_labels(shares, most)
    entries = [(result.palette[i], f"{shares[i][0]} {shares[i][1]:.0%}") for i in chosen]
    missing = len(shares) - len(chosen)
    return entries, f"{missing} more labels: labels.json" if missing else ""


def main_picture(
    image: Picture,
    tokens: RegionTokens,
    result: Segmentation,
    crops: Sequence[RegionCrop],
    note: str,
    more_panels: Sequence[tuple[str, Picture]] = (),
) -> Image.Image:
    """Image, regions, labels (and further panels) side by side, with a legend."""
    panels = [
        ("image", image),
        ("regions", draw_regions(image, tokens.masks, crops=crops)),
        ("labels", result.overlay(image)),
    ]
    entries, missing = legend(result)
    return sheet([*panels, *more_panels], entries, ". ".join(filter(None, [missing, note])))


def overlay_picture(image: Picture, result: Segmentation) -> Image.Image:
    """The labels over the image in the image's own size, the legend below."""
    entries, missing = legend(result)
    faint = "Fainter: in no region." if bool((result.region_map < 0).any()) else ""
    return with_footer(result.overlay(image), entries, ". ".join(filter(None, [missing, faint])))


def global_patch_picture(image: Picture, scores: Float32[np.ndarray, "Ph Pw"], threshold: float) -> Image.Image:
    """The difference score of every patch, hatched where the patch was removed."""
    picture = heat_map(image, scores, scores < threshold)
    note = f"score d in [{scores.min():.2f}, {scores.max():.2f}]; hatched: removed, d < {threshold:g}"
    return sheet([("image", image), ("global-patch score", picture)], note=note)


# ---------------------------------------------------------------------- similarity


def similarity_picture(
    image: Picture, values: Float32[np.ndarray, "H W"], label: str, low: float, high: float
) -> Image.Image:
    """One label's similarity over the image, blue at `low` to red at `high`, grey where no region lies."""
    span = high - low if high > low else 1.0
    known = ~np.isnan(values)
    scaled = np.where(known, 255 * (values - low) / span, 0).clip(0, 255).round().astype(np.uint8)
    base = grey(image)
    coloured = cv2.addWeighted(base, 0.4, turbo(scaled), 0.6, 0)
    steps = np.linspace(low, high, 5)
    bar = turbo(np.linspace(0, 255, 5).round().astype(np.uint8)[None])[0]
    entries = [(colour, f"{step:.3f}") for colour, step in zip(bar, steps, strict=True)]
    note = (
        "Cosine of the regions with the label, the largest where they overlap; one scale for all labels of the image."
    )
    note += "" if known.all() else " Grey: in no region."
    return sheet([("image", image), (label, np.where(known[..., None], coloured, base))], entries, note)


def turbo(values: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Blue for 0 over green to red for 255."""
    return np.ascontiguousarray(cv2.applyColorMap(values, cv2.COLORMAP_TURBO)[..., ::-1])


def file_names(labels: Sequence[str]) -> Iterator[str]:
    """`<index>_<label>` for every label, with only letters, digits, "-" and "_", short enough for every disk."""
    digits = max(2, len(str(len(labels) - 1)))
    for index, label in enumerate(labels):
        safe = re.sub(r"[^\w-]+", "_", label).strip("_").encode("utf-8", "ignore")[:80].decode("utf-8", "ignore")
        yield f"{index:0{digits}d}_{safe}" if safe else f"{index:0{digits}d}"
