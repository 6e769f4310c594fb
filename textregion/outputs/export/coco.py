"""COCO: one file for all images, masks as run lengths (exact, what pycocotools reads) or as polygons."""

from collections.abc import Callable

from textregion.outputs.export.base import Dataset, Files, LabelledObject, register_exporter
from textregion.outputs.export.outlines import edge_polygons_without_holes
from textregion.outputs.folder import json_bytes


@register_exporter("coco")
def coco(dataset: Dataset) -> Files:
    """coco.json: compressed RLE. Category ids are the labels' places from 1 on, image ids the images'."""
    yield "coco.json", json_bytes(_content(dataset, lambda found: found.rle))


@register_exporter("coco-polygons")
def coco_polygons(dataset: Dataset) -> Files:
    """coco_polygons.json: polygons along the edges of pixels, for which pycocotools fills exactly the mask.

    COCO's polygons know no holes: a part with a hole is cut in two through the hole.
    """
    yield "coco_polygons.json", json_bytes(_content(dataset, _polygons))


def _polygons(found: LabelledObject) -> list[list[int]]:
    return [ring.ravel().tolist() for ring in edge_polygons_without_holes(found.mask)]


def _content(dataset: Dataset, shape: Callable[[LabelledObject], object]) -> dict:
    annotations = []
    for image in dataset.images:
        for found in image.objects:
            row = {"id": len(annotations) + 1, "image_id": image.id, "category_id": dataset.label_id(found.label) + 1}
            row |= {"segmentation": shape(found), "area": found.area, "bbox": list(found.box), "iscrowd": 0}
            row["score"] = found.score
            annotations.append(row if found.region is None else {**row, "region": found.region})
    images = [{"id": i.id, "file_name": i.name, "width": i.width, "height": i.height} for i in dataset.images]
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(dataset.labels, start=1)]
    info = {"description": "TextRegion: masks labelled with words", "version": "1.0", "note": dataset.note}
    return {"info": info, "images": images, "categories": categories, "annotations": annotations}
