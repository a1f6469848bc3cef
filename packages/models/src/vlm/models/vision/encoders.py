"""Image encoders by the kind of their spec. A new one is a spec in `specs`, a module here and a line in `ENCODERS`."""

from collections.abc import Callable

from vlm.models.specs import VisionSpec
from vlm.models.vision.convnext import ConvNext, TimmEncoder
from vlm.models.vision.intern_vit import InternVit

ImageEncoder = InternVit | ConvNext | TimmEncoder
"""A module [B, 3, h, w] -> [B, h / stride, w / stride, width] with the attributes `width` and `stride`."""

ENCODERS: dict[str, Callable[..., ImageEncoder]] = {"intern_vit": InternVit, "convnext": ConvNext, "timm": TimmEncoder}


def make_encoder(spec: VisionSpec) -> ImageEncoder:
    """Return the encoder of a spec with fresh weights."""
    return ENCODERS[spec.kind](spec)
