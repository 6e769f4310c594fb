"""TextRegion: an image becomes region tokens, one vector per segment, comparable with text; no training."""

from importlib import import_module

__version__ = "0.1.0"
_HOMES = {
    "InputError": "textregion.errors",
    "RegionMasks": "textregion.types",
    "RegionTokens": "textregion.types",
    "Segmentation": "textregion.types",
    "SegmenterConfig": "textregion.config",
    "TextRegionSegmenter": "textregion.segmenter",
    "register_backbone": "textregion.backbones.base",
    "register_mask_source": "textregion.masks.base",
}


def __getattr__(name: str) -> object:
    """Load a public name at its first use, so that `import textregion` alone is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
