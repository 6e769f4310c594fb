"""Every region of any pile of images in one Lance table, found by words."""

from importlib import import_module

_HOMES = {
    "Effort": "textregion.index.search",
    "Engine": "textregion.engines",
    "Hit": "textregion.index.search",
    "RegionIndex": "textregion.index.region_index",
    "RegionMemory": "textregion.index.memory",
}


def __getattr__(name: str) -> object:
    """Load a public name at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
