"""What decides a run's numbers, and how that is compared: options, data, weights by content, code, versions.

Two runs of equal identity give equal numbers (up to rounding that differs between machines). What may differ, and so is
no part of it: places (work dir, mask cache, where weights lie), speed (batch sizes, loading workers, processes,
threads), the device's name (its type counts), host and dates, and which images of the data were asked for
(--limit, --images: results.json tells them as its `selection`).
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eval.results import ROOT, git_commit
from textregion.concepts import SAM3_CONCEPTS, ConceptLabeller
from textregion.config import fingerprint
from textregion.runtime import package_versions
from textregion.segmenter import TextRegionSegmenter
from textregion.storage import file_hash
from textregion.text import model_fingerprint

JOURNAL_FORMAT = 2
HASHED = 1 << 22  # bytes up to which a file of the data counts by its content, larger ones by size and time of change
SOURCES = ("textregion", "eval", "utils", "configs")  # folders whose files decide numbers
SOURCE_SUFFIXES = (".py", ".yaml", ".txt", ".json")
# Where things lie and how fast they go: no part of an identity. Weights count by their content instead.
PLACES = ("device", "mask_cache", "crops_per_batch", "points_per_batch", "clip_download_root", "clip_checkpoint")
PLACES += ("memory", "memory_key_checkpoint")  # the regions count by their images, the tower by its weights
PLACES += ("sam2_checkpoint", "sam3_checkpoint", "regionspot_checkpoint", "sam1_checkpoint")


def run_identity(settings: Mapping[str, Any], data: Mapping[str, Any], weights: Mapping[str, str]) -> dict[str, Any]:
    """The identity as results.json and journals have it.

    settings: all options, words included. data: root, annotations, names. weights: as of `segmenter_weights`.
    """
    common = {"code": code_identity(), "versions": package_versions(), "journal": JOURNAL_FORMAT}
    return {"settings": dict(settings), "data": dict(data), "weights": dict(weights), **common}


def code_identity(root: Path = ROOT) -> dict[str, Any]:
    """{"commit", "changed": whether tracked files differ from it, "sources": hash of what is there}."""
    commit = git_commit(root)
    return {"commit": commit["hash"], "changed": commit["changed"], "sources": sources_hash(root)}


@cache
def sources_hash(root: Path = ROOT) -> str:
    """Hash of the programs' own files, untracked ones too: outside a checkout all there is to tell them by."""
    files = [path for name in SOURCES for path in (root / name).rglob("*") if path.suffix in SOURCE_SUFFIXES]
    told = {path.relative_to(root).as_posix(): file_hash(path) for path in files if path.is_file()}
    return fingerprint(told)


def segmenter_weights(
    segmenter: TextRegionSegmenter | ConceptLabeller, with_regionspot: bool = False
) -> dict[str, str]:
    """{"image-text", "words", "masks …", "regionspot …"}: hashes of everything learned, wherever it was found.

    words: the text tower's weights with what the tokenizer makes of the templates. with_regionspot: with the
    trained head. A ConceptLabeller is one model.
    """
    if isinstance(segmenter, ConceptLabeller):
        return {SAM3_CONCEPTS: state_hash(segmenter.model)}
    backbone = segmenter.backbone
    found = {"image-text": state_hash(backbone.model), "words": model_fingerprint(backbone)[:16]}
    generator = segmenter.mask_generator
    while (inner := getattr(generator, "generator", None)) is not None:  # a cache around it
        generator = inner
    spot = segmenter.regionspot if with_regionspot else None
    parts = [("masks", generator), ("concepts", segmenter.concepts)]
    if spot is not None:
        parts += [("regionspot", spot), ("regionspot's SAM", spot.box_tokens)]
    for name, part in parts:
        if isinstance(part, nn.Module):
            found[name] = state_hash(part)
        for own, module in vars(part).items() if part is not None else ():
            if isinstance(module, nn.Module) and not own.startswith("_"):
                found[f"{name}.{own}"] = state_hash(module)
    return found


def state_hash(module: nn.Module) -> str:
    """Hash of a module's parameters and buffers, names, types and shapes included."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            stored = value.detach().cpu().contiguous()
            digest.update(f"{name} {stored.dtype} {tuple(stored.shape)}".encode())
            digest.update(stored.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A file's content (hash) up to HASHED bytes, "size-time" of a larger one, "missing" where there is none."""
    try:
        status = path.stat()
        if status.st_size > HASHED:
            return f"{status.st_size}-{status.st_mtime_ns}"
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return "missing"  # what cannot be read is skipped, and tried again; its record carries no number


def data_identity(roots: Mapping[str, Path | None], names: Iterable[str], files: Mapping[str, Path | None]) -> dict:
    """{root's name: resolved path, "items", "names", file's name: hash}; names: of all images there are."""
    listed = list(names)
    content = {name: file_hash(path) for name, path in files.items() if path is not None and path.is_file()}
    places = {name: str(path.resolve()) for name, path in roots.items() if path is not None}
    return {**places, "items": len(listed), "names": fingerprint({"names": listed}), **content}


def item_digests(items: Iterable[str], files: Callable[[str], Iterable[Path]]) -> dict[str, str]:
    """{item: digest of the files that are read for it}."""
    return {item: fingerprint({"files": [file_digest(path) for path in files(item)]}) for item in items}
