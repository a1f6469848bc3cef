"""The `vlm` command: one lazily imported file for each verb.

>>> from vlm.cli import app
>>> app(["list", "recipes"])  # the Typer application; `vlm.cli.main.main()` is the console script
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.cli.main import app

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("vlm.cli.main"), name)  # lazy: `python -m vlm.cli.main` imports it once
