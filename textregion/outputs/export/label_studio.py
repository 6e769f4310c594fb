"""Label Studio: tasks with predictions as brush masks (exact), and the labelling interface that they need."""

from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool

from textregion.outputs.export.base import IMAGES, Dataset, DatasetImage, Files, register_exporter
from textregion.outputs.folder import json_bytes
from textregion.render import label_colours

ADDRESS = "/data/local-files/?d=dataset/"  # below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT
SIZES = (3, 4, 8, 16)  # bits that a run's length may have, as Label Studio's own converter has them
WORD = 8  # bits of a value
CHANNELS = 4  # red, green, blue and alpha have the same value


@register_exporter("label-studio")
def label_studio(dataset: Dataset) -> Files:
    """label_studio.json: tasks to import; label_studio.xml: to paste as the project's labelling interface."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true")
    labels = ElementTree.SubElement(view, "BrushLabels", name="label", toName="image")
    for name, colour in zip(dataset.labels, label_colours(dataset.labels), strict=True):
        ElementTree.SubElement(labels, "Label", value=name, background="#" + bytes(colour.tolist()).hex())
    ElementTree.indent(view)
    yield "label_studio.xml", ElementTree.tostring(view, "utf-8") + b"\n"
    yield "label_studio.json", json_bytes([_task(image) for image in dataset.images])


def _task(image: DatasetImage) -> dict:
    results = []
    for number, found in enumerate(image.objects):
        value = {"format": "rle", "rle": brush_code(found.mask), "brushlabels": [found.label]}
        names = {"id": f"{image.id}_{number}", "from_name": "label", "to_name": "image", "type": "brushlabels"}
        size = {"original_width": image.width, "original_height": image.height, "image_rotation": 0}
        results.append({**names, **size, "value": value, "score": found.score})
    prediction = {"model_version": "TextRegion", "result": results}
    address = ADDRESS + quote(f"{IMAGES}/{image.name}")
    return {"id": image.id, "data": {"image": address}, "predictions": [prediction]}


def brush_code(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    """The bytes of Label Studio's brush masks, which are the format of thi.ng/rle-pack.

    A head: 32 bits the number of values, 5 bits WORD - 1, four times 4 bits a size of SIZES - 1. Then the runs: a 1,
    2 bits the place of the smallest size that suffices, so many bits the length - 1, WORD bits the value.
    """
    flat = mask.ravel()
    ends = np.array([*(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), flat.size])
    lengths = CHANNELS * np.diff(ends, prepend=0)
    bits = [f"{CHANNELS * flat.size:032b}{WORD - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for length, inside in zip(lengths.tolist(), flat[ends - 1].tolist(), strict=True):
        while length > 0:
            run = min(length, 1 << SIZES[-1])
            place = next(i for i, size in enumerate(SIZES) if run <= 1 << size)
            bits.append(f"1{place:02b}{run - 1:0{SIZES[place]}b}{255 * inside:0{WORD}b}")
            length -= run
    text = "".join(bits)
    return [int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8)]
