"""Vision-language models of three families: image encoder -> projector -> Llama, and a position for each token.

>>> from vlm.models import ChatSession, load_model, load_processor                  # doctest: +SKIP
>>> model = load_model("pretrained/InternVL2-2B", "cuda", "bfloat16")               # doctest: +SKIP
>>> ChatSession("pretrained/InternVL2-2B").ask("Hello")                             # doctest: +SKIP

The names below are loaded when they are first used: importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.models.answers import Reply, answer
    from vlm.models.batch import Batch, Output
    from vlm.models.checkpoint.assemble import assemble
    from vlm.models.checkpoint.convert import convert
    from vlm.models.checkpoint.load import load_model, save_model
    from vlm.models.compare import diff
    from vlm.models.processor import Processor, load_processor
    from vlm.models.session import ChatSession
    from vlm.models.specs import ModelSpec, load_preset
    from vlm.models.vlm import VisionLanguageModel, make_model

_WHERE = {
    "Batch": "vlm.models.batch",
    "ChatSession": "vlm.models.session",
    "ModelSpec": "vlm.models.specs",
    "Output": "vlm.models.batch",
    "Processor": "vlm.models.processor",
    "Reply": "vlm.models.answers",
    "VisionLanguageModel": "vlm.models.vlm",
    "answer": "vlm.models.answers",
    "assemble": "vlm.models.checkpoint.assemble",
    "convert": "vlm.models.checkpoint.convert",
    "diff": "vlm.models.compare",
    "load_model": "vlm.models.checkpoint.load",
    "load_preset": "vlm.models.specs",
    "load_processor": "vlm.models.processor",
    "make_model": "vlm.models.vlm",
    "save_model": "vlm.models.checkpoint.load",
}

__all__ = [
    "Batch",
    "ChatSession",
    "ModelSpec",
    "Output",
    "Processor",
    "Reply",
    "VisionLanguageModel",
    "answer",
    "assemble",
    "convert",
    "diff",
    "load_model",
    "load_preset",
    "load_processor",
    "make_model",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
