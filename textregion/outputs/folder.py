"""What is written for one image: RESULT_FILES in one folder that is either whole or not there, never over another run.

While results are written they lie in a hidden folder beside their place; `run.json` goes in last and the folder is
renamed. A process that dies leaves at most such a hidden folder, which the next run clears away.
"""

import json
import os
import platform
import re
import shutil
import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count, islice
from os.path import isfile
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from textregion.boxes import GivenBoxes
from textregion.errors import InputError
from textregion.images import format_and_orientation, load_image
from textregion.labels import TEMPERATURE, LabelPrompts, region_scores
from textregion.outputs import annotations, pictures
from textregion.outputs.annotations import Crops
from textregion.regionspot.model import encode_names
from textregion.render import RgbImage, label_colours
from textregion.resampling import crop_regions
from textregion.runtime import package_versions
from textregion.storage import UNFINISHED, flush_folder, safe_name, set_aside
from textregion.types import RegionTokens, Segmentation

RUN_FILE = "run.json"
BOXES_FILE = "boxes.json"
LABEL_MASKS, REGION_MASKS = "coco.json", "coco_regions.json"  # what a data set of many images is made of
DATASET = "dataset"  # folder of --export
RECORDS = ".records"  # folder of what --no_pictures keeps of each image
RESERVED = ("summary.csv", "summary.md", DATASET)  # files of the output folder itself
ASIDE = re.compile(r"\.old-(\d+)$", re.IGNORECASE)  # how `set_aside` ends a name
MOST_SIMILARITY_MAPS = 40
RESULT_FILES = {
    "picture.png": "image, regions and labels side by side",
    "overlay.png": "labels over the image in its own size, legend below",
    "labels.png": "label map: a pixel's value is its label's index",
    "labels.json": "names, colours, shares and confidence of the labels",
    "regions.png": "every region with its best labels and scores",
    "regions.json": "the same as data: box, area, scores",
    "coco.json": "COCO file of the labels' masks (RLE); its file_name is the image in this folder",
    "coco_regions.json": "COCO file of the regions' masks (RLE), which may overlap; the same",
    "<image>": "the image under its own name, upright: the pixels that all of these are about",
    BOXES_FILE: "what is in every box, with --boxes",
    "boxes.png": "the same drawn into the image",
    "global_patches.png": "score of every patch, with --visualize_global_patch",
    "similarity/": "one map per label, with --similarity_maps",
    "tokens.safetensors": "the region tokens for RegionTokens.load, with --save_tokens",
    RUN_FILE: "settings, versions, seconds, content hash; written last",
}
Text = Float[Tensor, "Q D"]  # embeddings of the labels' queries
LONGEST_IMAGE_NAME = 240  # bytes, of the image's copy: most file systems take 255
SETTLED = 10  # seconds after which nobody writes a summary any more: it takes milliseconds
QUICK = 2  # zlib's level: a third of the time of the default, a tenth more bytes
_numbers = count()


class OutputError(InputError):
    """Results cannot be written: full disk, no permission. There is no point in going on with further images."""


@dataclass(frozen=True)
class LabelledImage:
    """One image and what the segmenter made of it.

    name: the image's file name. tokens: None where pixels were labelled without regions; files of regions are then not
    written. labels: as asked for, with synonyms. note: the line under picture.png. caution: what
    every picture and file has to say of these results; nothing mostly. source: the image's file, where it has one.
    least, absent: regions whose best label has a smaller probability, or is one of these names, have no label.
    more_panels: of picture.png. more_files: further pictures (PNG) and dictionaries (JSON) by file name.
    """

    name: str
    pixels: RgbImage
    tokens: RegionTokens | None
    result: Segmentation
    labels: Sequence[str]
    note: str = ""
    caution: str = ""
    source: Path | None = None
    least: float = 0.0
    absent: Sequence[str] = ()
    more_panels: Sequence[tuple[str, RgbImage]] = ()
    more_files: Mapping[str, Image.Image | dict] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"LabelledImage({self.name!r}, {self.tokens!r}, {self.result!r})"


def write_results(
    folder: Path,
    image: LabelledImage,
    segmenter,
    run: dict,
    visualize_global_patch: bool = False,
    similarity_maps: bool = False,
    save_tokens: bool = False,
    top: int | None = None,
    only_masks: bool = False,
) -> dict:
    """Write all files of one image into its folder; returns what run.json holds.

    segmenter: the TextRegionSegmenter that made the result, or the ConceptLabeller. run: at least {"fingerprint"}; the
    rest is added. The flags ask for the further files of RESULT_FILES; top: labels told of every region (None: 5, in
    the picture 3); only_masks: for nothing but LABEL_MASKS and REGION_MASKS.
    OutputError when something cannot be written; the folder is then as it was before.
    """
    prompts, tokens = LabelPrompts.parse(image.labels), image.tokens
    text = None if tokens is None else segmenter.encode_text(prompts.queries)
    with segmenter.timer("write"), finished_folder(folder, run) as place:
        crops = None if tokens is None else crop_regions(tokens.masks)
        nothing = annotations.no_region_note(image.result, tokens)
        said = "; ".join(filter(None, [nothing, image.caution]))
        file_name = image.name if only_masks else write_image(place, image)
        for name, content in _label_files(image, file_name, said, crops, only_masks):
            write_file(place / name, content)
        if not only_masks:
            image.result.save_png(place / "labels.png")
        if tokens is not None:
            for name, content in _region_files(image, file_name, said, text, prompts, crops, top, only_masks):
                write_file(place / name, content)
            scores, threshold = tokens.patch_scores, segmenter.config.global_patch_threshold
            if visualize_global_patch and scores is not None and threshold is not None:
                picture = pictures.global_patch_picture(image.pixels, scores.cpu().numpy(), threshold, said)
                write_file(place / "global_patches.png", picture)
            if save_tokens:
                tokens.save(place / "tokens.safetensors")
            if similarity_maps:
                run["similarity_maps"] = _write_similarity(place / "similarity", image, said, text, prompts, crops)
        height, width = image.pixels.shape[:2]
        shares = sorted(annotations.label_shares(image.result, tokens), key=lambda item: -item[1])
        run |= {
            "width": width,
            "height": height,
            "regions": None if tokens is None else len(tokens),
            "note": said,
            "shares": [[name, round(float(share), annotations.DIGITS)] for name, share in shares[:10] if share > 0],
            "uncovered": annotations.uncovered_share(image.result, tokens),
            "versions": package_versions(),
            "finished": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
    return run


def write_file(path: Path, content: Image.Image | dict) -> None:
    """A picture as PNG, anything else as JSON. OSError passes through."""
    if isinstance(content, Image.Image):
        content.save(path, compress_level=QUICK)
    else:
        path.write_bytes(json_bytes(content))


def write_image(place: Path, image: LabelledImage) -> str:
    """Write the image beside its results, for whoever reads the COCO files; returns its file name.

    The file itself is copied, which costs its bytes. One that its EXIF tag turns is saved anew, upright, in its own
    format (JPEG at quality 95) where Pillow writes that: so the masks also fit for readers that pass over EXIF. Without
    a file a PNG is made of the pixels. OSError passes through.
    """
    taken = {name.rstrip("/").casefold() for name in RESULT_FILES} | {name.casefold() for name in image.more_files}
    name = safe_name(image.name, LONGEST_IMAGE_NAME)
    name = f"image_{name}" if name.casefold() in taken else name
    if image.source is None:
        name = str(Path(name).with_suffix(".png"))
        write_file(place / name, Image.fromarray(image.pixels))
    else:
        copy_upright(image.source, place / name)
    return name


def copy_upright(source: Path, target: Path) -> None:
    """Copy an image's file; one that its EXIF tag turns is saved anew, upright (`turned_format`)."""
    if (turned := turned_format(source)) is None:
        shutil.copyfile(source, target)
    else:
        Image.fromarray(load_image(source)).save(target, turned, quality=95)


def turned_format(path: Path) -> str | None:
    """Pillow's name of the format in which an image that its EXIF tag turns is saved anew; None for an upright one."""
    form, orientation = format_and_orientation(path)
    Image.init()
    return (form if form in Image.SAVE else "PNG") if orientation != 1 else None


def _label_files(
    image: LabelledImage, file_name: str, said: str, crops: Crops | None, only_masks: bool
) -> Iterator[tuple[str, Image.Image | dict]]:
    """Names and contents of what is written of the labels. crops: where the regions lie, of tokens that are not None.

    file_name: of the image in this folder. said: what all files say of these results.
    """
    pixels, tokens, result = image.pixels, image.tokens, image.result
    yield LABEL_MASKS, annotations.coco_json([(file_name, result, tokens)], said)
    if not only_masks:
        note = pictures.sentences(said, image.note)
        yield "picture.png", pictures.main_picture(pixels, tokens, result, crops, note, image.more_panels)
        yield "overlay.png", pictures.overlay_picture(pixels, result, tokens, said)
        yield "labels.json", annotations.labels_json(result, tokens, said)
        yield from image.more_files.items()


def _region_files(
    image: LabelledImage,
    file_name: str,
    said: str,
    text: Text,
    prompts: LabelPrompts,
    crops: Crops,
    top: int | None,
    only_masks: bool,
) -> Iterator[tuple[str, Image.Image | dict]]:
    """Names and contents of what is written of the regions. top: as of `write_results`; the rest: `_label_files`."""
    tokens = image.tokens
    rows = annotations.region_rows(tokens, text, prompts, top or annotations.TOP, crops)
    none = {"least": image.least, "absent": image.absent}
    yield REGION_MASKS, annotations.coco_regions_json(file_name, tokens, rows, prompts.names, crops, said, **none)
    if not only_masks:
        size = annotations.image_json(image.pixels.shape[:2])
        yield "regions.json", {**size, "note": said, "regions": rows}
        colours, lines = image.result.palette, top or pictures.LINES
        yield "regions.png", pictures.region_sheet(image.pixels, rows, crops, colours, said, lines=lines)


def _write_similarity(
    place: Path, image: LabelledImage, said: str, text: Text, prompts: LabelPrompts, crops: Crops
) -> dict[str, int]:
    """One picture per label, the first MOST_SIMILARITY_MAPS of them; returns how many were written and asked for."""
    place.mkdir()
    cosine, _ = region_scores(image.tokens, text, prompts)
    low, high = (float(cosine.min()), float(cosine.max())) if cosine.size else (0.0, 1.0)
    names = list(islice(file_names(prompts.names), MOST_SIMILARITY_MAPS))
    for index, name in enumerate(names):
        values = annotations.similarity_map(image.tokens, np.ascontiguousarray(cosine[:, index]), crops)
        picture = pictures.similarity_picture(image.pixels, values, prompts.names[index], low, high, said)
        write_file(place / f"{name}.png", picture)
    return {"written": len(names), "labels": len(prompts.names)}


def file_names(labels: Sequence[str]) -> Iterator[str]:
    """`<index>_<label>` for every label, with only letters, digits, "-" and "_", short enough for every disk."""
    digits = max(2, len(str(len(labels) - 1)))
    for index, label in enumerate(labels):
        safe = re.sub(r"[^\w-]+", "_", label).strip("_").encode("utf-8", "ignore")[:80].decode("utf-8", "ignore")
        yield f"{index:0{digits}d}_{safe}" if safe else f"{index:0{digits}d}"


def name_boxes(
    segmenter,
    image: RgbImage,
    tokens: RegionTokens,
    given: GivenBoxes,
    labels: Sequence[str],
    method: str,
    caution: str = "",
) -> dict[str, Image.Image | dict]:
    """Files that name an image's boxes from their tokens: boxes.json and boxes.png, by name; caution: both say it.

    RegionSpot's tokens are compared with its own embeddings of the names and CLIP's scale (RegionSpot 1.11, 1.12),
    TextRegion's as everywhere (method 8.3).
    """
    prompts = LabelPrompts.parse(labels)
    if method == "regionspot":
        text, scale = encode_names(segmenter.backbone, prompts.queries), segmenter.regionspot.scale
    else:
        text, scale = segmenter.encode_text(prompts.queries), TEMPERATURE
    rows = annotations.box_rows(tokens, given, text, prompts, scale)
    size, names = annotations.image_json(image.shape[:2]), list(prompts.names)
    said = "; ".join(filter(None, ["" if len(tokens) else annotations.no_region(0), caution]))
    content = {**size, "note": said, "method": method, "scale": round(scale, 4), "labels": names, "boxes": rows}
    note = pictures.sentences(f"method: {method}", said)
    return {BOXES_FILE: content, "boxes.png": pictures.boxes_picture(image, rows, label_colours(names), note)}


# ---------------------------------------------------------------------- the folder itself


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Failures to write become one line; what was written before stays."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write to {place} ({reason}); free space or choose another --output") from error


def output_names(paths: Sequence[Path]) -> list[str]:
    """One stable folder name per image: its stem, numbered where it is taken (also where only case or coding differs).

    What means no new folder on some system is made a name that does (`safe_name`), and so are the names that only this
    program gives: those of RESERVED and of folders that are set aside.
    """
    taken, names = {_same(name) for name in RESERVED}, []
    numbers = defaultdict(lambda: 1)  # the last one given to a stem
    for path in paths:
        name = stem = ASIDE.sub(r"_old-\1", safe_name(path.stem))
        while _same(name) in taken:
            numbers[_same(stem)] += 1
            name = f"{stem}_{numbers[_same(stem)]}"
        names.append(name)
        taken.add(_same(name))
    return names


def _same(name: str) -> str:
    """Names that some file system takes for one another are equal after this."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def read_run(folder: Path) -> dict | None:
    """The run.json of a finished folder whose files are all there; None otherwise."""
    try:
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(run, dict) or not isinstance(run.get("files"), list):
        return None
    return run if all(isfile(folder / str(name)) for name in run["files"]) else None


@contextmanager
def finished_folder(folder: Path, run: dict) -> Iterator[Path]:
    """A hidden folder to write into, which becomes `folder` when the body ends without an error.

    run: what run.json is to hold, with at least "fingerprint"; the body may add to it. "folder" and "files" are
    added here. An earlier `folder` with the same fingerprint is replaced; anything else at that place is moved
    aside to `<name>.old-1` (or -2, …), and after the body run["kept"] says where. OutputError when it cannot be
    written.
    """
    with writing(folder):
        hidden = _hidden(folder.parent)
        try:
            hidden.mkdir(parents=True)
            yield hidden
            files = sorted(str(p.relative_to(hidden)) for p in hidden.rglob("*") if p.is_file())
            run.update(folder=folder.name, files=files)
            (hidden / RUN_FILE).write_bytes(json_bytes(run))
            flush_folder(hidden)
            if (aside := _move_into_place(hidden, folder, run["fingerprint"])) is not None:
                run["kept"] = str(aside)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def json_bytes(content: object) -> bytes:
    """JSON to be read by people too; what UTF-8 cannot hold (parts of undecodable file names) stays escaped."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def clear_remains(output: Path) -> None:
    """Deal with what processes of this machine that died have left: hidden folders, of which whole ones whose place is
    free get it, and summaries half written SETTLED seconds ago or earlier.
    """
    for file in output.glob(".summary.*"):
        if UNFINISHED.fullmatch(file.name) and file.is_file() and time.time() - file.stat().st_mtime > SETTLED:
            with writing(output):
                file.unlink(missing_ok=True)
    for hidden in sorted(output.glob(".partial-*")):
        match = re.fullmatch(r"\.partial-(.*)-([0-9]{1,9})-[0-9]+", hidden.name)
        if (
            match is None
            or hidden.is_symlink()
            or not hidden.is_dir()
            or match[1] != platform.node()
            or _alive(int(match[2]))
        ):
            continue
        run = read_run(hidden)
        place = None if run is None else output / safe_name(str(run.get("folder")), 255)
        with writing(output):
            if place is None or place.exists():
                shutil.rmtree(hidden)
            else:
                hidden.rename(place)


def _hidden(parent: Path) -> Path:
    return parent / f".partial-{platform.node()}-{os.getpid()}-{next(_numbers)}"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:  # another user's process may not be sent a signal
        return isinstance(error, PermissionError)
    return True


def _move_into_place(hidden: Path, folder: Path, fingerprint: str) -> Path | None:
    """Rename; returns where anything else than a finished run of this fingerprint that was there is kept now.

    Between two renames `folder` is missing for a moment; clear_remains puts it right after a crash just then.
    """
    if not folder.exists():
        hidden.rename(folder)
        return None
    run = read_run(folder)
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    if run is None or run.get("fingerprint") != fingerprint or there != {*run["files"], RUN_FILE}:
        aside = set_aside(folder)
        hidden.rename(folder)
        return aside
    earlier = folder.rename(_hidden(folder.parent))  # the same run and nothing besides: it goes
    hidden.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)
    return None
