"""One registry from the dicts of many modules: a new entry is a new file.

SCORERS: dict[str, Scorer] = collect("vlm.eval.scorers", "SCORERS")
"""

import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import Any


def collect(package: str, name: str) -> dict[str, Any]:
    """Merge the dicts called `name` of all modules of a package, by module name.

    Args:
        package: Dotted name of a package that is imported, or just being imported.
        name: The dict to look for. Modules without it add nothing.

    Raises:
        ValueError: Two modules define the same key.
    """
    found: dict[str, Any] = {}
    for module in sorted(info.name for info in iter_modules(sys.modules[package].__path__)):
        entries = getattr(import_module(f"{package}.{module}"), name, {})
        if twice := found.keys() & entries.keys():
            raise ValueError(f"{package}.{module}: {name} defines {', '.join(sorted(twice))} a second time")
        found |= entries
    return found
