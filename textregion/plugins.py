"""How registries fill themselves: every module of a package of ours, and the entry points of installed packages."""

import warnings
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from textregion.errors import first_line


def import_all(package: str, path: Iterable[str], group: str) -> None:
    """Import whatever may register something: the modules of a package, then those that entry points name.

    package, path: its name and `__path__`. group: of the entry points, e.g. "textregion.backbones"; what stands behind
    the colon of an entry point is not needed, since modules register themselves when they are imported. A plug-in that
    cannot be imported is told in one warning, and everything else works without it.
    """
    for module in iter_modules(path):
        import_module(f"{package}.{module.name}")
    for entry in entry_points(group=group):
        try:
            import_module(entry.module)
        except Exception as error:  # noqa: BLE001 (somebody else's code)
            why = f"{type(error).__name__}: {first_line(error)}"
            warnings.warn(f"the plug-in {entry.name} ({entry.value}) of {group} is left out ({why})", stacklevel=2)
