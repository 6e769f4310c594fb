"""A benchmark's data: its prompt words, whether its files are there, how mmseg loads and orders them."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Integer
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.dist import get_dist_info, is_main_process
from mmengine.structures import PixelData
from torch.utils.data import Sampler

from eval.mm import DATA_SAMPLERS, TRANSFORMS, SegDataSample
from textregion.errors import InputError, one_of
from textregion.images import load_image
from textregion.masks.given import read_label_map
from textregion.text import read_class_file

CLASS_LISTS = Path(__file__).resolve().parents[1] / "textregion" / "classes"
CHECKED = 64  # label maps that are read before the first image; a second or two
SHOWN = 8  # values or names that a message lists


def read_classes(classes: str | Sequence[str], names: str = "published") -> list[str]:
    """The prompt words of a benchmark (method 8.6): labels, one entry per class, synonyms separated by "; ".

    classes: name of a list in textregion/classes, path of a class file, or the labels themselves.
    names: "published" is what the paper's figures were made with ("trafficlight"), "natural" what one would
    write ("traffic light"); lists without a natural file have one spelling only. InputError for unknown ones.
    """
    one_of("names", names, ("published", "natural"))
    if not isinstance(classes, str):
        return list(classes)
    if classes.endswith(".txt"):
        return read_class_file(classes)
    published, natural = CLASS_LISTS / f"{classes}.txt", CLASS_LISTS / f"{classes}.natural.txt"
    if not published.is_file():
        known = sorted(path.stem for path in CLASS_LISTS.glob("*.txt") if ".natural" not in path.name)
        raise InputError(f"no class list {classes!r}; expected a .txt file or one of {', '.join(known)}")
    return read_class_file(natural if names == "natural" and natural.is_file() else published)


def check_folders(config: Config) -> None:
    """InputError naming the folder or list that a benchmark lacks, and what to do."""
    dataset = config.test_dataloader.dataset
    root = Path(dataset.data_root)
    parts = [*dataset.data_prefix.values(), *([dataset.ann_file] if dataset.get("ann_file") else [])]
    if not root.is_dir():
        raise InputError(f"no folder {root} for {config.benchmark.name}; {_remedy(config)}")
    if missing := [part for part in parts if not (root / part).exists()]:
        raise InputError(f"{root} has no {' and no '.join(missing)} for {config.benchmark.name}; {_remedy(config)}")


def check_files(config: Config, dataset: BaseDataset) -> list[dict]:
    """The data set's entries ({img_path, seg_map_path, …}); InputError when there is none or one's label map lacks."""
    entries = [dataset.get_data_info(index) for index in range(len(dataset))]
    root = Path(config.test_dataloader.dataset.data_root)
    folders = config.test_dataloader.dataset.data_prefix
    if not entries:
        raise InputError(f"{root / folders.img_path} has no images; {_remedy(config)}")
    for key, what in (("img_path", "images"), ("seg_map_path", "label maps")):
        missing = [entry[key] for entry in entries if not Path(entry[key]).is_file()]
        if missing:
            lacking = f"{len(missing)} of {len(entries)} {what} ({Path(missing[0]).name} first)"
            raise InputError(f"{root / folders[key]} lacks {lacking}; {_remedy(config)}")
    return entries


def _remedy(config: Config) -> str:
    prepare = config.benchmark.get("prepare")
    return f"{f'run bash process_dataset.sh {prepare}, or ' if prepare else ''}see docs/benchmarks.md"


@dataclass
class LabelCheck:
    """What the label maps that were looked at hold. beyond: labels that are no class, by the path of their map."""

    read: int = 0
    found: set[int] = field(default_factory=set)
    beyond: dict[str, list[int]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def look(self, entry: dict, classes: int, ignore: int) -> None:
        """Read one label map."""
        try:
            values = np.unique(load_labels(entry, ignore)).tolist()
        except InputError as error:
            self.unreadable.append(str(error))
            return
        self.read += 1
        self.found.update(values)
        if wrong := beyond_classes(values, classes, ignore):
            self.beyond[entry["seg_map_path"]] = wrong


def check_label_maps(
    entries: Sequence[dict], classes: Sequence[str], ignore: int = 255, prepare: str | None = None
) -> None:
    """InputError, before hours of work, for ground truth that cannot be of this data set.

    entries: as `check_files` gives them. At most CHECKED label maps are read, evenly spread over the data set; every
    map is checked once more when it is counted (`count_pairs`), where a bad one ends the run. Refused are
    labels that are no class; a data set of which no label map can be read; one all of whose pixels are ignored, before
    which all maps are read. A warning when labels 0 and 255 (ignored) are all there are, as in a mask of 0 and 255.
    classes: the data set's. ignore: the label of pixels that do not count. prepare: the converter of eval.prepare.
    """
    chosen = np.unique(np.linspace(0, len(entries) - 1, min(CHECKED, len(entries))).round().astype(int)).tolist()
    check = LabelCheck()
    for index in chosen:
        check.look(entries[index], len(classes), ignore)
    for index in sorted(set(range(len(entries))) - set(chosen)):
        if check.found - {ignore}:
            break
        check.look(entries[index], len(classes), ignore)
    if check.beyond:
        path, labels = next(iter(check.beyond.items()))
        raise InputError(
            f"{len(check.beyond)} of {check.read} label maps that were read hold labels that are no class, "
            f"{path} first: {_listed(labels)}; expected 0..{len(classes) - 1} ({len(classes)} classes) or {ignore} "
            f"(ignored); likely cause: {likely_cause(check.found, len(classes), ignore, prepare)}"
        )
    if not check.read:
        raise InputError(f"none of {len(entries)} label maps can be read, first: {check.unreadable[0]}")
    if not check.found - {ignore}:
        raise InputError(
            f"all pixels of all {check.read} label maps are {ignore}, which is ignored: there is nothing to measure; "
            f"expected labels 0..{len(classes) - 1} (is 255 meant as a class, or reduce_zero_label set by mistake?)"
        )
    if check.found == {0, ignore} and ignore == 255 and len(classes) > 1 and is_main_process():
        warnings.warn(
            f"the label maps that were read ({check.read} of {len(entries)}) hold only 0 ({classes[0]}) and 255, which "
            "is ignored; if they are 0/255 masks, write 1 for 255",
            stacklevel=2,
        )


def beyond_classes(labels: Iterable[int], classes: int, ignore: int) -> list[int]:
    """Those of the labels that are neither 0..classes-1 nor ignored."""
    return [label for label in labels if label != ignore and not 0 <= label < classes]


def likely_cause(found: set[int], classes: int, ignore: int, prepare: str | None = None) -> str:
    """Why label maps with the labels `found`, some of which are no class, are as they are, and what to do."""
    beyond = set(beyond_classes(found, classes, ignore))
    if prepare:
        return f"raw ids instead of train ids; run bash process_dataset.sh {prepare}"
    if beyond == {classes}:
        return "labels that count from 1; set reduce_zero_label=True in the data set if 0 is of no class"
    if 255 in beyond and len(found - {ignore}) <= 2:
        return "a 0/255 mask; write 1 for 255"
    return "raw ids instead of train ids, or a picture instead of a label map; write each class's index into the maps"


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:SHOWN])) + (f", … ({len(values)} in all)" if len(values) > SHOWN else "")


def check_labels_of_model(labels: Sequence[str], classes: Sequence[str]) -> None:
    """InputError unless the model is asked for as many labels as the data set has classes: they meet by their index."""
    if len(labels) != len(classes):
        more, names = ("labels", labels) if len(labels) > len(classes) else ("classes", classes)
        surplus = _listed(names[min(len(labels), len(classes)) :])
        raise InputError(
            f"the model has {len(labels)} labels, the data set {len(classes)} classes (the {more} too many are the "
            f"last, if the order is the same: {surplus}); expected one label per class in the same order: change "
            "model.classes"
        )


# ---------------------------------------------------------------------- what mmseg loads


@TRANSFORMS.register_module()
class LoadOriginalImage(BaseTransform):
    """`img`: (H, W, 3) uint8 BGR at its own size; the method resizes by its own rule (method 1.2).

    A file of a data set that cannot be read gives one black pixel and the reason under `unreadable`. What mmseg's
    inferencers were given has no label map and is a file or an array (`img`; BGR, grey or BGRA): InputError for these.
    """

    def transform(self, results: dict) -> dict:
        """Adds img, img_shape, ori_shape."""
        if not results.get("img_path"):
            results["img"] = load_image(results["img"])
        else:
            try:
                image = load_image(results["img_path"])
            except InputError as error:
                if "seg_map_path" not in results:
                    raise
                results["unreadable"] = str(error)
                image = np.zeros((1, 1, 3), np.uint8)
            results["img"] = np.ascontiguousarray(image[..., ::-1])
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results


def load_labels(entry: dict, ignore: int = 255) -> Integer[np.ndarray, "H W"]:
    """The label map of a data set's entry, in the smallest unsigned dtype that holds it.

    As mmseg's LoadAnnotations, zero-label reduction and class subsets included, but that labels of 16 bits keep their
    values. entry: seg_map_path, reduce_zero_label, label_map ({label of the file: label, 255 for none}).
    ignore: the label of pixels that do not count. InputError when the file cannot be read or has several channels.
    """
    values = read_label_map(entry["seg_map_path"])
    if entry.get("reduce_zero_label"):
        values = np.where((values == 0) | (values == ignore), ignore, values - 1)
    if entry.get("label_map") is not None:
        given = values
        values = given.copy()
        for old, new in entry["label_map"].items():
            values[given == old] = ignore if new == 255 else new
    return values.astype(np.min_scalar_type(values.max(initial=0))) if values.min(initial=0) >= 0 else values


@TRANSFORMS.register_module()
class LoadLabelMap(BaseTransform):
    """`gt_seg_map`: the label map (`load_labels`); one that cannot be read goes under `unreadable`.

    Without a `seg_map_path`, as from mmseg's inferencers, there is none. ignore: the data set's `ignore_index`
    (eval.semantic.BenchmarkLoop sets it).
    """

    def __init__(self, ignore: int = 255) -> None:
        self.ignore = ignore

    def transform(self, results: dict) -> dict:
        """Adds gt_seg_map."""
        if "seg_map_path" not in results:
            return results
        try:
            results["gt_seg_map"] = load_labels(results, self.ignore)
        except InputError as error:
            results["unreadable"] = f"label map: {error}"
            return results
        shape = results["gt_seg_map"].shape
        if "unreadable" not in results and shape != results["ori_shape"]:
            path = results["seg_map_path"]
            results["unreadable"] = f"label map {path} is of shape {shape}, its image {results['ori_shape']}"
        return results


@TRANSFORMS.register_module()
class PackOriginal(BaseTransform):
    """`inputs` (3, H, W) and `data_samples`, with the reason for a skipped image.

    Both hold arrays, not tensors: a loader's workers hand tensors over in shared memory, of which a container has
    64 MB by default, and hang when it is full. The model's preprocessor (eval.model.Unchanged) makes tensors of them.
    """

    META = ("img_path", "seg_map_path", "ori_shape", "img_shape", "reduce_zero_label", "unreadable")

    def transform(self, results: dict) -> dict:
        """As mmseg's PackSegInputs."""
        sample = SegDataSample(metainfo={key: results[key] for key in self.META if key in results})
        if "gt_seg_map" in results:
            sample.gt_sem_seg = PixelData(data=results["gt_seg_map"][None])
        return {"inputs": np.ascontiguousarray(results["img"].transpose(2, 0, 1)), "data_samples": sample}


@DATA_SAMPLERS.register_module()
class ChosenImages(Sampler):
    """The images with these indices, in order; never padded or repeated.

    Until `indices` is set: all of them, of several processes each its share.
    """

    def __init__(self, dataset: Sequence, seed: int | None = None) -> None:
        rank, count = get_dist_info()
        self.indices = list(range(rank, len(dataset), count))

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
