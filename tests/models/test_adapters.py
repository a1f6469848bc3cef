"""Names of published checkpoints, and InternLM2's fused projections."""

import pytest
import torch
from safetensors import safe_open

from vlm.core.errors import CheckpointError
from vlm.models.adapters import (
    CONVNEXT_TOWER,
    INTERNVL_LLAMA,
    WQKV,
    check_unknown,
    fuse_wqkv,
    inverted,
    rename,
    split_wqkv,
    without_layers,
)
from vlm.models.layouts import read_layout
from vlm.models.specs import load_preset
from vlm.models.vlm import make_model
from vlm.models.weights import weight_files

CHECKPOINTS = ["internvl2-v2pe-tiny", "internvl-chat-v1-2-tiny", "convllava-tiny"]


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
    ours = []
    for source, patterns in ((folder, layout.patterns), *layout.towers):
        for file in weight_files(source):
            with safe_open(file, "pt") as f:
                keys = list(f.keys())
            result = rename(keys, patterns)
            assert not result.unknown and not result.dropped
            assert rename(list(result.renamed.values()), inverted(patterns)).renamed == {
                target: key for key, target in result.renamed.items()
            }
            for target in result.renamed.values():
                match = WQKV.match(target)
                ours += [f"{match[1]}{letter}_proj.weight" for letter in "qkv"] if match else [target]
    with torch.device("meta"):
        assert sorted(ours) == sorted(make_model(layout.spec).state_dict())


def test_the_unused_norm_is_dropped_by_name_and_a_strange_key_is_an_error():
    result = rename(["layernorm.weight", "layernorm.bias", "head.weight"], CONVNEXT_TOWER)
    assert result.dropped == ["layernorm.weight", "layernorm.bias"]
    assert result.unknown == ["head.weight"]
    with pytest.raises(CheckpointError, match=r"tower: 1 unknown tensors, first head\.weight"):
        check_unknown(result, "tower")
    check_unknown(result, "tower", allow=lambda key: key == "head.weight")


def test_layers_behind_the_selected_one_are_dropped_by_name():
    patterns = without_layers(INTERNVL_LLAMA, "vision_model.encoder.layers", [11])
    keys = [f"vision_model.encoder.layers.{i}.ls1" for i in (1, 10, 11)]
    result = rename([*keys, "language_model.model.layers.11.mlp.up_proj.weight"], patterns)
    assert result.dropped == ["vision_model.encoder.layers.11.ls1"]
    assert list(result.renamed.values())[-1] == "language_model.model.layers.11.mlp.up_proj.weight"
    assert len(result.renamed) == 3
