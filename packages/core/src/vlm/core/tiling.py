"""An image as tiles (public import path; the code is in `vlm.core.sample.tiling`)."""

from vlm.core.sample.tiling import ImageRule, TilePlan, cut_tiles, plan_tiles

__all__ = ["ImageRule", "TilePlan", "cut_tiles", "plan_tiles"]
