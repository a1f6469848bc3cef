"""Rotary phases: exact, a pure function of the positions, scaled only where published."""

import numpy as np
import pytest
import torch

from vlm.models.language import ExactRotary
from vlm.models.specs import RopeScaling

DYNAMIC = RopeScaling(kind="dynamic", factor=2.0)
X = torch.zeros(1)


def reference(positions, theta: float, head: int) -> tuple[np.ndarray, np.ndarray]:
    frequency = theta ** -(np.arange(0, head, 2) / head)
    phase = np.asarray(positions, np.float64)[:, None] * frequency
    return np.cos(np.hstack([phase, phase])), np.sin(np.hstack([phase, phase]))


@pytest.mark.parametrize("start", [0, 1_000_000])
def test_phases_are_exact_at_a_million_tokens_with_the_smallest_stride(start):
    """Stride 1 over 256 tokens; float32 positions would keep one of sixteen neighbours."""
    positions = start + np.arange(512) / 256
    cos, sin = ExactRotary(16, 1e6, 32768, None)(X, torch.from_numpy(positions)[None])
    expected = reference(positions, 1e6, 16)
    np.testing.assert_allclose(cos[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(sin[0], expected[1], atol=1e-6)
    assert (torch.cat([cos, sin], -1)[0].diff(dim=0).abs().amax(-1) > 1e-3).all()  # no two alike


def test_whole_numbers_give_the_same_phases_as_integers():
    rotary = ExactRotary(16, 1e4, 64, None)
    for a, b in zip(rotary(X, torch.arange(50)[None]), rotary(X, torch.arange(50.0)[None].double()), strict=True):
        assert torch.equal(a, b)


def test_dynamic_scaling_forgets_a_longer_input():
    rotary = ExactRotary(16, 1e4, 64, DYNAMIC)
    short = torch.arange(20)[None]
    fresh = rotary(X, short)[0]
    rotary(X, torch.arange(200)[None])
    assert torch.equal(rotary(X, short)[0], fresh)


def test_dynamic_scaling_begins_behind_the_last_position_and_follows_the_published_base():
    rotary = ExactRotary(16, 1e4, 64, DYNAMIC)
    plain = ExactRotary(16, 1e4, 64, None)
    assert torch.equal(rotary(X, torch.arange(64)[None])[0], plain(X, torch.arange(64)[None])[0])
    theta = 1e4 * (2 * 65 / 64 - 1) ** (16 / 14)
    np.testing.assert_allclose(
        rotary(X, torch.arange(65)[None])[0][0], reference(np.arange(65), theta, 16)[0], atol=1e-6
    )


def test_linear_scaling_divides_positions():
    rotary = ExactRotary(16, 1e4, 64, RopeScaling(kind="linear", factor=4.0))
    expected = reference(np.arange(10) / 4, 1e4, 16)[0]
    np.testing.assert_allclose(rotary(X, torch.arange(10)[None])[0][0], expected, atol=1e-6)


@pytest.mark.parametrize("scaling", [DYNAMIC, RopeScaling(kind="linear", factor=4.0)])
def test_fractional_positions_are_never_scaled(scaling):
    positions = torch.arange(0, 400, 0.5, dtype=torch.float64)[None]
    scaled, plain = (ExactRotary(16, 1e4, 64, s)(X, positions) for s in (scaling, None))
    assert torch.equal(scaled[0], plain[0]) and torch.equal(scaled[1], plain[1])


def test_a_long_input_leaves_the_next_short_one_as_it_would_be_in_a_fresh_model(tiny, prompt):
    model = tiny(max_positions=32)
    model.language_model.model.rotary_emb.scaling = DYNAMIC
    short, long = prompt(model, 20), prompt(model, 90, seed=1)
    fresh = model(short).logits
    scaled = model(long).logits
    assert torch.equal(model(short).logits, fresh)
    model.language_model.model.rotary_emb.scaling = None
    assert not torch.allclose(model(long).logits, scaled, atol=0.1)  # or the test could not fail
