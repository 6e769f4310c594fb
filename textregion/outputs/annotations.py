"""What results look like in files that other programs read: JSON of labels, regions and boxes, COCO, similarity maps.

Pure functions from results to plain dictionaries and arrays; nothing here touches the disk.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32
from torch import Tensor

from textregion.boxes import GivenBoxes
from textregion.devices import read
from textregion.errors import InputError
from textregion.labels import LabelPrompts, region_scores
from textregion.regionspot.model import probabilities
from textregion.render import to_rle
from textregion.resampling import RegionCrop, crop_regions
from textregion.types import RegionTokens, Segmentation

Crops = Sequence[RegionCrop]  # of every region of some tokens
TOP = 5  # labels told of a region
DIGITS = 5  # of every score in JSON: enough to compare, short enough to read


def label_shares(result: Segmentation, tokens: RegionTokens | None) -> list[tuple[str, float]]:
    """(label, share of pixels) in the order of the labels; unlike `Segmentation.shares` with duplicate labels.

    tokens: what was labelled, None of pixels labelled without regions, here as in all that follows. Empty where no
    pixel has a label that means anything (`is_labelled`).
    """
    if not is_labelled(result, tokens):
        return []
    counts = np.bincount(result.label_map[result.label_map >= 0], minlength=len(result.labels))
    return [(name, n / result.label_map.size) for name, n in zip(result.labels, counts, strict=True)]


def is_labelled(result: Segmentation, tokens: RegionTokens | None) -> bool:
    """Whether any pixel has a label that means anything: of a region, or of dense features where no region lies, or
    without regions at all.

    Otherwise the label map holds the first label everywhere (method 8.4), which files and pictures must not tell.
    """
    return tokens is None or tokens.dense is not None or bool((result.region_map >= 0).any())


def no_region_note(result: Segmentation, tokens: RegionTokens | None) -> str:
    """What every file and picture says of an image without a region; nothing where some region covers a pixel."""
    if tokens is None or bool((result.region_map >= 0).any()):
        return ""
    if bool((result.label_map < 0).all()):
        return f"{no_region(len(tokens))}: no pixel has a label"
    if is_labelled(result, tokens):
        return f"{no_region(len(tokens))}: labelled from dense features"
    return f"{no_region(len(tokens))}: the label map holds the first label everywhere, which means nothing"


def no_region(regions: int) -> str:
    """In the fewest words: why there is nothing to tell of an image, of which `regions` were found."""
    return "no region covers a pixel" if regions else "no region found"


def told_labels(shares: Sequence[tuple[str, float]], most: int) -> list[int]:
    """Which labels to tell, ascending: all, or of more than `most` the largest of those that have any pixel."""
    if len(shares) <= most:
        return list(range(len(shares)))
    present = [i for i, (_, share) in enumerate(shares) if share > 0]
    return sorted(sorted(present, key=lambda i: -shares[i][1])[:most])


def labels_json(result: Segmentation, tokens: RegionTokens | None, note: str = "") -> dict:
    """What the pixel values of a label map mean, and how much each label has.

    {"image": {"width", "height"}, "regions": how many, "note", "unlabelled": share of pixels without a label, where
    there are any, "uncovered": share of pixels in no region (None of both without regions), "labels":
    [{"index", "name", "colour": "#rrggbb", "pixels", "share": of the pixels in [0, 1], "confidence": mean probability
    or None}]}, every label in the order asked for, also those without a pixel.

    tokens: what was labelled. Without any region (and dense features) no label has a pixel here, though the label map
    holds the first one everywhere; note: that says so, and what else is to be said of all results.
    """
    has_label = (result.label_map >= 0) & is_labelled(result, tokens)
    flat, count = result.label_map[has_label], len(result.labels)
    pixels = np.bincount(flat, minlength=count)
    confidence = np.bincount(flat, result.confidence[has_label], minlength=count) / np.maximum(pixels, 1)
    labels = [
        {
            "index": i,
            "name": name,
            "colour": "#" + bytes(colour.tolist()).hex(),
            "pixels": int(pixels[i]),
            "share": round(float(pixels[i]) / max(result.label_map.size, 1), DIGITS),
            "confidence": round(float(confidence[i]), DIGITS) if pixels[i] else None,
        }
        for i, (name, colour) in enumerate(zip(result.labels, result.palette, strict=True))
    ]
    regions = None if tokens is None else len(tokens)
    head = {**image_json(result.label_map.shape), "regions": regions, "note": note}
    if bare := unlabelled_share(result):
        head["unlabelled"] = bare
    return {**head, "uncovered": uncovered_share(result, tokens), "labels": labels}


def image_json(size: tuple[int, int]) -> dict:
    """{"image": {"width", "height"}} of an image of (H, W) pixels."""
    return {"image": {"width": size[1], "height": size[0]}}


def uncovered_share(result: Segmentation, tokens: RegionTokens | None) -> float | None:
    """Share of the pixels that lie in no region, in [0, 1]; None without regions."""
    return None if tokens is None else round(float((result.region_map < 0).mean()), DIGITS)


def unlabelled_share(result: Segmentation) -> float:
    """Share of the pixels without a label, in [0, 1]."""
    return round(float((result.label_map < 0).mean()), DIGITS)


def region_rows(
    tokens: RegionTokens,
    text: Float[Tensor, "Q D"],
    labels: "Sequence[str] | LabelPrompts",
    top: int = TOP,
    crops: Crops | None = None,
) -> list[dict]:
    """One entry per region: where it is, how sure the mask source was, its `top` best labels, best first.

    {"region": index into the tokens and `Segmentation.region_map`, "mask": which given or generated mask,
    "box": [x1, y1, x2, y2] in pixels, end-exclusive, around the mask at the image's size, "area": of it in pixels,
    "predicted_iou", "stability", "labels": [{"index", "name", "cosine", "probability"}]}

    text, labels: as `region_scores`. crops: `crop_regions(tokens.masks)` if already made.
    """
    prompts, masks = LabelPrompts.parse(labels), tokens.masks
    cosine, probability = region_scores(tokens, text, prompts)
    crops = crop_regions(masks) if crops is None else crops
    told = read(tokens.source_index, masks.predicted_iou, masks.stability)
    source_index, predicted_iou, stability = (values.tolist() for values in told)
    return [
        {
            "region": r,
            "mask": source_index[r],
            "box": crop_box(crops[r]),
            "area": crops[r].area,
            "predicted_iou": round(predicted_iou[r], DIGITS),
            "stability": round(stability[r], DIGITS),
            "labels": _best(prompts.names, cosine[r], top, cosine=cosine[r], probability=probability[r]),
        }
        for r in range(len(tokens))
    ]


def crop_box(crop: RegionCrop) -> list[int]:
    """[x1, y1, x2, y2], end-exclusive, of the image's pixels that a region covers; zeros where it covers none."""
    mask = crop.mask
    if not mask.any():
        return [0, 0, 0, 0]
    x, y = crop.columns.start + mask.any(0).nonzero()[0], crop.rows.start + mask.any(1).nonzero()[0]
    return [int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1]


def box_rows(
    tokens: RegionTokens,
    given: GivenBoxes,
    text: Float[Tensor, "Q D"],
    labels: "Sequence[str] | LabelPrompts",
    scale: float,
    top: int = 5,
) -> list[dict]:
    """One entry per box, in order: where it is, what it may be, best first.

    {"box": its number, "xyxy" in pixels, "detector_score" or None, "region": index into the tokens or None where the
    box has none, "predicted_iou" of its mask or None, "labels": [{"index", "name", "cosine", "probability", "score"}]}

    probability: softmax over the queries of scale * logit, the largest of a label's queries. score: times the
    detector's score, or the probability itself where there is none (RegionSpot 3.3). text: embeddings of the
    labels' queries. Boxes without a token have no labels.
    """
    prompts = LabelPrompts.parse(labels)
    cosine = prompts.best_query(tokens.similarity(text)).cpu().numpy()
    probability = prompts.best_query(probabilities(tokens.logits(text), scale)).cpu().numpy()
    region_of = {int(box): region for region, box in enumerate(tokens.source_index)}
    rows = []
    for number, box in enumerate(given.boxes):
        region, detector = region_of.get(number), None if given.scores is None else float(given.scores[number])
        row = {"box": number, "xyxy": [round(float(value), 2) for value in box]}
        row["detector_score"] = None if detector is None else round(detector, DIGITS)
        row |= {"region": region, "predicted_iou": None, "labels": []}
        if region is not None:
            row["predicted_iou"] = round(float(tokens.masks.predicted_iou[region]), DIGITS)
            score = probability[region].astype(float) * (1.0 if detector is None else detector)
            columns = {"cosine": cosine[region], "probability": probability[region], "score": score}
            row["labels"] = _best(prompts.names, probability[region], top, **columns)
        rows.append(row)
    return rows


def _best(names: Sequence[str], by: np.ndarray, top: int, **columns: Float[np.ndarray, " L"]) -> list[dict]:
    """The `top` labels by the largest of L numbers, with what each of the columns says of them."""
    best = np.argsort(-by, kind="stable")[:top].tolist()
    told = [{name: round(float(values[i]), DIGITS) for name, values in columns.items()} for i in best]
    return [{"index": i, "name": names[i], **row} for i, row in zip(best, told, strict=True)]


def coco_json(images: Sequence[tuple[str, Segmentation, RegionTokens | None]], note: str = "") -> dict:
    """A COCO file of label maps: one annotation per label present in each (file name, result, what was labelled).

    Masks are compressed RLE as pycocotools writes it. Category ids start at 1 and follow the first mention of a
    name, so for one image without duplicate labels an id is the label map's pixel value + 1. Where no label means
    anything (`is_labelled`) there is no annotation. note: for "info".
    """
    entries = []
    for name, result, tokens in images:
        found = result.to_coco_rle() if is_labelled(result, tokens) else []
        entries.append((name, result.label_map.shape, result.labels, found))
    return _coco_file(entries, note)


def coco_regions_json(
    file_name: str,
    tokens: RegionTokens,
    rows: Sequence[dict],
    labels: Sequence[str],
    crops: Crops,
    note: str = "",
    least: float = 0.0,
    absent: Sequence[str] = (),
) -> dict:
    """A COCO file of one image's regions, which may overlap: one annotation per region, its best label as category.

    rows: from `region_rows`, whose boxes and areas are these; labels: all names in order; crops:
    `crop_regions(tokens.masks)`. "score" is the best label's probability, "region" the index into the tokens. Regions
    without a pixel at the image's size are left out; so are those whose best label is `absent` or less probable than
    `least`. "info" says how many, after the note.
    """
    annotations, size = [], tuple(tokens.masks.image_size)
    full = np.zeros(size, np.uint8, order="F")
    pixelless, nameless = 0, 0
    for row, crop in zip(rows, crops, strict=True):
        best = row["labels"][0]
        if not row["area"]:
            pixelless += 1
        elif best["name"] in absent or best["probability"] < least:
            nameless += 1
        else:
            crop.paint(full, 1)
            x1, y1, x2, y2 = map(float, row["box"])
            shape = {"segmentation": to_rle(full), "area": row["area"], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            category, score = best["name"], best["probability"]
            annotations.append({"category": category, **shape, "score": score, "region": row["region"]})
            full[crop.rows, crop.columns] = 0
    counted = {"cover no pixel": pixelless, "have no label": nameless}
    said = [f"left out, for they {why}: {n} of {len(rows)} regions" for why, n in counted.items() if n]
    return _coco_file([(file_name, size, labels, annotations)], "; ".join(filter(None, [note, *said])))


def _coco_file(entries: Sequence[tuple[str, tuple[int, int], Sequence[str], list[dict]]], note: str) -> dict:
    """(file name, (H, W), all label names, annotations with a "category" name) per image, in COCO's layout."""
    names = dict.fromkeys(name for _, _, labels, _ in entries for name in labels)
    ids = {name: i for i, name in enumerate(names, start=1)}
    images, annotations = [], []
    for image, (file_name, (height, width), _, found) in enumerate(entries, start=1):
        images.append({"id": image, "file_name": file_name, "width": width, "height": height})
        for a in found:
            of = {"id": len(annotations) + 1, "image_id": image, "category_id": ids[a["category"]], "iscrowd": 0}
            annotations.append({**a, **of})
    return {
        "info": {"description": "TextRegion: region masks labelled with words", "version": "1.0", "note": note},
        "images": images,
        "categories": [{"id": i, "name": name, "supercategory": ""} for name, i in ids.items()],
        "annotations": annotations,
    }


def similarity_map(
    tokens: RegionTokens,
    scores: Float32[np.ndarray, " R"] | Float32[Tensor, " R"],
    crops: Crops | None = None,
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
