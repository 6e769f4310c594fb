"""Whether a benchmark's data are there, said in one line if not."""

from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import BaseDataset

from textregion.errors import InputError

SECTION = 'see "Benchmarks" in README.md'


def check_folders(config: Config) -> None:
    """InputError naming the folder or list that a benchmark lacks, and what to do."""
    dataset = config.test_dataloader.dataset
    root = Path(dataset.data_root)
    parts = [*dataset.data_prefix.values(), *([dataset.ann_file] if dataset.get("ann_file") else [])]
    missing = [part for part in parts if not (root / part).exists()] if root.is_dir() else []
    if not root.is_dir():
        raise InputError(f"no folder {root} for {config.benchmark.name}; {remedy(config)}")
    if missing:
        raise InputError(f"{root} has no {' and no '.join(missing)} for {config.benchmark.name}; {remedy(config)}")


def check_files(config: Config, dataset: BaseDataset) -> list[dict]:
    """The data set's entries ({img_path, seg_map_path, …}); InputError when there is none or one's label map lacks."""
    entries = [dataset.get_data_info(index) for index in range(len(dataset))]
    root = Path(config.test_dataloader.dataset.data_root)
    folders = config.test_dataloader.dataset.data_prefix
    if not entries:
        raise InputError(f"{root / folders.img_path} has no images; {remedy(config)}")
    for key, what in (("img_path", "images"), ("seg_map_path", "label maps")):
        missing = [entry[key] for entry in entries if not Path(entry[key]).is_file()]
        if missing:
            name = Path(missing[0]).name
            raise InputError(
                f"{root / folders[key]} lacks {len(missing)} of {len(entries)} {what} ({name} first); {remedy(config)}"
            )
    return entries


def remedy(config: Config) -> str:
    """What to do about missing data."""
    prepare = config.benchmark.get("prepare")
    return f"{f'run bash process_dataset.sh {prepare}, or ' if prepare else ''}{SECTION}"
