"""Image encoders by the kind of their spec. A new one is a spec in `specs`, a module here and a line in `ENCODERS`."""

from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

from vlm.models.specs import VisionSpec

if TYPE_CHECKING:
    from vlm.models.vision.convnext import ConvNext, TimmEncoder
    from vlm.models.vision.intern_vit import InternVit

ImageEncoder: TypeAlias = "InternVit | ConvNext | TimmEncoder"
"""A module [B, 3, h, w] -> [B, h / stride, w / stride, width] with the attributes `width` and `stride`."""

ENCODERS = {
    "intern_vit": "vlm.models.vision.intern_vit:InternVit",
    "convnext": "vlm.models.vision.convnext:ConvNext",
    "timm": "vlm.models.vision.convnext:TimmEncoder",
}
"""Kind -> import string of the class: an InternViT does not wait for timm."""


def make_encoder(spec: VisionSpec) -> ImageEncoder:
    """Return the encoder of a spec with fresh weights."""
    module, name = ENCODERS[spec.kind].split(":")
    encoder: ImageEncoder = getattr(import_module(module), name)(spec)
    return encoder
