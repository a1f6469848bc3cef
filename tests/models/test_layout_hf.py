"""transformers' own `-hf` layout of InternVL, in both directions, against transformers' own class."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, LlamaConfig

from vlm.core.errors import CheckpointError
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.load import load_model

CONTEXT = 90


def theirs(**changes):
    """A tiny model of transformers with random weights, layer scales open."""
    vision = {"attention_bias": True, "layer_scale_init_value": 0.5, **changes.pop("vision", {})}
    language = {"num_attention_heads": 4, "num_key_value_heads": 2, **changes.pop("language", {})}
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=56, **vision
        ),
        text_config=LlamaConfig(
            vocab_size=100, hidden_size=64, num_hidden_layers=2, intermediate_size=128, rms_norm_eps=1e-5, **language
        ),
        image_token_id=CONTEXT,
        image_seq_length=4,
        **{"tie_word_embeddings": False, **changes},
    )
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lambda" not in name:  # at the usual initialization a tiny model's answers hardly move
                parameter.copy_(torch.randn_like(parameter) * (0.15 if parameter.dim() > 1 else 0.3))
    return model


def compare(published, ours, atol=1e-5):
    """Features and logits of two tiles between text."""
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[5, 6, 7, *[CONTEXT] * 8, 8, 9, 10, 11]])
    with torch.no_grad():
        want = published.get_image_features(pixels, return_dict=True).pooler_output
        torch.testing.assert_close(ours.encode_images(pixels), want, atol=atol, rtol=0)
        want = published(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
        got = ours(ids, pixel_values=pixels).logits
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, atol=10 * atol, rtol=0)


VARIANTS = {
    "300M": {},
    "6B": {"vision": {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False}},
    "an earlier layer": {"vision_feature_layer": -2},
    "one key-value head": {
        "language": {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    },
    "tied": {"tie_word_embeddings": True},
    "dynamic scaling": {
        "language": {
            "max_position_embeddings": 12,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        }
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_of_transformers_loads_and_computes_the_same(variant, tmp_path):
    published = theirs(**{k: dict(v) if isinstance(v, dict) else v for k, v in VARIANTS[variant].items()})
    published.save_pretrained(tmp_path / "hf")
    compare(published, load_model(tmp_path / "hf"))


def test_the_names_in_memory_load_too(tmp_path):
    """Since 4.52 the model's own names differ from the published ones."""
    published = theirs()
    published.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    state = published.state_dict()
    assert "model.language_model.layers.0.mlp.up_proj.weight" in state
    save_file(state, tmp_path / "hf" / "model.safetensors")
    compare(published, load_model(tmp_path / "hf"))


@pytest.mark.parametrize("variant", ["300M", "6B", "tied", "dynamic scaling"])
def test_what_we_write_is_what_transformers_reads(variant, tmp_path):
    theirs(**{k: dict(v) if isinstance(v, dict) else v for k, v in VARIANTS[variant].items()}).save_pretrained(
        tmp_path / "theirs"
    )
    ours = convert(convert(tmp_path / "theirs", "vlm", tmp_path / "ours"), "hf", tmp_path / "hf")
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "theirs", ours))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    again, info = InternVLForConditionalGeneration.from_pretrained(ours, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    compare(again.eval(), load_model(tmp_path / "ours"))


def test_a_published_internvl2_becomes_a_model_of_transformers(golden_data, tmp_path):
    """Fused `wqkv` there, three projections here; the same logits."""
    folder = convert(golden_data / "internvl2-v2pe-tiny", "hf", tmp_path / "hf")
    published = InternVLForConditionalGeneration.from_pretrained(folder).eval()
    ours = load_model(golden_data / "internvl2-v2pe-tiny")
    context = ours.spec.image_tokens.context_id
    assert published.config.image_token_id == context
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[5, 6, 7, *[context] * 4, 8, 9, 10, 11]])
    with torch.no_grad():
        want = published(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(ours(ids, pixel_values=pixels).logits, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        (
            "text_config",
            "model_type",
            "qwen3",
            r"text_config: model_type 'qwen3' is not supported\n  expected: one of llama, qwen2",
        ),
        ("text_config", "attention_bias", True, "attention_bias True"),
        ("text_config", "head_dim", 99, "head_dim 99"),
        ("vision_config", "use_mean_pooling", False, "use_mean_pooling False"),
        ("vision_config", "use_absolute_position_embeddings", False, "use_absolute_position_embeddings False"),
        (None, "vision_feature_select_strategy", "full", "vision_feature_select_strategy 'full'"),
        (None, "vision_feature_layer", [-1, -2], r"vision_feature_layer \[-1, -2\]"),
    ],
)
def test_a_setting_that_our_model_does_not_have_is_refused(part, key, value, message, tmp_path):
    theirs().save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    (config[part] if part else config)[key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "hf")
