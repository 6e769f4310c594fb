"""What results look like in files that other programs read: JSON of labels and regions, COCO, similarity maps.

Pure functions from results to plain dictionaries and arrays; nothing here touches the disk.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from textregion.errors import InputError
from textregion.labeling import label_probabilities
from textregion.outputs.region_crops import RegionCrop, crop_regions
from textregion.text import LabelPrompts
from textregion.types import RegionTokens, Segmentation

DIGITS = 5  # of every score in JSON: enough to compare, short enough to read


def labels_json(result: Segmentation) -> dict:
    """What the pixel values of a label map mean, and how much each label has.

    {"image": {"width", "height"}, "uncovered": share of pixels in no region, "labels": [{"index", "name",
    "colour": "#rrggbb", "share": of the pixels in [0, 1], "confidence": mean probability or None}]}, every label
    in the order asked for, also those without a pixel.
    """
    height, width = result.label_map.shape
    flat, count = result.label_map.ravel(), len(result.labels)
    pixels = np.bincount(flat, minlength=count)
    confidence = np.bincount(flat, result.confidence.ravel(), minlength=count) / np.maximum(pixels, 1)
    labels = [
        {
            "index": i,
            "name": name,
            "colour": "#" + bytes(colour.tolist()).hex(),
            "share": round(float(pixels[i]) / max(flat.size, 1), DIGITS),
            "confidence": round(float(confidence[i]), DIGITS) if pixels[i] else None,
        }
        for i, (name, colour) in enumerate(zip(result.labels, result.palette, strict=True))
    ]
    uncovered = round(float((result.region_map < 0).mean()), DIGITS)
    return {"image": {"width": width, "height": height}, "uncovered": uncovered, "labels": labels}


def region_scores(
    tokens: RegionTokens, text: Float[Tensor, "Q D"], labels: "Sequence[str] | LabelPrompts"
) -> tuple[Float32[np.ndarray, "R L"], Float32[np.ndarray, "R L"]]:
    """Cosine and probability of every label for every region, as a pixel that only this region covers has them.

    text: embeddings of the labels' queries (`LabelPrompts.parse(labels).queries`), in their order. A label's
    cosine is that of its best query; its probability the largest of its queries' in the softmax of 50 * logits
    over all queries (method 8.3). InputError when text and labels do not belong together.
    """
    prompts = LabelPrompts.parse(labels)
    if len(text) != len(prompts.queries):
        raise InputError(f"got {len(text)} text embeddings for {len(prompts.queries)} queries; encode the queries")
    similarity = tokens.similarity(text)
    logits = similarity * tokens.logit_scale + tokens.logit_bias
    probability = label_probabilities(logits.T[:, :, None], prompts)[:, :, 0].T
    label = torch.tensor(prompts.query_label, device=similarity.device).expand_as(similarity)
    cosine = similarity.new_full(probability.shape, -torch.inf).scatter_reduce(1, label, similarity, "amax")
    return cosine.float().cpu().numpy(), probability.float().cpu().numpy()


def region_rows(
    tokens: RegionTokens,
    text: Float[Tensor, "Q D"],
    labels: "Sequence[str] | LabelPrompts",
    top: int = 5,
    crops: Sequence[RegionCrop] | None = None,
) -> list[dict]:
    """One entry per region: where it is, how sure the mask source was, its `top` best labels, best first.

    {"region": index into the tokens and `Segmentation.region_map`, "mask": which given or generated mask,
    "box": [x1, y1, x2, y2] in pixels, "area": in pixels, "predicted_iou", "stability",
    "labels": [{"index", "name", "cosine", "probability"}]}

    text, labels: as `region_scores`. crops: `crop_regions(tokens.masks)` if already made.
    """
    prompts = LabelPrompts.parse(labels)
    cosine, probability = region_scores(tokens, text, prompts)
    best = np.argsort(-cosine, axis=1, kind="stable")[:, :top]
    areas = [crop.area for crop in (crop_regions(tokens.masks) if crops is None else crops)]
    plain = {name: getattr(tokens.masks, name).tolist() for name in ("boxes", "predicted_iou", "stability")}
    return [
        {
            "region": r,
            "mask": int(tokens.source_index[r]),
            "box": [round(value, 2) for value in plain["boxes"][r]],
            "area": areas[r],
            "predicted_iou": round(plain["predicted_iou"][r], DIGITS),
            "stability": round(plain["stability"][r], DIGITS),
            "labels": [
                {
                    "index": int(q),
                    "name": prompts.names[q],
                    "cosine": round(float(cosine[r, q]), DIGITS),
                    "probability": round(float(probability[r, q]), DIGITS),
                }
                for q in best[r]
            ],
        }
        for r in range(len(tokens))
    ]


def coco_json(images: Sequence[tuple[str, Segmentation]]) -> dict:
    """A COCO file of label maps: one annotation per label present in each (file name, result).

    Masks are compressed RLE as pycocotools writes it. Category ids start at 1 and follow the first mention of a
    name, so for one image without duplicate labels an id is the label map's pixel value + 1.
    """
    entries = []
    for name, result in images:
        entries.append((name, result.label_map.shape, result.labels, result.to_coco_rle()))
    return _coco_file(entries)


def coco_regions_json(
    file_name: str, tokens: RegionTokens, rows: Sequence[dict], labels: Sequence[str], crops: Sequence[RegionCrop]
) -> dict:
    """A COCO file of one image's regions, which may overlap: one annotation per region, its best label as category.

    rows: from `region_rows`; labels: all names in order; crops: `crop_regions(tokens.masks)`. "score" is the best
    label's probability, "region" the index into the tokens.
    """
    annotations, size = [], tuple(tokens.masks.image_size)
    full = np.zeros(size, np.uint8, order="F")
    for row, crop in zip(rows, crops, strict=True):
        if row["area"] == 0:
            continue
        crop.paint(full, 1)
        best = row["labels"][0]
        annotations.append(
            {"category": best["name"], **encode_mask(full), "score": best["probability"], "region": row["region"]}
        )
        full[crop.rows, crop.columns] = 0
    return _coco_file([(file_name, size, labels, annotations)])


def encode_mask(mask: np.ndarray) -> dict:
    """{"segmentation": compressed RLE with text counts, "area", "bbox": [x, y, width, height]} of a (H, W) mask."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    segmentation = {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode()}
    box = [float(v) for v in coco_mask.toBbox(rle)]
    return {"segmentation": segmentation, "area": int(coco_mask.area(rle)), "bbox": box}


def _coco_file(entries: Sequence[tuple[str, tuple[int, int], Sequence[str], list[dict]]]) -> dict:
    """(file name, (H, W), all label names, annotations with a "category" name) per image, in COCO's layout."""
    names = list(dict.fromkeys(name for _, _, labels, _ in entries for name in labels))
    ids = {name: i for i, name in enumerate(names, start=1)}
    images = [
        {"id": i, "file_name": file_name, "width": size[1], "height": size[0]}
        for i, (file_name, size, _, _) in enumerate(entries, start=1)
    ]
    found = [(i, a) for i, (_, _, _, annotations) in enumerate(entries, start=1) for a in annotations]
    annotations = [
        {**a, "id": n, "image_id": i, "category_id": ids[a["category"]], "iscrowd": 0}
        for n, (i, a) in enumerate(found, start=1)
    ]
    return {
        "info": {"description": "TextRegion: region masks labelled with words", "version": "1.0"},
        "images": images,
        "categories": [{"id": ids[name], "name": name, "supercategory": ""} for name in names],
        "annotations": annotations,
    }


def similarity_map(
    tokens: RegionTokens,
    scores: Float32[np.ndarray, " R"] | Float32[Tensor, " R"],
    crops: Sequence[RegionCrop] | None = None,
) -> Float32[np.ndarray, "H W"]:
    """One label's scores painted through the regions: the largest among those that cover a pixel, NaN where none does.

    scores: one number per region, e.g. a column of `region_scores` or `tokens.similarity(text)[:, q]`.
    crops: `crop_regions(tokens.masks)`, worth keeping when several labels are painted. Memory: the map and a bit
    per pixel of the regions' boxes.
    """
    values = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores, np.float32)
    if values.shape != (len(tokens),):
        raise InputError(f"got scores of shape {values.shape}, expected one for each of {len(tokens)} regions")
    crops = crop_regions(tokens.masks) if crops is None else crops
    painted = np.full(tuple(tokens.masks.image_size), np.nan, np.float32)
    for r in np.argsort(values, kind="stable"):  # the largest is painted last
        crops[r].paint(painted, values[r])
    return painted
