"""Names of published checkpoints, and InternLM2's fused projections."""

import pytest
import torch

from vlm.models.checkpoint.formats import FORMATS, internvl, llava
from vlm.models.checkpoint.fused_tensors import fuse_wqkv, split_wqkv, way_to_make
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.reader import CheckpointReader
from vlm.models.checkpoint.renaming import rename, without_layers
from vlm.models.checkpoint.safetensors_io import WeightReader
from vlm.models.specs import ConvNextSpec, load_preset
from vlm.models.vision.convnext import ConvNext
from vlm.models.vlm import make_model

CHECKPOINTS = [
    "internvl2-v2pe-tiny",
    "internvl-chat-v1-2-tiny",
    "convllava-tiny",
    "internvl3-tiny",
    "internvl3-tiny-hf",
]


def language(width, heads, kv_heads):
    return load_preset("tiny-internvl2").with_language(width=width, heads=heads, kv_heads=kv_heads).language


def test_fused_rows_are_grouped_by_key_value_head():
    """4 heads of size 1 and 2 key-value heads: [q0 q1 | k0 | v0 | q2 q3 | k1 | v1]."""
    q, k, v = split_wqkv(torch.arange(8.0)[:, None], language(4, 4, 2))
    assert [t.flatten().tolist() for t in (q, k, v)] == [[0, 1, 4, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (8, 1), (16, 8)])
def test_fused_projections_survive_the_round_trip_bit_for_bit(heads, kv_heads):
    spec = language(heads * 4, heads, kv_heads)
    fused = torch.randn((heads + 2 * kv_heads) * 4, 5)
    parts = split_wqkv(fused, spec)
    assert [len(part) for part in parts] == [heads * 4, kv_heads * 4, kv_heads * 4]
    assert torch.equal(fuse_wqkv(*parts, spec), fused)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_key_of_a_published_checkpoint_is_accounted_for(name, golden_data):
    folder = golden_data / name
    layout = read_layout(folder)
    source = CheckpointReader(layout, folder)
    stored = [key for path in (folder, *(tower for tower, _ in layout.towers)) for key in WeightReader(path).items]
    accounts = source.accounts
    assert sorted(accounts.used) == sorted(stored)
    assert not (accounts.dropped or accounts.copies or accounts.missing or accounts.unknown)
    with torch.device("meta"):
        assert list(source.wanted) == list(make_model(layout.spec).state_dict())


def test_the_unused_norm_is_dropped_by_name_and_a_strange_key_is_an_error():
    result = rename(["layernorm.weight", "layernorm.bias", "tail.weight"], llava.ENCODER)
    assert result.dropped == ["layernorm.weight", "layernorm.bias"]
    assert result.unknown == ["tail.weight"]


def test_both_dialects_of_convnext_name_the_same_tensors():
    """transformers' own names and timm's, from the two libraries; only norm and head are left over."""
    import timm
    from transformers import ConvNextConfig, ConvNextModel

    depths, widths = (2, 1, 3, 2), (8, 16, 24, 32)
    with torch.device("meta"):
        theirs = ConvNextModel(ConvNextConfig(depths=list(depths), hidden_sizes=list(widths))).state_dict()
        timms = timm.models.convnext.ConvNeXt(depths=depths, dims=widths).state_dict()
        ours = ConvNext(ConvNextSpec(depths=depths, widths=widths)).state_dict()
    for names, dropped in ((theirs, ["layernorm."]), (timms, ["head."])):
        result = rename(list(names), llava.ENCODER_ANY)
        assert sorted(result.renamed.values()) == sorted(f"encoder.{key}" for key in ours)
        assert not result.unknown
        assert result.dropped and all(key.startswith(tuple(dropped)) for key in result.dropped)


def test_three_tensors_there_are_one_here_and_back():
    spec = language(8, 4, 2)
    whole = torch.randn(16, 3)
    name = "language_model.model.layers.7.self_attn.{}_proj.weight"
    have = {"language_model.model.layers.7.self_attn.wqkv": whole}
    parts = {n: way_to_make(n, have).make(whole, spec) for n in map(name.format, "qkv")}
    assert [len(p) for p in parts.values()] == [8, 4, 4]
    assert len({p.untyped_storage().data_ptr() for p in parts.values()} | {whole.untyped_storage().data_ptr()}) == 4
    way = way_to_make("language_model.model.layers.7.self_attn.wqkv", parts)
    assert torch.equal(way.make(*(parts[n] for n in way.needs), spec), whole)
    del parts[name.format("k")]
    assert way_to_make("language_model.model.layers.7.self_attn.wqkv", parts) is None
    assert way_to_make(name.format("k"), {}) is None


def test_layers_behind_the_selected_one_are_dropped_by_name():
    patterns = without_layers(internvl.PATTERNS["llama"], "vision_model.encoder.layers", [11])
    keys = [f"vision_model.encoder.layers.{i}.ls1" for i in (1, 10, 11)]
    result = rename([*keys, "language_model.model.layers.11.mlp.up_proj.weight"], patterns)
    assert result.dropped == ["vision_model.encoder.layers.11.ls1"]
    assert list(result.renamed.values())[-1] == "language_model.model.layers.11.mlp.up_proj.weight"
    assert len(result.renamed) == 3


def test_each_model_type_belongs_to_one_format_and_each_pattern_to_one_name_of_ours():
    owners = [kind for module in FORMATS.values() for kind in module.MODEL_TYPES]
    assert len(owners) == len(set(owners)) >= len(FORMATS)
    ours = ("encoder.", "projector.", "language_model.")
    for name, module in FORMATS.items():
        for variant, patterns in module.PATTERNS.items():
            assert all(target is None or target.startswith(ours) for target in patterns.values()), (name, variant)
