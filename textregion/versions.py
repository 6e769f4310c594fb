"""Versions of Python and of the installed packages that decide the numbers."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = (
    "torchvision",
    "open_clip_torch",
    "timm",
    "sam2",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "pillow",
    "pycocotools",
    "segment-anything",
    "lvis",
    "mmsegmentation",
    "mmengine",
    "mmcv-lite",
    "mmcv",
    "onedl-mmsegmentation",
    "onedl-mmengine",
    "onedl-mmcv",
)


def package_versions() -> dict[str, str]:
    """{"python": "3.11.7", "torch": "2.14.0+cu130", …}; packages that are not there are left out."""
    found = {"python": platform.python_version(), "torch": torch.__version__}  # with its CUDA version
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
