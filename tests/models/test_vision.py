"""Image encoders: what is unusual about each."""

import pytest
import timm
import torch
import torch.nn.functional as F

from vlm.core.errors import DataError
from vlm.models.specs import ExtraStage, TimmSpec, load_preset
from vlm.models.vision.convnext import ConvNext, TimmEncoder
from vlm.models.vision.encoders import make_encoder
from vlm.models.vision.intern_vit import InternVit, RMSNorm, VisionAttention, VisionBlocks

TIMM = TimmSpec(name="test_resnet", extra_stage=ExtraStage(width=24, depth=1, layer_scale_init=0.1))


def vision(preset: str, **changes):
    return load_preset(preset).vision.model_copy(update=changes)


def test_query_and_key_norms_span_the_full_width():
    """Normalized head by head, the scale of one head could not reach another."""
    torch.manual_seed(0)
    spec = vision("tiny-internvl-chat-v1-2")
    attention, head = VisionAttention(spec), spec.width // spec.heads
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


@pytest.mark.parametrize(("name", "std"), [("tiny-internvl2", 1.0), ("quickstart-v2pe", 0.02)])
def test_fresh_positions_are_as_published_or_as_small_as_the_preset_says(name, std):
    torch.manual_seed(0)
    spec = vision(name)
    embeddings = InternVit(spec).embeddings
    for fresh in (embeddings.position_embedding, embeddings.class_embedding):
        assert fresh.std().item() == pytest.approx(std, rel=0.3)
    assert "position_init" not in spec.model_dump()  # no checkpoint needs it


def test_the_position_table_at_its_own_size_is_itself():
    embeddings = InternVit(vision("tiny-internvl2")).embeddings
    torch.testing.assert_close(embeddings.positions(4, 4), embeddings.position_embedding, atol=1e-6, rtol=0)
    assert embeddings.positions(2, 7).shape == (1, 15, 32)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (2, 7), (8, 3)])
def test_the_position_table_at_other_sizes_is_the_published_resize(height, width):
    """Each channel on its own in float32, bicubic, align_corners false, no antialias; the class entry as it is."""
    embeddings = InternVit(vision("tiny-internvl2")).embeddings
    table = embeddings.position_embedding.detach()
    got = embeddings.positions(height, width)
    assert torch.equal(got[:, 0], table[:, 0])
    for channel in (0, 31):
        plane = table[0, 1:, channel].reshape(1, 1, 4, 4)
        expected = F.interpolate(plane, size=(height, width), mode="bicubic", align_corners=False, antialias=False)
        torch.testing.assert_close(got[0, 1:, channel], expected.flatten())


def test_the_position_table_of_a_bfloat16_encoder_is_resized_in_float32():
    embeddings = InternVit(vision("tiny-internvl2")).to(torch.bfloat16).embeddings
    got = embeddings.positions(6, 6)
    embeddings.float()
    assert got.dtype == torch.bfloat16 and torch.equal(got, embeddings.positions(6, 6).bfloat16())


def test_drop_path_rates_are_plain_floats_that_rise_from_zero():
    """A tensor's .item() fails on the meta device, where every large model is built."""
    spec = vision("internvl2-2b", drop_path=0.1)
    with torch.device("meta"):
        layers = VisionBlocks(spec).layers
    rates = [getattr(layer.drop_path, "drop_prob", 0.0) for layer in layers]
    assert rates == pytest.approx([0.1 * i / 23 for i in range(24)]) and {type(r) for r in rates} == {float}
    assert layers[5].attn.qkv.weight.is_meta


def test_rms_norm_multiplies_by_its_weight_after_the_cast_back():
    norm = RMSNorm(64, 1e-6).to(torch.bfloat16)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 64, dtype=torch.bfloat16) * 3
    scaled = x.float() / (x.float().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.equal(norm(x), norm.weight * scaled.bfloat16())


@pytest.mark.parametrize(
    ("name", "norm", "bias"), [("internvl2-2b", torch.nn.LayerNorm, True), ("internvl-chat-v1-2", RMSNorm, False)]
)
def test_norms_and_biases_of_the_two_intern_vits(name, norm, bias):
    with torch.device("meta"):
        block = VisionBlocks(vision(name, depth=1)).layers[0]
    assert (type(block.norm1), type(block.norm2)) == (norm, norm) and (block.attn.qkv.bias is not None) == bias
    assert isinstance(block.attn.q_norm, RMSNorm if norm is RMSNorm else torch.nn.Identity)


@pytest.mark.parametrize("name", ["tiny-internvl2", "tiny-internvl-chat-v1-2", "tiny-convllava"])
def test_drop_path_acts_in_training_only(name):
    spec = vision(name, drop_path=0.9, layer_scale_init=1.0)
    torch.manual_seed(0)
    encoder = make_encoder(spec)
    pixels = torch.randn(4, 3, 128, 128) if spec.kind == "convnext" else torch.randn(4, 3, 56, 56)
    assert not torch.allclose(encoder.train()(pixels), encoder(pixels), atol=1e-3)
    assert torch.equal(encoder.eval()(pixels), encoder(pixels))


@pytest.mark.parametrize("spec", [*map(vision, ["tiny-internvl2", "tiny-internvl-chat-v1-2", "tiny-convllava"]), TIMM])
def test_gradient_checkpointing_changes_no_value_and_no_gradient(spec):
    torch.manual_seed(0)
    encoder = make_encoder(spec).train()
    pixels = torch.randn(1, 3, 56, 56) if spec.kind == "intern_vit" else torch.randn(1, 3, 128, 128)
    seen, runs = [], []
    firsts = {
        InternVit: lambda e: e.encoder.layers[0],
        ConvNext: lambda e: e.stages[0],
        TimmEncoder: lambda e: e.trunk,
    }
    first = firsts[type(encoder)](encoder)
    first.register_forward_pre_hook(lambda *_: runs.append(1))
    for on in (False, True):
        encoder.gradient_checkpointing = on
        encoder.zero_grad()
        out = encoder(pixels)
        out.square().sum().backward()
        seen.append([out, *(p.grad.clone() for p in encoder.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert len(runs) == 3  # once without, twice with: it really was computed again


@pytest.mark.parametrize(("size", "grid"), [((128, 192), (2, 3)), ((64, 64), (1, 1)), ((320, 64), (5, 1))])
def test_convnext_takes_any_height_and_width_at_multiples_of_its_stride(size, grid):
    assert ConvNext(vision("tiny-convllava"))(torch.randn(1, 3, *size)).shape == (1, *grid, 48)


def test_the_output_of_convnext_is_the_last_stage_without_a_norm():
    torch.manual_seed(0)
    encoder = ConvNext(vision("tiny-convllava")).eval()
    pixels, last = torch.randn(1, 3, 128, 128), []
    encoder.stages[-1].register_forward_hook(lambda _, __, out: last.append(out))
    assert torch.equal(encoder(pixels), last[0].permute(0, 2, 3, 1))
    assert len(encoder.stages) == 5 and {name.split(".")[0] for name, _ in encoder.named_parameters()} == {
        "stem",
        "stages",
    }


@pytest.mark.parametrize(
    ("preset", "size", "multiple"),
    [
        ("tiny-internvl2", (56, 60), 14),
        ("tiny-convllava", (160, 168), 64),
        ("tiny-convllava", (32, 64), 64),
        (None, (100, 128), 64),
    ],
)
def test_a_size_that_would_lose_pixels_is_refused_with_size_and_multiple(preset, size, multiple):
    spec = vision(preset) if preset else TIMM
    encoder = make_encoder(spec)
    with pytest.raises(DataError, match=rf"3, {size[0]}, {size[1]}\].*\n.*multiples of {multiple}"):
        encoder(torch.randn(1, 3, *size))


def test_convnext_drops_the_remainder_on_request():
    """What the published code does: 1000 x 700 pixels are 15 x 10 tokens."""
    torch.manual_seed(0)
    encoder = ConvNext(vision("tiny-convllava")).eval()
    encoder.drop_remainder = True
    pixels = torch.randn(1, 3, 1000, 700)
    assert encoder(pixels).shape == (1, 15, 10, 48)


@pytest.mark.parametrize(("level", "stride"), [(-1, 32), (-2, 16), (-3, 8)])
def test_the_level_of_a_timm_encoder_picks_the_map(level, stride):
    """Values too: the map of timm's own pyramid."""
    torch.manual_seed(0)
    encoder = TimmEncoder(TIMM.model_copy(update={"level": level, "extra_stage": None})).eval()
    pyramid = timm.create_model("test_resnet", features_only=True).eval()
    pyramid.load_state_dict(encoder.trunk.state_dict(), strict=False)
    pixels = torch.randn(1, 3, 64, 96)
    expected = pyramid(pixels)[level]
    assert encoder.stride == stride and encoder.width == expected.shape[1]
    torch.testing.assert_close(encoder(pixels), expected.permute(0, 2, 3, 1))


def test_batch_norm_of_a_timm_encoder_keeps_its_statistics_in_training():
    torch.manual_seed(0)
    encoder = TimmEncoder(TIMM)
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    before = [m.running_mean.clone() for m in norms]
    model = torch.nn.Sequential(encoder).train()  # the mode arrives from above, as in a whole model
    model(torch.randn(2, 3, 64, 64) + 3)
    assert encoder.training and norms and not any(m.training for m in norms)
    assert all(torch.equal(m.running_mean, mean) for m, mean in zip(norms, before, strict=True))


def test_a_further_stage_follows_a_timm_trunk_and_trains_when_the_trunk_is_frozen():
    encoder = TimmEncoder(TIMM)
    assert (encoder.width, encoder.stride) == (24, 64)
    encoder.trunk.requires_grad_(False)
    out = encoder(torch.randn(1, 3, 128, 192))
    assert out.shape == (1, 2, 3, 24)
    out.sum().backward()
    assert all(p.grad is None for p in encoder.trunk.parameters())
    assert all(p.grad is not None for p in encoder.stages.parameters())
