"""What was installed when a result was made."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "sam2", "numpy", "opencv-python-headless", "pillow")


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those packages that are installed; by default the ones that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
