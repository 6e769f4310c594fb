"""The picture of eval.compare: the images in which two runs of a segmentation benchmark differ most."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer
from mmengine.config import Config
from PIL import Image

from eval.contact_sheet import RgbImage, beside, contact_sheet
from eval.data import check_files, load_labels
from eval.mm import DATASETS
from textregion.errors import InputError
from textregion.images import load_image
from textregion.masks.given import read_label_map
from textregion.render import label_colours, overlay

WITH = "above: photograph, ground truth; below: A, B (colours: classes; black: ignored); numbers: of that image alone"
WITHOUT = "photograph, ground truth (black: ignored); runs with --save_predictions have their label maps shown as well"


def difference_sheet(runs: Sequence[Path], content: Mapping, images: Mapping[str, Mapping], count: int) -> Image.Image:
    """The first `count` images, each with its scores.

    runs: folders A and B, whose `predictions/` are shown where both have them. content: results.json of one of them,
    whose config says where the data are. images: {id: {"a", "b", "difference"}}, those that differ most first.
    InputError when the data are not there any more.
    """
    config = Config(
        {"test_dataloader": content["config"]["test_dataloader"], "benchmark": content["config"]["benchmark"]}
    )
    dataset = DATASETS.build({**config.test_dataloader.dataset, "pipeline": []})
    root = Path(config.test_dataloader.dataset.data_root)
    entries = {_id(entry["img_path"], root): entry for entry in check_files(config, dataset)}
    chosen = list(images)[:count]
    if lost := [image for image in chosen if image not in entries]:
        raise InputError(f"{root} has no {lost[0]} any more")
    maps = {image: [run / "predictions" / Path(image).with_suffix(".png") for run in runs] for image in chosen}
    predicted = bool(chosen) and all(path.is_file() for paths in maps.values() for path in paths)
    classes = dataset.metainfo["classes"]
    cells = []
    for image in chosen:
        photograph, truth = load_image(entries[image]["img_path"]), load_labels(entries[image], dataset.ignore_index)
        picture = beside(photograph, coloured(photograph, truth, classes))
        if predicted:
            a, b = (coloured(photograph, read_label_map(path), classes) for path in maps[image])
            picture = np.concatenate([picture, beside(a, b)])
        cells.append((picture, [image, caption(images[image])]))
    title = f"B against A: {len(chosen)} of {len(images)} images, those that differ most"
    return contact_sheet(title, cells, WITH if predicted else WITHOUT)


def coloured(photograph: RgbImage, labels: Integer[np.ndarray, "H W"], classes: Sequence[str]) -> RgbImage:
    """The classes' colours over the photograph; what is no class is black."""
    colours = np.concatenate([label_colours(classes), np.zeros((1, 3), np.uint8)])
    index = np.where(labels < len(classes), labels, len(classes)).astype(np.int64)
    return overlay(photograph, index, colours, np.zeros(labels.shape, bool))


def caption(row: Mapping[str, float | None]) -> str:
    """An image's scores."""
    a, b, difference = ("–" if row[key] is None else f"{row[key]:.1f}" for key in ("a", "b", "difference"))
    return f"A {a}, B {b}, B - A {difference}"


def _id(path: str, root: Path) -> str:
    return (Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path(path)).as_posix()
