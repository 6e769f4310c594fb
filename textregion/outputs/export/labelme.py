"""labelme: a JSON file per image in labelme/, through the centres of border pixels, as its readers fill."""

from textregion.outputs.export.base import IMAGES, Dataset, DatasetImage, Files, register_exporter
from textregion.outputs.export.outlines import centre_rings
from textregion.outputs.export.yolo import INTO_PIXEL, drawable
from textregion.outputs.folder import json_bytes


@register_exporter("labelme")
def labelme(dataset: Dataset) -> Files:
    """labelme/NAME.json for every image; the parts of a mask share a group_id, a hole hangs on a seam."""
    for image in dataset.images:
        yield f"labelme/{image.stem}.json", json_bytes(_content(image))


def _content(image: DatasetImage) -> dict:
    shapes = []
    for number, found in enumerate(image.objects):
        rings = centre_rings(found.mask)
        for ring in rings:
            shape = {"label": found.label, "points": (drawable(ring) + INTO_PIXEL).tolist()}
            shape |= {"group_id": number if len(rings) > 1 else None, "description": "", "shape_type": "polygon"}
            shapes.append({**shape, "flags": {}, "mask": None})
    sizes = {"imageHeight": image.height, "imageWidth": image.width}
    path = f"../{IMAGES}/{image.name}"
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": path, "imageData": None, **sizes}
