"""Image encoders: what is unusual about each."""

import pytest
import torch

from vlm.models.specs import ExtraStage, TimmSpec, load_preset
from vlm.models.vision.convnext import TimmEncoder
from vlm.models.vision.intern_vit import Attention, InternVit
from vlm.models.vlm import ENCODERS

TIMM = TimmSpec(name="test_resnet", extra_stage=ExtraStage(width=24, depth=1, layer_scale_init=0.1))


def vision(preset: str, **changes):
    return load_preset(preset).vision.model_copy(update=changes)


def test_query_and_key_norms_span_the_full_width():
    """Normalised head by head, the scale of one head could not reach another."""
    torch.manual_seed(0)
    spec = vision("tiny-internvl-chat-v1-2")
    attention, head = Attention(spec), spec.width // spec.heads
    assert attention.q_norm.weight.shape == (spec.width,)
    q = torch.randn(1, 5, spec.width)
    louder = q.clone()
    louder[..., -head:] *= 10
    first = slice(0, head)
    assert not torch.allclose(attention.q_norm(q)[..., first], attention.q_norm(louder)[..., first], rtol=0.1)
    rms = attention.q_norm(q).pow(2).mean(-1)
    torch.testing.assert_close(rms, torch.ones(1, 5))


def test_the_class_token_is_used_inside_and_left_out():
    torch.manual_seed(0)
    encoder = InternVit(vision("tiny-internvl2")).eval()
    pixels = torch.randn(1, 3, 56, 56)
    before = encoder(pixels)
    assert before.shape == (1, 4, 4, 32)
    with torch.no_grad():
        encoder.embeddings.class_embedding.neg_()
    assert not torch.allclose(before, encoder(pixels), atol=1e-4)


def test_the_position_table_at_its_own_size_is_itself():
    embeddings = InternVit(vision("tiny-internvl2")).embeddings
    torch.testing.assert_close(embeddings.positions(4, 4), embeddings.position_embedding, atol=1e-6, rtol=0)
    assert embeddings.positions(2, 7).shape == (1, 15, 32)


@pytest.mark.parametrize("name", ["tiny-internvl2", "tiny-internvl-chat-v1-2", "tiny-convllava"])
def test_drop_path_acts_in_training_only(name):
    spec = vision(name, drop_path=0.9, layer_scale_init=1.0)
    torch.manual_seed(0)
    encoder = ENCODERS[spec.kind](spec)
    pixels = torch.randn(4, 3, 128, 128) if spec.kind == "convnext" else torch.randn(4, 3, 56, 56)
    assert not torch.allclose(encoder.train()(pixels), encoder(pixels), atol=1e-3)
    assert torch.equal(encoder.eval()(pixels), encoder(pixels))


@pytest.mark.parametrize("name", ["tiny-internvl2", "tiny-internvl-chat-v1-2", "tiny-convllava"])
def test_gradient_checkpointing_changes_no_gradient(name):
    spec = vision(name)
    torch.manual_seed(0)
    encoder = ENCODERS[spec.kind](spec).train()
    pixels = torch.randn(1, 3, 128, 128) if spec.kind == "convnext" else torch.randn(1, 3, 56, 56)
    gradients = []
    for on in (False, True):
        encoder.gradient_checkpointing = on
        encoder.zero_grad()
        encoder(pixels).square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("size", "grid"), [((128, 192), (2, 3)), ((64, 64), (1, 1)), ((160, 168), (2, 2))])
def test_convnext_takes_any_size_and_loses_the_remainder(size, grid):
    spec = vision("tiny-convllava")
    assert ENCODERS["convnext"](spec)(torch.randn(1, 3, *size)).shape == (1, *grid, 48)


def test_batch_norm_of_a_timm_encoder_keeps_its_statistics_in_training():
    torch.manual_seed(0)
    encoder = TimmEncoder(TIMM)
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    before = [m.running_mean.clone() for m in norms]
    model = torch.nn.Sequential(encoder).train()  # the mode arrives from above, as in a whole model
    model(torch.randn(2, 3, 64, 64) + 3)
    assert encoder.training and norms and not any(m.training for m in norms)
    assert all(torch.equal(m.running_mean, mean) for m, mean in zip(norms, before, strict=True))


def test_a_further_stage_stands_behind_a_timm_trunk_and_trains_when_the_trunk_is_frozen():
    encoder = TimmEncoder(TIMM)
    assert (encoder.width, encoder.stride) == (24, 64)
    encoder.trunk.requires_grad_(False)
    out = encoder(torch.randn(1, 3, 128, 192))
    assert out.shape == (1, 2, 3, 24)
    out.sum().backward()
    assert all(p.grad is None for p in encoder.trunk.parameters())
    assert all(p.grad is not None for p in encoder.stages.parameters())
