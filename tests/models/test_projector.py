"""The order of tokens and of the channels within one."""

import pytest
import torch
import torch.nn.functional as F

from vlm.core.errors import DataError
from vlm.models.projector import make_projector, pixel_unshuffle
from vlm.models.specs import MlpSpec, UnshuffleSpec

PATCHES = {
    # the worked 4 x 4 example of InternVL-Chat-V1-2: patches numbered row by row
    "v1": [[0, 1, 4, 5], [8, 9, 12, 13], [2, 3, 6, 7], [10, 11, 14, 15]],
    "v2": [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]],
}


@pytest.mark.parametrize("version", PATCHES)
def test_tokens_come_column_by_column_in_v1_and_row_by_row_in_v2(version):
    grid = torch.arange(16.0).view(1, 4, 4, 1)
    assert pixel_unshuffle(grid, version).flatten(1, 2)[0].tolist() == PATCHES[version]


def test_all_channels_of_a_patch_stay_together():
    grid = torch.arange(8.0).view(1, 2, 2, 2)  # two channels
    assert pixel_unshuffle(grid, "v2").flatten().tolist() == list(range(8))


@pytest.mark.parametrize("version", PATCHES)
def test_a_grid_that_is_not_square_keeps_every_patch_once(version):
    merged = pixel_unshuffle(torch.arange(24.0).view(1, 4, 6, 1), version)
    assert merged.shape == ((1, 3, 2, 4) if version == "v1" else (1, 2, 3, 4))
    assert sorted(merged.flatten().tolist()) == list(range(24))


@pytest.mark.parametrize("spec", [UnshuffleSpec(version="v1"), UnshuffleSpec(version="v2"), MlpSpec(depth=2)])
def test_the_projector_tells_how_many_tokens_it_makes(spec):
    projector = make_projector(spec, 8, 16)
    assert projector(torch.randn(2, 4, 6, 8)).shape == (2, projector.tokens(4, 6), 16)


def test_a_deeper_mlp_has_as_many_linear_layers_as_asked():
    for depth in (1, 2, 3):
        layers = make_projector(MlpSpec(depth=depth), 8, 16)
        assert sum(isinstance(layer, torch.nn.Linear) for layer in layers) == depth


@pytest.mark.parametrize("grid", [(3, 4), (4, 5)])
def test_a_grid_that_does_not_fall_into_blocks_is_refused(grid):
    with pytest.raises(DataError, match=f"{grid[0]} x {grid[1]} cells.*\n.*multiples of 2"):
        pixel_unshuffle(torch.zeros(1, *grid, 8), "v2")


def test_the_unshuffle_projector_is_norm_linear_gelu_linear():
    """Over the merged width, eps 1e-5, exact GELU."""
    torch.manual_seed(0)
    projector = make_projector(UnshuffleSpec(version="v2"), 3, 5)
    norm, first, _, second = projector
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 4, 4, 3) * 1e-3  # small: eps counts
    blocks = torch.stack([x[:, i : i + 2, j : j + 2].flatten(1) for i in (0, 2) for j in (0, 2)], dim=1)
    centered = blocks - blocks.mean(-1, keepdim=True)
    normed = centered / (blocks.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * norm.weight
    hidden = normed @ first.weight.T + first.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(projector(x), hidden @ second.weight.T + second.bias)


def test_the_mlp_projector_has_gelu_between_its_layers_and_none_at_the_end():
    torch.manual_seed(0)
    projector = make_projector(MlpSpec(depth=2), 3, 5)
    x = torch.randn(1, 2, 2, 3)
    first, _, second = projector
    expected = F.linear(F.gelu(F.linear(x.flatten(1, 2), first.weight, first.bias)), second.weight, second.bias)
    torch.testing.assert_close(projector(x), expected)
