"""CVAT for images 1.1: one XML file, every mask as run lengths within its box."""

from xml.etree import ElementTree

import numpy as np

from textregion.outputs.export.base import Dataset, Files, LabelledObject, register_exporter
from textregion.render import label_colours


@register_exporter("cvat")
def cvat(dataset: Dataset) -> Files:
    """cvat.xml, for "Upload annotations" of a task with these images, or zipped with images/ for a new one."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    for name, text in (("name", "TextRegion"), ("size", str(len(dataset.images))), ("mode", "annotation")):
        ElementTree.SubElement(task, name).text = text
    labels = ElementTree.SubElement(task, "labels")
    for name, colour in zip(dataset.labels, label_colours(dataset.labels), strict=True):
        label = ElementTree.SubElement(labels, "label")
        told = {"name": name, "color": "#" + bytes(colour.tolist()).hex(), "type": "mask", "attributes": None}
        for key, text in told.items():
            ElementTree.SubElement(label, key).text = text
    for image in dataset.images:
        size = {"width": str(image.width), "height": str(image.height)}
        row = ElementTree.SubElement(root, "image", id=str(image.id - 1), name=image.name, **size)
        for found in image.objects:
            ElementTree.SubElement(row, "mask", _mask(found))
    ElementTree.indent(root)
    yield "cvat.xml", ElementTree.tostring(root, "utf-8", xml_declaration=True) + b"\n"


def _mask(found: LabelledObject) -> dict[str, str]:
    """Runs outside and inside by turns, row by row within the box, the first one outside (of length 0 perhaps)."""
    x, y, width, height = found.box
    flat = found.mask[y : y + height, x : x + width].ravel()
    ends = [*(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), len(flat)]
    runs = ([0] if flat[0] else []) + np.diff([0, *ends]).tolist()
    place = {"left": x, "top": y, "width": width, "height": height, "z_order": 0}
    told = {"label": found.label, "source": "auto", "occluded": "0", "rle": ", ".join(map(str, runs))}
    return {**told, **{key: str(value) for key, value in place.items()}}
