"""A benchmark's data: its prompt words, whether its files are there, how mmseg loads and orders them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from torch.utils.data import Sampler

from eval.mm import DATA_SAMPLERS, TRANSFORMS, LoadAnnotations, PackSegInputs
from textregion.errors import InputError, one_of
from textregion.images import load_image
from textregion.text import read_class_file

CLASS_LISTS = Path(__file__).resolve().parents[1] / "textregion" / "classes"


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
    return f'{f"run bash process_dataset.sh {prepare}, or " if prepare else ""}see "Benchmarks" in README.md'


@TRANSFORMS.register_module()
class LoadOriginalImage(BaseTransform):
    """`img`: (H, W, 3) uint8 BGR at its own size; the method resizes by its own rule (method 1.2).

    A file that cannot be read gives one black pixel and the reason under `unreadable`, which is not raised.
    """

    def transform(self, results: dict) -> dict:
        """Adds img, img_shape, ori_shape."""
        try:
            image = load_image(results["img_path"])
        except InputError as error:
            results["unreadable"] = str(error)
            image = np.zeros((1, 1, 3), np.uint8)
        results["img"] = np.ascontiguousarray(image[..., ::-1])
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class LoadLabelMap(LoadAnnotations):
    """mmseg's LoadAnnotations (zero-label reduction, class subsets); damaged files go under `unreadable`."""

    def transform(self, results: dict) -> dict:
        """Adds gt_seg_map."""
        path = results["seg_map_path"]
        try:
            results = super().transform(results)
        except (OSError, SyntaxError, ValueError) as error:
            results["unreadable"] = f"label map {path} cannot be read ({error})"
            return results
        shape = results["gt_seg_map"].shape
        if "unreadable" not in results and shape != results["ori_shape"]:
            results["unreadable"] = f"label map {path} is of shape {shape}, its image {results['ori_shape']}"
        return results


@TRANSFORMS.register_module()
class PackOriginal(PackSegInputs):
    """mmseg's PackSegInputs, with the reason for a skipped image."""

    def __init__(self) -> None:
        names = ("img_path", "seg_map_path", "ori_shape", "img_shape", "reduce_zero_label", "unreadable")
        super().__init__(meta_keys=names)


@DATA_SAMPLERS.register_module()
class ChosenImages(Sampler):
    """The images with these indices, in order; all of them until `indices` is set. Never padded or repeated."""

    def __init__(self, dataset: Sequence, seed: int | None = None) -> None:
        self.indices = list(range(len(dataset)))

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
