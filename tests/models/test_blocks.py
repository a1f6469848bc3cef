"""Rotation and norms in blocks: the same bits as in one piece, in every dtype, and never where gradients are wanted."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from vlm.models import blocks

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "length", "heads"), [(1, 1, 3), (1, 700, 16), (3, 300, 5), (2, 2049, 4)])
@torch.inference_mode()
def test_rotation_in_blocks_gives_the_same_bits_and_memory_layout(dtype, rows, length, heads):
    x = torch.randn(rows, length, heads, 64).to(dtype).transpose(1, 2)
    phase = torch.rand(1 if length % 2 else rows, length, 32, dtype=torch.float64) * 1e5
    tables = [
        f(torch.cat([phase, phase], -1)).to(torch.promote_types(dtype, torch.float32)) for f in (torch.cos, torch.sin)
    ]
    expected = apply_rotary_pos_emb(x, x, *tables)[0].to(dtype)
    got = blocks.rotated(x, *tables, dtype)
    assert torch.equal(got, expected)
    assert length == 1 or got.stride() == expected.stride()


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_norms_in_blocks_give_the_same_bits_as_those_of_transformers(dtype):
    x = torch.randn(2, 1500, 1024).to(dtype) * 3
    norm = LlamaRMSNorm(1024, eps=1e-5).to(dtype)
    norm.weight.data.normal_()
    assert blocks.pays(x, blocks.NORMED)
    got = blocks.rms_norm(x, norm.weight, 1e-5)
    assert torch.equal(got, norm(x)) and got.dtype == norm(x).dtype
    part = x[:, ::2, :]  # strided
    assert torch.equal(blocks.rms_norm(part, norm.weight, 1e-5), norm(part))


def test_gradients_and_other_devices_take_one_piece():
    x = torch.zeros(1 << 21)
    assert not blocks.pays(x, 1) and not blocks.pays(x.to("meta"), 1)
    with torch.no_grad():
        assert blocks.pays(x, 1 << 21) and not blocks.pays(x, (1 << 21) + 1) and not blocks.pays(x.to("meta"), 1)


def test_a_long_prompt_has_the_same_hidden_states_with_and_without_blocks(tiny, monkeypatch):
    """The whole model, prefill and a decoded token: blocks of both kinds, bfloat16."""
    used = []
    for name in ("rotated", "_rms_norm"):
        original = getattr(blocks, name)
        monkeypatch.setattr(blocks, name, lambda *a, f=original, n=name: used.append(n) or f(*a))
    model = tiny().bfloat16()
    ids = torch.randint(10, 300, (1, 600))
    with torch.no_grad():
        plain = model(ids).logits
        assert "rotated" not in used
        monkeypatch.setattr(blocks, "ROTATED", 1 << 10)
        monkeypatch.setattr(blocks, "NORMED", 1 << 10)
        monkeypatch.setattr(blocks, "CACHED", 1 << 12)
        used.clear()
        assert torch.equal(model(ids).logits, plain)
    assert used.count("rotated") == 2 * model.spec.language.depth
    assert used.count("_rms_norm") > 10 * model.spec.language.depth
