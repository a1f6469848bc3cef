"""Models of the three families. The heavy names load torch when first used."""

from importlib import import_module
from typing import Any

_WHERE = {
    "load_model": "vlm.models.checkpoint.load",
    "load_processor": "vlm.models.processor",
    "ChatSession": "vlm.models.session",
    "load_preset": "vlm.models.specs",
    "make_model": "vlm.models.vlm",
}

__all__ = ["ChatSession", "load_model", "load_preset", "load_processor", "make_model"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
