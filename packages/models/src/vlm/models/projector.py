"""Projectors: a feature grid [B, h, w, C] -> tokens [B, n, hidden]. A new one is a spec, a class, a line in PROJECTORS.

Shapes: B images, h x w cells of the feature grid, C channels, n tokens.
"""

from collections.abc import Callable

from torch import Tensor, nn

from vlm.core.errors import DataError
from vlm.models.specs import MlpSpec, ProjectorSpec, UnshuffleSpec


def pixel_unshuffle(x_BhwC: Tensor, version: str, ratio: float = 0.5) -> Tensor:
    """Merge neighboring cells into channels ordered (dy, dx, c): [B, h, w, C] -> [B, h * r, w * r, C / r^2].

    Args:
        x_BhwC: the feature grid.
        version: `v1` leaves the two axes swapped, so that flattening gives the tokens column by column
            (InternVL-Chat-V1-2); `v2` is row by row (InternVL2).
        ratio: r, the reciprocal of the cells merged per side.

    Raises:
        DataError: a grid that is not a whole number of blocks.
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
        merged = width * spec.step**2
        super().__init__(nn.LayerNorm(merged), nn.Linear(merged, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.spec = spec

    def tokens(self, height: int, width: int) -> int:
        """Return the number of tokens of a grid of `height` x `width` cells."""
        return (height // self.spec.step) * (width // self.spec.step)

    def forward(self, x: Tensor) -> Tensor:
        """Project a grid [B, h, w, C] -> [B, n, hidden]."""
        x = pixel_unshuffle(x, self.spec.version, self.spec.ratio).flatten(1, 2)
        for layer in self:
            x = layer(x)
        return x


class MlpProjector(nn.Sequential):
    """Linear, then (GELU, Linear) `depth - 1` times; one token for each cell, row by row."""

    def __init__(self, spec: MlpSpec, width: int, hidden: int):
        layers: list[nn.Module] = [nn.Linear(width, hidden)]
        for _ in range(spec.depth - 1):
            layers += [nn.GELU(), nn.Linear(hidden, hidden)]
        super().__init__(*layers)

    def tokens(self, height: int, width: int) -> int:
        """Return the number of tokens of a grid of `height` x `width` cells."""
        return height * width

    def forward(self, x: Tensor) -> Tensor:
        """Project a grid [B, h, w, C] -> [B, n, hidden]."""
        x = x.flatten(1, 2)
        for layer in self:
            x = layer(x)
        return x


Projector = UnshuffleProjector | MlpProjector

PROJECTORS: dict[str, Callable[..., Projector]] = {"pixel_unshuffle": UnshuffleProjector, "mlp": MlpProjector}
"""By the kind of a spec."""


def make_projector(spec: ProjectorSpec, width: int, hidden: int) -> Projector:
    """Return the projector of a spec, from `width` encoder channels to `hidden`, with fresh weights."""
    return PROJECTORS[spec.kind](spec, width, hidden)
