"""From what the browser sends to what the page shows, draws and saves, without gradio. Bad input becomes one line."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageDraw

from textregion.errors import InputError
from textregion.outputs.annotations import coco_json, labels_json, region_rows
from textregion.outputs.pictures import draw_regions, font, heat_map, sentences, shorten, with_footer
from textregion.render import encode_mask, label_map_image, outline, png_bytes
from textregion.tiny.models import unknown_words
from textregion.types import Segmentation
from textregion.web.cached_segmenter import Answer, CachedSegmenter, EncodedImage, GlobalPatches, Question, resize

EMPTY = "Start with an image: drop one, or choose one of the drawn scenes."
ENCODING = "The image is read and encoded, once; then words are quick."
HINT = "Click anywhere in the picture to see how a region scores."
MOST_ROWS = 12  # of scores
SLOW_WORDS = 1.0  # seconds from which on it is told how far the words are
Pixels = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]
SWITCHES = ("masks", "names", "heat map")
SMALLEST_NAMED = 0.002  # share of the picture below which a patch of a label gets no name
SMALLEST_OUTLINED = 0.0008  # share of the picture below which a speck of a region gets no outline
MOST_NAMES = 40
REFERRED = (255, 140, 0)
Point = tuple[float, float]  # shares (x, y) of a picture's width and height, in [0, 1]
LABELS, SENTENCE = "Labels", "Sentence"


@dataclass(frozen=True)
class DrawingOptions:
    """How an answer is drawn: opacity 0..1 of the colours; masks, names, and the global-patch scores or not."""

    opacity: float = 0.6
    masks: bool = True
    names: bool = True
    heat_map: bool = False


@dataclass(frozen=True)
class PageContent:
    """What the page shows: a picture or none, and pieces of HTML. answered: whether there is something to save."""

    notice: str
    picture: Pixels | None = None
    legend: str = ""
    scores: str = ""
    answered: bool = False


@dataclass(frozen=True)
class Controls:
    """The page's controls as a browser sends them: nothing is known about their types yet.

    upload: {"path", "orig_name", …} of the image's file, or None.
    """

    upload: Any
    mode: Any
    text: Any
    threshold: Any
    opacity: Any
    switches: Any

    @property
    def path(self) -> str:
        """Where the uploaded file lies. InputError when there is none."""
        path = self.upload.get("path") if isinstance(self.upload, dict) else None
        if not isinstance(path, str):
            raise InputError(EMPTY)
        return path

    @property
    def file_stem(self) -> str:
        """The user's file name without ending and without anything unusual."""
        stem = Path(str(self.upload.get("orig_name") or "")).stem
        return re.sub(r"[^\w-]+", "_", stem).strip("_")[:60] or "image"

    @property
    def file_name(self) -> str:
        """The user's file name, without any folder: what COCO files call the image."""
        return Path(str(self.upload.get("orig_name") or "")).name or "image"

    @property
    def question(self) -> Question:
        """What is asked. InputError when the values cannot be meant."""
        if not isinstance(self.text, str) or not is_share(self.threshold):
            raise InputError("got something else than a text and a threshold from 0 to 1; load the page again")
        sentence = self.mode == SENTENCE
        return Question(self.text, sentence, 0.0 if sentence else float(self.threshold))

    @property
    def drawing(self) -> DrawingOptions:
        """How the answer is drawn. InputError when the values cannot be meant."""
        if not is_share(self.opacity) or not isinstance(self.switches, list):
            raise InputError("got something else than an opacity from 0 to 1 and switches; load the page again")
        return DrawingOptions(float(self.opacity), *(name in self.switches for name in SWITCHES))


def is_share(value: Any) -> bool:
    """Whether a value is a number from 0 to 1."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def page_content(model: CachedSegmenter, controls: Controls, point: Point | None = None) -> PageContent:
    """The page for these controls. point: where the picture was clicked last, as shares (x, y) of its sides."""
    if not controls.upload:
        return PageContent(notice(EMPTY, "hint"))
    image = None
    try:
        image = model.open(controls.path)
        if isinstance(controls.text, str) and not controls.text.strip(" ,;\n\t"):
            what = "a sentence such as: the red star" if controls.mode == SENTENCE else "labels, separated by commas"
            hint = notice(f"{len(image.regions)} regions found. Now type {what}.", "hint")
            return PageContent(hint, draw_regions(image.shown, image.regions.masks))
        return answered(model, image, controls, point)
    except InputError as error:
        return PageContent(notice(sentence_case(error), "error"), None if image is None else image.shown)


def words_read(model: CachedSegmenter, controls: Controls) -> Iterator[str]:
    """Encode the words that are new; notices with a bar while that takes long. Bad ones are left to `page_content`."""
    try:
        for done, total, seconds in model.embed_new(controls.question):
            if seconds > SLOW_WORDS and done < total:
                left = f"about {seconds / done * (total - done):.0f} s left"
                bar = f'<progress max="{total}" value="{done}"></progress>'
                told = f"Reading words: {done} of {total}, {left}. They are remembered."
                yield notice(told).replace("</p>", f" {bar}</p>")
    except InputError:
        return


def answered(model: CachedSegmenter, image: EncodedImage, controls: Controls, point: Point | None) -> PageContent:
    """An image with words: how much was found, which words the tiny model never learned, what a heat map means."""
    question, drawing = controls.question, controls.drawing
    answer = model.ask(image, question)
    region = None if point is None else answer.region_at(point)
    selected = None if region is None else image.region_mask(region, image.shown.shape[:2])
    picture = draw(image.shown, answer, drawing, model.global_patches(image), selected)
    unknown = unknown_words(list(answer.words)) if model.preset == "tiny" else []
    text = sentences(f"{len(image.regions)} regions in {image.size[1]} × {image.size[0]} pixels", answer.note)
    if repeated := [] if question.sentence else question.labels[1]:
        text += f" Named more than once, taken once: {', '.join(repeated)}."
    if unknown:
        text += f" The tiny model never saw: {', '.join(unknown)}."
    if drawing.heat_map:
        text += " Heat map: how much more a patch is like its own regions than like others, blue little, red much;"
        text += " hatched: left out."
    note = notice(text, "hint" if unknown or answer.note else "news")
    return PageContent(note, picture, legend(answer), scores(answer, region, point is not None), True)


def notice(text: str, kind: str = "news") -> str:
    """One line below the controls; kind: "news", "hint" or "error"."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="tr-notice tr-{kind}" role="{role}">{escape(text)}</p>'


def legend(answer: Answer) -> str:
    """Each label with its colour and its share of the picture, largest first; for a sentence its score and box."""
    if (found := answer.grounding) is not None:
        if found.region is None:
            return notice("No region was found in this image.", "hint")
        box = "" if found.box is None else " · box {:.0f}, {:.0f}, {:.0f} × {:.0f}".format(*found.box)
        words = named(REFERRED, answer.names[0], f"region {found.region} · cosine {found.score:.3f}{box}")
        return f'<p class="tr-grounding">{words}</p>'
    if not answer.labelled:
        return notice("No region was found in this image: no label is told.", "hint")
    counts = np.bincount(answer.result.label_map.ravel(), minlength=len(answer.names))
    shares, colours = counts / answer.result.label_map.size, answer.result.palette
    largest_first = np.argsort(-shares, kind="stable")
    items = [f"<li>{named(colours[i], answer.names[i], f'{shares[i]:.1%}')}</li>" for i in largest_first]
    return f'<ul class="tr-legend">{"".join(items)}</ul>'


def named(colour: np.ndarray | tuple[int, int, int], name: str, share: str) -> str:
    """A colour with its name, and a number that goes with it."""
    return f'{swatch(colour)}<span class="tr-name">{escape(name)}</span><span class="tr-share">{share}</span>'


def scores(answer: Answer, region: int | None, clicked: bool) -> str:
    """The scores of a region: every label, best first; for a sentence every region, best first."""
    if answer.grounding is not None:
        return sentence_scores(answer, region, clicked)
    if region is None:
        if not answer.labelled:
            return notice("No region lies there.", "hint")
        return notice("No region lies there: the first label is used." if clicked else HINT, "hint")
    cosine, colours = answer.cosine[region], answer.result.palette
    rows = [
        (swatch(colours[i]) + escape(answer.names[i]), float(cosine[i]), f"{answer.probability[region, i]:.1%}")
        for i in np.argsort(-cosine, kind="stable")[:MOST_ROWS]
    ]
    return table(f"Region {region}", ("label", "cosine", "probability"), rows, cosine)


def sentence_scores(answer: Answer, region: int | None, clicked: bool) -> str:
    """How well each region fits the sentence; the clicked one is marked."""
    if clicked and region is None:
        return notice("No region lies there.", "hint")
    cosine, rows = answer.cosine[:, 0], []
    for rank, r in enumerate(np.argsort(-cosine, kind="stable"), start=1):
        if rank <= MOST_ROWS or r == region:
            name = f"<b>region {r}, clicked</b>" if r == region else f"region {r}"
            rows.append((name, float(cosine[r]), f"{rank} of {len(cosine)}"))
    return table("Regions for this sentence", ("region", "cosine", "rank"), rows, cosine)


def table(title: str, heads: Sequence[str], rows: Sequence[tuple], cosine: Float32[np.ndarray, " n"]) -> str:
    """A table of (HTML, cosine, text), with bars from the least to the largest of `cosine`."""
    low, high = float(cosine.min(initial=0)), float(cosine.max(initial=1e-6))
    body = "".join(
        f'<tr><td>{name}</td><td class="tr-number">{value:.3f}</td>'
        f'<td class="tr-bar"><i style="width:{100 * (value - low) / max(high - low, 1e-6):.0f}%"></i></td>'
        f'<td class="tr-number">{text}</td></tr>'
        for name, value, text in rows
    )
    head = f"<tr><th>{heads[0]}</th><th>{heads[1]}</th><th></th><th>{heads[2]}</th></tr>"
    return f'<table class="tr-scores"><caption>{title}</caption><thead>{head}</thead><tbody>{body}</tbody></table>'


def swatch(colour: np.ndarray | tuple[int, int, int]) -> str:
    """A small square of an RGB colour, 0..255 each."""
    return f'<i class="tr-swatch" style="background:#{bytes(int(c) for c in colour).hex()}"></i>'


def share_of(size: tuple[int, int], index: Any) -> Point:
    """A click at pixel (x, y) of a picture (h, w) as shares of its sides. InputError for anything else."""
    numbers = isinstance(index, (list, tuple)) and len(index) == 2 and all(isinstance(n, (int, float)) for n in index)
    height, width = size
    if not numbers or not (0 <= index[0] <= width and 0 <= index[1] <= height):
        raise InputError("that click was not in the picture; click again")
    return min(index[0] / width, 1.0), min(index[1] / height, 1.0)


def sentence_case(error: InputError) -> str:
    """The error's line as a sentence."""
    return str(error)[:1].upper() + str(error)[1:]


def save(model: CachedSegmenter, controls: Controls, kind: str) -> tuple[str, bytes]:
    """(file name, content) of a download; kind: a key of DOWNLOADS. InputError as `page_content` shows it."""
    _, ending, make = DOWNLOADS[kind]
    return f"{controls.file_stem}{ending}", make(model, model.open(controls.path), controls)


def picture_png(model: CachedSegmenter, image: EncodedImage, controls: Controls) -> bytes:
    """What the page shows but the clicked region, in the image's own resolution or the page's, whichever is larger.

    Below it is what has to be said of the answer, if anything.
    """
    size = max(image.size, image.shown.shape[:2])
    answer = model.answer(image, controls.question, size)
    pixels = resize(model.pixels(controls.path), size)
    picture = draw(pixels, answer, controls.drawing, model.global_patches(image))
    shown = with_footer(picture, note=sentences(answer.note)) if answer.note else Image.fromarray(picture)
    return png_bytes(shown)


def label_map_png(model: CachedSegmenter, image: EncodedImage, controls: Controls) -> bytes:
    """Label indices in the image's own resolution, as palette PNG; for a sentence 255 in its region, 0 elsewhere."""
    return mask_png(model.answer(image, controls.question, image.size))


def mask_png(answer: Answer) -> bytes:
    """An answer's label indices as palette PNG; for a sentence 255 in its region, 0 elsewhere."""
    if answer.grounding is not None:
        return png_bytes(Image.fromarray(answer.grounding.mask.astype(np.uint8) * 255))
    return png_bytes(label_map_image(answer.result.label_map, answer.result.palette))


def numbers_json(model: CachedSegmenter, image: EncodedImage, controls: Controls) -> bytes:
    """What `answer_numbers` tells, in the image's own resolution."""
    question = controls.question
    content = answer_numbers(model, image, question, model.answer(image, question, image.size), controls.file_name)
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def answer_numbers(
    model: CachedSegmenter, image: EncodedImage, question: Question, answer: Answer, name: str
) -> dict[str, Any]:
    """Labels, every region's scores, and the masks as COCO (outputs/annotations.py), which calls the image `name`.

    For a sentence: the region it refers to, its box, score and mask, and every region's score.
    """
    rows = region_rows(image.regions, model.embed(answer.words), answer.words, top=len(answer.names))
    content = {"file": name, "preset": model.preset, "note": answer.note}
    if (found := answer.grounding) is None:
        content |= {"threshold": question.threshold, **labels_json(answer.result, image.regions, answer.note)}
        content["regions"] = rows
        content["coco"] = coco_json([(name, answer.result, image.regions)], answer.note)
    else:
        mask = None if found.region is None else encode_mask(found.mask)
        content |= {"sentence": answer.names[0], "region": found.region, "box": found.box, "score": found.score}
        content |= {"mask": mask, "regions": rows}
    return content


DOWNLOADS: dict[str, tuple[str, str, Callable[..., bytes]]] = {  # button, end of the file's name, what makes it
    "picture": ("Picture (PNG)", "_picture.png", picture_png),
    "labels": ("Label map (PNG)", "_labels.png", label_map_png),
    "numbers": ("Scores and masks (JSON)", ".json", numbers_json),
}


# ---------------------------------------------------------------------- the picture of an answer


def draw(
    image: Pixels,
    answer: Answer,
    options: DrawingOptions,
    global_patches: GlobalPatches | None = None,
    selected: Mask | None = None,
) -> Pixels:
    """The image with an answer of the same size over it.

    global_patches: of the image; None where removal is off, and then there is no heat map.
    selected: the clicked region, which gets a bold outline.
    """
    if options.heat_map and global_patches is not None:
        image = heat_map(image, *global_patches)
        picture = outline(image, answer.result.label_map) if options.masks else image
    elif options.masks and answer.grounding is None and answer.labelled:
        picture = answer.result.overlay(image, options.opacity)
    else:
        picture = image.copy()
    if answer.grounding is not None:
        picture = draw_grounding(picture, answer, options)
    if selected is not None:
        picture = bold_outline(picture, selected)
    named = options.names and answer.grounding is None and answer.labelled
    return draw_names(picture, answer.result) if named else picture


def draw_grounding(picture: Pixels, answer: Answer, options: DrawingOptions) -> Pixels:
    """Everything but the region a sentence refers to in the dark (masks), and its box with the sentence (names)."""
    grounding, (height, width) = answer.grounding, picture.shape[:2]
    if grounding is None or grounding.box is None:
        return picture
    mask = cv2.resize(grounding.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    if options.masks:
        dark = (picture * (1 - 0.85 * options.opacity)).astype(np.uint8)
        picture = bold_outline(np.where(mask[..., None], picture, dark), mask, REFERRED)
    if not options.names:
        return picture
    scale = np.array([width, height] * 2) / np.array([*grounding.mask.shape[::-1]] * 2)
    x, y, w, h = (np.array(grounding.box) * scale).round().astype(int).tolist()
    cv2.rectangle(picture, (x, y), (x + w, y + h), REFERRED, line_width(picture))
    return write_names(picture, [(answer.names[0], (x + w // 2, max(y, 0)))])


def bold_outline(picture: Pixels, mask: Mask, colour: tuple[int, int, int] = (255, 255, 255)) -> Pixels:
    """The picture with the border of a mask in a colour, on black so that it shows everywhere."""
    out, width = picture.copy(), line_width(picture)
    smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), width) > 0.5  # masks are coarser than the picture
    found, _ = cv2.findContours(smooth.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    borders = [border for border in found if cv2.contourArea(border) > SMALLEST_OUTLINED * mask.size]
    cv2.drawContours(out, borders, -1, (0, 0, 0), 2 * width + 2, cv2.LINE_AA)
    cv2.drawContours(out, borders, -1, colour, width, cv2.LINE_AA)
    return out


def line_width(picture: Pixels) -> int:
    """Pixels of a bold line."""
    return max(2, max(picture.shape[:2]) // 250)


def draw_names(picture: Pixels, result: Segmentation) -> Pixels:
    """Each label's name on its largest patch, large patches first, none over another."""
    patches = []
    for index in np.flatnonzero(np.bincount(result.label_map.ravel()) > SMALLEST_NAMED * result.label_map.size):
        area, centre = largest_patch(result.label_map == index)
        if area > SMALLEST_NAMED * result.label_map.size:
            patches.append((area, result.labels[index], centre))
    return write_names(picture, [(name, centre) for _, name, centre in sorted(patches, reverse=True)[:MOST_NAMES]])


def largest_patch(mask: Mask) -> tuple[int, tuple[int, int]]:
    """Pixels of a mask's largest 8-connected component, and its point (x, y) that lies farthest from its border."""
    _, components, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    best = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    inside = cv2.copyMakeBorder((components == best).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(stats[best, cv2.CC_STAT_AREA]), (int(x), int(y))


def write_names(picture: Pixels, names: Sequence[tuple[str, tuple[int, int]]]) -> Pixels:
    """Names on dark plates centred at points (x, y), kept inside the picture; none that would cover another."""
    height, width = picture.shape[:2]
    size = max(13, max(height, width) // 38)
    canvas = Image.fromarray(picture)
    draw_on, taken = ImageDraw.Draw(canvas, "RGBA"), []
    for name, (x, y) in names:
        name, pad = shorten(name, size, width / 2), size // 3
        left, top, right, bottom = draw_on.textbbox((0, 0), name, font(size))
        plate_w, plate_h = right - left + 2 * pad, bottom - top + 2 * pad
        x0 = int(min(max(x - plate_w / 2, 0), max(width - plate_w, 0)))
        y0 = int(min(max(y - plate_h / 2, 0), max(height - plate_h, 0)))
        if any(x0 < b[2] and b[0] < x0 + plate_w and y0 < b[3] and b[1] < y0 + plate_h for b in taken):
            continue
        taken.append((x0, y0, x0 + plate_w, y0 + plate_h))
        draw_on.rounded_rectangle(taken[-1], pad, fill=(17, 24, 39, 205))
        draw_on.text((x0 + pad - left, y0 + pad - top), name, "white", font(size))
    return np.array(canvas)
