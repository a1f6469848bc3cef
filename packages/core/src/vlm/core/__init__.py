"""Data and files without a neural network: samples, downloads, data sets, checks. It imports no torch.

>>> from vlm.core import plan_tiles
>>> plan_tiles(1920, 1080).n_tiles
9

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.core.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        FetchError,
        HardwareError,
        LockedError,
        MediaError,
        Preempted,
        UnknownName,
        VlmError,
    )
    from vlm.core.fetch.catalogue import Entry, find_entry, load_catalogue
    from vlm.core.sample.chat import prompt_text, render, user_message
    from vlm.core.sample.encode import ImageTokenIds, SampleEncoder
    from vlm.core.sample.encoded import Encoded
    from vlm.core.sample.media import load_image, load_video
    from vlm.core.sample.packing import pack, pack_greedy
    from vlm.core.sample.positions import draw_strides
    from vlm.core.sample.records import Message, Sample, image, iter_jsonl, read_record, text, video
    from vlm.core.sample.tiling import ImageRule, TilePlan, plan_tiles
    from vlm.core.sample.tokenizer import Tokenizer, load_tokenizer

_WHERE = {
    "vlm.core.errors": (
        "CheckpointError",
        "ConfigError",
        "DataError",
        "FetchError",
        "HardwareError",
        "LockedError",
        "MediaError",
        "Preempted",
        "UnknownName",
        "VlmError",
    ),
    "vlm.core.fetch.catalogue": ("Entry", "find_entry", "load_catalogue"),
    "vlm.core.sample.chat": ("prompt_text", "render", "user_message"),
    "vlm.core.sample.encode": ("ImageTokenIds", "SampleEncoder"),
    "vlm.core.sample.encoded": ("Encoded",),
    "vlm.core.sample.media": ("load_image", "load_video"),
    "vlm.core.sample.packing": ("pack", "pack_greedy"),
    "vlm.core.sample.positions": ("draw_strides",),
    "vlm.core.sample.records": ("Message", "Sample", "image", "iter_jsonl", "read_record", "text", "video"),
    "vlm.core.sample.tiling": ("ImageRule", "TilePlan", "plan_tiles"),
    "vlm.core.sample.tokenizer": ("Tokenizer", "load_tokenizer"),
}

# `positions` is a module of this package (`from vlm.core.positions import positions`), so it is not in the list
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Encoded",
    "Entry",
    "FetchError",
    "HardwareError",
    "ImageRule",
    "ImageTokenIds",
    "LockedError",
    "MediaError",
    "Message",
    "Preempted",
    "Sample",
    "SampleEncoder",
    "TilePlan",
    "Tokenizer",
    "UnknownName",
    "VlmError",
    "draw_strides",
    "find_entry",
    "image",
    "iter_jsonl",
    "load_catalogue",
    "load_image",
    "load_tokenizer",
    "load_video",
    "pack",
    "pack_greedy",
    "plan_tiles",
    "prompt_text",
    "read_record",
    "render",
    "text",
    "user_message",
    "video",
]


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
