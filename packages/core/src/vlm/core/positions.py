"""The position of every token (public import path; the code is in `vlm.core.sample.positions`)."""

from vlm.core.sample.positions import STRIDES, default_stride, draw_strides, positions

__all__ = ["STRIDES", "default_stride", "draw_strides", "positions"]
