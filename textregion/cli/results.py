"""Everything that is written for one image (stable names, see RESULT_FILES), and what run.json says about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from textregion.cli import pictures
from textregion.cli.folders import finished_folder, json_bytes
from textregion.cli.pictures import save_picture
from textregion.cli.settings import versions
from textregion.outputs.annotations import (
    coco_json,
    coco_regions_json,
    labels_json,
    region_rows,
    region_scores,
    similarity_map,
)
from textregion.outputs.pictures import DRAWN_ABOVE, Picture
from textregion.outputs.region_crops import RegionCrop, crop_regions_above
from textregion.outputs.region_sheet import region_sheet
from textregion.text import LabelPrompts
from textregion.types import RegionTokens, Segmentation

MOST_SIMILARITY_MAPS = 40
RESULT_FILES = {
    "picture.png": "image, regions and labels side by side",
    "overlay.png": "labels over the image in its own size, legend below",
    "labels.png": "label map: a pixel's value is its label's index",
    "labels.json": "names, colours, shares and confidence of the labels",
    "regions.png": "every region with its best labels and scores",
    "regions.json": "the same as data: box, area, scores",
    "coco.json": "COCO file of the labels' masks (RLE)",
    "coco_regions.json": "COCO file of the regions' masks (RLE), which may overlap",
    "boxes.json": "what is in every box, with --boxes",
    "boxes.png": "the same drawn into the image",
    "global_patches.png": "score of every patch, with --visualize_global_patch",
    "similarity/": "one map per label, with --similarity_maps",
    "tokens.safetensors": "the region tokens for RegionTokens.load, with --save_tokens",
    "run.json": "settings, versions, seconds, content hash; written last",
}


@dataclass(frozen=True)
class Extras:
    """What is written only when asked for."""

    visualize_global_patch: bool = False
    similarity_maps: bool = False
    save_tokens: bool = False


@dataclass(frozen=True)
class Found:
    """One image and what the segmenter made of it.

    name: the image's file name. labels: as asked for, with synonyms. note: the line under the pictures.
    more_panels: of picture.png. more_files: further pictures (PNG) and dictionaries (JSON) by file name.
    """

    name: str
    image: Picture
    tokens: RegionTokens
    result: Segmentation
    labels: Sequence[str]
    note: str = ""
    more_panels: Sequence[tuple[str, Picture]] = ()
    more_files: Mapping[str, Picture | Image.Image | dict] = field(default_factory=dict)


def write_results(folder: Path, found: Found, segmenter, extras: Extras, run: dict) -> dict:
    """Write all files of one image into its folder (textregion/cli/folders.py); returns what run.json holds.

    run: at least {"fingerprint"}; the rest is added. OutputError when it cannot be written; the folder is then as it
    was before.
    """
    prompts = LabelPrompts.parse(found.labels)
    text = segmenter.encode_text(prompts.queries)
    with segmenter.timer("write"):
        crops, shapes = crop_regions_above(found.tokens.masks, [0.0, DRAWN_ABOVE])
        rows = region_rows(found.tokens, text, prompts, crops=crops)
        with finished_folder(folder, run) as place:
            _write_labels(place, found, shapes)
            _write_regions(place, found, rows, prompts, crops)
            save_picture(region_sheet(found.image, rows, shapes), place / "regions.png")
            _write_extras(place, found, segmenter.global_patch_threshold, extras)
            if extras.similarity_maps:
                run["similarity_maps"] = _write_similarity(place / "similarity", found, text, prompts, crops)
            run.update(summary(found), versions=versions(), finished=_now())
    return run


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def summary(found: Found) -> dict:
    """Size, regions and shares, for run.json and the table of a batch."""
    height, width = found.image.shape[:2]
    shares = sorted(pictures.result_shares(found.result), key=lambda item: -item[1])
    return {
        "width": width,
        "height": height,
        "regions": len(found.tokens),
        "shares": [[name, round(float(share), 5)] for name, share in shares[:10] if share > 0],
        "uncovered": round(float((found.result.region_map < 0).mean()), 5),
    }


def _write_labels(place: Path, found: Found, shapes: Sequence[RegionCrop]) -> None:
    picture = pictures.main_picture(found.image, found.tokens, found.result, shapes, found.note, found.more_panels)
    save_picture(picture, place / "picture.png")
    save_picture(pictures.overlay_picture(found.image, found.result), place / "overlay.png")
    found.result.save_png(place / "labels.png")
    (place / "labels.json").write_bytes(json_bytes(labels_json(found.result)))
    (place / "coco.json").write_bytes(json_bytes(coco_json([(found.name, found.result)])))


def _write_regions(
    place: Path, found: Found, rows: list[dict], prompts: LabelPrompts, crops: Sequence[RegionCrop]
) -> None:
    height, width = found.image.shape[:2]
    (place / "regions.json").write_bytes(json_bytes({"image": {"width": width, "height": height}, "regions": rows}))
    coco = coco_regions_json(found.name, found.tokens, rows, prompts.names, crops)
    (place / "coco_regions.json").write_bytes(json_bytes(coco))


def _write_extras(place: Path, found: Found, threshold: float | None, extras: Extras) -> None:
    scores = found.tokens.patch_scores
    if extras.visualize_global_patch and scores is not None and threshold is not None:
        picture = pictures.global_patch_picture(found.image, scores.cpu().numpy(), threshold)
        save_picture(picture, place / "global_patches.png")
    if extras.save_tokens:
        found.tokens.save(place / "tokens.safetensors")
    for name, content in found.more_files.items():
        _write_file(place / name, content)


def _write_file(path: Path, content: Picture | Image.Image | dict) -> None:
    if isinstance(content, dict):
        path.write_bytes(json_bytes(content))
    else:
        save_picture(content if isinstance(content, Image.Image) else Image.fromarray(content), path)


def _write_similarity(
    place: Path, found: Found, text, prompts: LabelPrompts, crops: Sequence[RegionCrop]
) -> dict[str, int]:
    """One picture per label, the first MOST_SIMILARITY_MAPS of them; returns how many were written and asked for."""
    place.mkdir()
    cosine, _ = region_scores(found.tokens, text, prompts)
    low, high = (float(cosine.min()), float(cosine.max())) if cosine.size else (0.0, 1.0)
    names = list(islice(pictures.file_names(prompts.names), MOST_SIMILARITY_MAPS))
    for index, name in enumerate(names):
        values = similarity_map(found.tokens, np.ascontiguousarray(cosine[:, index]), crops)
        label = prompts.names[index]
        picture = pictures.similarity_picture(found.image, values, label, low, high)
        save_picture(picture, place / f"{name}.png")
    return {"written": len(names), "labels": len(prompts.names)}
