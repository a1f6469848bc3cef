"""Rotary phases: exact, a pure function of the positions, scaled only where published."""

import numpy as np
import pytest
import torch

from vlm.models.language import ExactRotary, document_positions
from vlm.models.specs import RopeScaling

DYNAMIC = RopeScaling(kind="dynamic", factor=2.0)
X = torch.zeros(1)


def reference(positions, theta: float, head: int) -> tuple[np.ndarray, np.ndarray]:
    frequency = theta ** -(np.arange(0, head, 2) / head)
    phase = np.asarray(positions, np.float64)[:, None] * frequency
    return np.cos(np.hstack([phase, phase])), np.sin(np.hstack([phase, phase]))


@pytest.mark.parametrize("start", [0, 1_000_000])
def test_phases_are_exact_at_a_million_tokens_with_the_smallest_stride(start):
    """Stride 1 over 256 tokens; float32 positions would keep one of sixteen neighbors."""
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


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5, 3.0, 4.0])
def test_linear_scaling_divides_positions(factor):
    rotary = ExactRotary(16, 1e4, 64, RopeScaling(kind="linear", factor=factor))
    expected = reference(np.arange(100) / factor, 1e4, 16)[0]
    np.testing.assert_allclose(rotary(X, torch.arange(100)[None])[0][0], expected, atol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("length", [40, 64, 65, 1000])
def test_dynamic_scaling_follows_the_published_base_for_any_factor(factor, length):
    rotary = ExactRotary(16, 1e4, 64, RopeScaling(kind="dynamic", factor=factor))
    theta = 1e4 if length <= 64 else 1e4 * (factor * length / 64 - (factor - 1)) ** (16 / 14)
    cos, sin = rotary(X, torch.arange(length)[None])
    expected = reference(np.arange(length), theta, 16)
    np.testing.assert_allclose(cos[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(sin[0], expected[1], atol=1e-6)


def test_a_decoded_token_takes_the_base_of_the_length_it_makes():
    """The last row of the table of the whole sequence: also behind a cache, where only one position comes."""
    rotary = ExactRotary(16, 1e4, 64, DYNAMIC)
    whole, one = rotary(X, torch.arange(100)[None]), rotary(X, torch.tensor([[99]]))
    assert torch.equal(whole[0][:, -1:], one[0]) and torch.equal(whole[1][:, -1:], one[1])


def test_documents_of_a_packed_row_are_scaled_by_their_own_length():
    rotary = ExactRotary(16, 1e4, 64, DYNAMIC)
    position, length = document_positions(torch.tensor([0, 100, 130, 230], dtype=torch.int32))
    assert position.tolist() == [[*range(100), *range(30), *range(100)]] and set(length[0, 100:130].tolist()) == {30}
    cos, _ = rotary(X, torch.stack([position, length], dim=-1))
    alone = [rotary(X, torch.arange(n)[None])[0] for n in (100, 30, 100)]
    assert torch.equal(cos, torch.cat(alone, dim=1))


@pytest.mark.parametrize("scaling", [DYNAMIC, RopeScaling(kind="linear", factor=4.0)])
def test_fractional_positions_are_never_scaled(scaling):
    positions = torch.arange(0, 400, 0.5, dtype=torch.float64)[None]
    scaled, plain = (ExactRotary(16, 1e4, 64, s)(X, positions) for s in (scaling, None))
    assert torch.equal(scaled[0], plain[0]) and torch.equal(scaled[1], plain[1])


def identical(rotary: ExactRotary, first: float, step: float) -> float:
    """Share of the table's entries that are the same for neighboring image tokens, in bfloat16."""
    place = (first + torch.arange(1, 257, dtype=torch.float64) * step)[None]
    tables = torch.cat(rotary(torch.zeros(1, dtype=torch.bfloat16), place), dim=-1)[0]
    return (tables[1:] == tables[:-1]).double().mean().item()


@pytest.mark.parametrize(("stride", "share"), [(1, 0.92), (16, 0.74), (64, 0.65), (256, 0.54)])
def test_published_tables_lose_what_the_fact_sheet_measured_and_exact_ones_far_less(stride, share):
    """Head size 128, theta 1e6, position 30,000; measured on the published code."""
    published, exact = (ExactRotary(128, 1e6, 32768, None, published=p) for p in (True, False))
    assert identical(published, 30_000, stride / 256) == pytest.approx(share, abs=0.02)
    assert identical(exact, 30_000, stride / 256) < share - 0.15


def test_published_tables_are_float32_phases_rounded_to_the_activations():
    rotary = ExactRotary(16, 1e6, 32768, None, published=True)
    place = torch.arange(5000, 5004, 0.25, dtype=torch.float64)
    frequency = 1 / 1e6 ** (torch.arange(0, 16, 2).float() / 16)
    phase = torch.outer(place.float(), frequency)
    for dtype in (torch.float32, torch.bfloat16):
        cos, sin = rotary(torch.zeros(1, dtype=dtype), place[None])
        assert cos.dtype == sin.dtype == torch.float32
        torch.testing.assert_close(cos[0, :, :8], phase.cos().to(dtype).float(), atol=1e-3, rtol=0)
        torch.testing.assert_close(sin[0, :, 8:], phase.sin().to(dtype).float(), atol=1e-3, rtol=0)
    assert torch.equal(cos, cos.bfloat16().float())


def test_a_bfloat16_model_still_tells_neighboring_image_tokens_apart(tiny, prompt):
    """Rotated in bfloat16, as stock transformers does, keys of neighbors at stride 1 would mostly be the same."""
    model = tiny().to(torch.bfloat16)
    layer, keys = model.language_model.model.layers[0].self_attn, []
    same = torch.ones(1, 8, 64, dtype=torch.bfloat16)  # one vector at eight positions
    place = (30_000 + torch.arange(8, dtype=torch.float64) / 256)[None]

    class Cache:
        def update(self, k, v, _):
            keys.append(k)
            return k, v

    layer(same, model.language_model.model.rotary_emb(same, place), past_key_values=Cache())
    assert keys[0].dtype == torch.bfloat16  # the cache does not grow in bytes
    cos, sin = model.language_model.model.rotary_emb(same.float(), place)
    raw = layer.k_proj(same).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2).float()
    half = raw.shape[-1] // 2
    exact = raw * cos + torch.cat([-raw[..., half:], raw[..., :half]], -1) * sin
    assert torch.equal(keys[0], exact.bfloat16())


def test_the_published_tables_are_chosen_in_the_spec(tiny):
    assert tiny(rotary_tables="published").language_model.model.rotary_emb.published
    assert not tiny().language_model.model.rotary_emb.published


def test_a_long_input_leaves_the_next_short_one_as_it_would_be_in_a_fresh_model(tiny, prompt):
    model = tiny(max_positions=32)
    model.language_model.model.rotary_emb.scaling = DYNAMIC
    short, long = prompt(model, 20), prompt(model, 90, seed=1)
    fresh = model(short).logits
    scaled = model(long).logits
    assert torch.equal(model(short).logits, fresh)
    model.language_model.model.rotary_emb.scaling = None
    assert not torch.allclose(model(long).logits, scaled, atol=0.1)  # or the test could not fail
