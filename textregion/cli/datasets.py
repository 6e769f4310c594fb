"""All images of a run as one data set: `dataset/` in the output folder, made of the images' own COCO files.

Every file is written in one step and the same results give the same bytes, so a run that was killed and is taken up
again ends with the files of a run left alone. The data set of another run is moved aside.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os.path import isfile
from pathlib import Path

from textregion.cli.jobs import ImageJob
from textregion.config import fingerprint
from textregion.labels import LabelPrompts
from textregion.outputs.export import EXPORTERS, Dataset, DatasetImage, LabelledObject
from textregion.outputs.export.base import IMAGES
from textregion.outputs.folder import (
    DATASET,
    LABEL_MASKS,
    REGION_MASKS,
    RUN_FILE,
    copy_upright,
    json_bytes,
    read_run,
    writing,
)
from textregion.outputs.georeference import Georeference, georeference
from textregion.storage import delete_unfinished, file_hash, safe_name, set_aside, write_atomically

EXPORTED = ("labels", "regions")
MASK_FILES = dict(zip(EXPORTED, (LABEL_MASKS, REGION_MASKS), strict=True))
MOST_TOLD = 5


def export(
    output: Path,
    jobs: Sequence[ImageJob],
    folders: Sequence[Path],
    settings: Mapping,
    formats: Sequence[str],
    of: str,
    note: str,
) -> None:
    """Write the data set of all finished images in every format; says what it holds and how many images it lacks.

    folders: of the images' results. settings: of the run. of: an entry of EXPORTED. OutputError when something cannot
    be written.
    """
    names = [f"{folder.name}{safe_name('x' + job.image.suffix)[1:]}" for job, folder in zip(jobs, folders, strict=True)]
    runs = [_finished(folder, job, settings) for job, folder in zip(jobs, folders, strict=True)]
    place = output / DATASET
    with writing(place):
        _make_room(place, {"settings": settings, "images": names, "labels": [job.labels for job in jobs], "of": of})
        delete_unfinished(place)
        images = []
        for number, (job, folder, name, run) in enumerate(zip(jobs, folders, names, runs, strict=True), start=1):
            if run is not None:
                _write_image(place / IMAGES / name, job.image, run["image"]["sha256"])
                on_earth = georeference(job.image) if "geojson" in formats else None
                images.append(_read_image(number, name, run, folder / MASK_FILES[of], on_earth))
        labels = dict.fromkeys(name for job in jobs for name in LabelPrompts.parse(job.labels).names)
        dataset = Dataset(tuple(labels), images, note)
        files = [name for form in dict.fromkeys(formats) for name in _write(place, form, dataset)]
    count = sum(len(image.objects) for image in images)
    listed = ", ".join(sorted({name.split("/")[0] + "/" * ("/" in name) for name in files}))
    print(f"data set of {len(images)} images and {count} masks in {place}: {listed}, {IMAGES}/")
    if empty := [image.name for image in images if not image.objects]:
        print(f"note: {len(empty)} images of the data set have no mask: {_told(empty)}")
    if missing := [str(job.image) for job, run in zip(jobs, runs, strict=True) if run is None]:
        print(f"note: {len(missing)} images are not in the data set: {_told(missing)}")


def _finished(folder: Path, job: ImageJob, settings: Mapping) -> dict | None:
    """The run.json of an image that was finished with these settings and labels and has not changed since."""
    run = read_run(folder)
    if run is None or run.get("settings") != settings or tuple(run["labels"]) != job.labels or not isfile(job.image):
        return None
    return run if file_hash(job.image) == run["image"]["sha256"] else None


def _told(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_TOLD]) + ", …" * (len(names) > MOST_TOLD)


def _make_room(place: Path, identity: dict) -> None:
    """Mark the folder as this run's; one of another run, or of anything else, is moved aside first."""
    mark = json_bytes({"fingerprint": fingerprint(identity), "of": identity["of"]})
    path = place / RUN_FILE
    if place.exists() and not (path.is_file() and path.read_bytes() == mark):
        print(f"note: {place} held something else or another run; kept as {set_aside(place)}")
    if not path.exists():
        write_atomically(path, mark)


def _write_image(target: Path, source: Path, content: str) -> None:
    """The image's file, upright; left as it is where it has the content (SHA-256) already."""
    if target.is_file() and file_hash(target) == content:
        return
    target.parent.mkdir(exist_ok=True)
    partial = target.with_name(f".partial{target.suffix}")
    copy_upright(source, partial)
    os.replace(partial, target)


def _read_image(number: int, name: str, run: Mapping, path: Path, on_earth: Georeference | None) -> DatasetImage:
    """One image's masks from the COCO file that this program has written. on_earth: where its pixels lie."""
    content = json.loads(path.read_bytes())
    objects = []
    for row in content["annotations"]:
        x, y, width, height = map(int, row["bbox"])
        where = {"rle": row["segmentation"], "area": row["area"], "box": (x, y, width, height)}
        objects.append(LabelledObject(row["category"], row["score"], **where, region=row.get("region")))
    image = DatasetImage(number, name, run["width"], run["height"], objects)
    return image if on_earth is None else replace(image, transform=on_earth.transform, crs=on_earth.crs)


def _write(place: Path, form: str, dataset: Dataset) -> list[str]:
    """Write one format's files, those that are there already left as they are; returns their names."""
    names = []
    for name, content in EXPORTERS[form](dataset):
        path = place / name
        if not (path.is_file() and path.read_bytes() == content):
            write_atomically(path, content)
        names.append(name)
    return names
