"""Projectors: a feature grid [B, h, w, C] -> tokens [B, n, hidden]."""

import torch
from torch import Tensor, nn

from vlm.core.errors import DataError
from vlm.models.specs import MlpSpec, ProjectorSpec, UnshuffleSpec


def pixel_unshuffle(x_BhwC: Tensor, version: str, ratio: float = 0.5) -> Tensor:
    """Merge neighboring cells into channels ordered (dy, dx, c).

    [B, h, w, C] -> [B, h * ratio, w * ratio, C / ratio^2]; `v1` leaves the two axes swapped, so that flattening gives
    the tokens column by column (InternVL-Chat-V1-2); `v2` is row by row (InternVL2).

    Raises:
        DataError: a grid that does not fall into whole blocks.
    """
    step = round(1 / ratio)
    batch, height, width, channels = x_BhwC.shape
    if height % step or width % step:
        raise DataError(
            f"a feature grid of {height} x {width} cells",
            expected=f"height and width multiples of {step}, as pixel unshuffle merges {step} x {step} of them",
            fix="feed images whose sides are multiples of the patch size times that number",
        )
    x = x_BhwC.reshape(batch, height // step, step, width // step, step, channels)
    x = x.permute(0, 3, 1, 2, 4, 5) if version == "v1" else x.permute(0, 1, 3, 2, 4, 5)
    return x.flatten(3)


class UnshuffleProjector(nn.Sequential):
    """Pixel unshuffle, LayerNorm (eps 1e-5), Linear, GELU, Linear."""

    def __init__(self, spec: UnshuffleSpec, width: int, hidden: int):
        merged = width * round(1 / spec.ratio) ** 2
        super().__init__(nn.LayerNorm(merged), nn.Linear(merged, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.spec = spec

    def tokens(self, height: int, width: int) -> int:
        """Tokens of a grid."""
        step = round(1 / self.spec.ratio)
        return (height // step) * (width // step)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pixel_unshuffle(x, self.spec.version, self.spec.ratio).flatten(1, 2))


class MlpProjector(nn.Sequential):
    """Linear, then (GELU, Linear) `depth - 1` times; one token for each cell, row by row."""

    def __init__(self, spec: MlpSpec, width: int, hidden: int):
        layers: list[nn.Module] = [nn.Linear(width, hidden)]
        for _ in range(spec.depth - 1):
            layers += [nn.GELU(), nn.Linear(hidden, hidden)]
        super().__init__(*layers)

    def tokens(self, height: int, width: int) -> int:
        """Tokens of a grid."""
        return height * width

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.flatten(x, 1, 2))


def make_projector(spec: ProjectorSpec, width: int, hidden: int) -> UnshuffleProjector | MlpProjector:
    """The projector of a spec from `width` encoder channels to `hidden`."""
    if isinstance(spec, UnshuffleSpec):
        return UnshuffleProjector(spec, width, hidden)
    return MlpProjector(spec, width, hidden)
