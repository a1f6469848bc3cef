"""`vlm weights diff`: names the first module whose activations differ."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vlm.cli.commands.weights import app
from vlm.models.checkpoint.convert import convert
from vlm.models.compare import diff, greatest


def edited(source, target, change):
    """A copy of a checkpoint in our layout with changed tensors."""
    folder = shutil.copytree(source, target)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    return folder


def test_the_same_model_in_two_layouts_is_equal(golden_data, tmp_path):
    a = golden_data / "internvl2-v2pe-tiny"
    found = diff(a, convert(a, "hf", tmp_path / "hf"))
    assert found.equal and found.first is None and not found.settings
    assert found.compared > 50


@pytest.mark.parametrize(
    ("tensor", "module"),
    [
        ("encoder.embeddings.patch_embedding.bias", "encoder.embeddings.patch_embedding"),
        ("encoder.encoder.layers.1.mlp.fc1.weight", "encoder.encoder.layers.1.mlp.fc1"),
        ("projector.3.bias", "projector.3"),
        ("language_model.model.layers.1.self_attn.k_proj.weight", "language_model.model.layers.1.self_attn.k_proj"),
        ("language_model.lm_head.weight", "language_model.lm_head"),
    ],
)
def test_the_first_module_that_differs_is_named(tensor, module, checkpoint, tmp_path):
    a = checkpoint("tiny-internvl2")
    b = edited(a, tmp_path / "b", lambda s: s[tensor].add_(0.25))
    found = diff(a, b)
    assert not found.equal
    assert found.first.name == module and found.first.max_abs > 0
    assert [(t.name, t.max_abs) for t in found.tensors] == [(tensor, pytest.approx(0.25, abs=1e-6))]
    assert not found.only_a and not found.only_b


def test_weights_that_nothing_reads_differ_without_a_module(checkpoint, tmp_path):
    """A row of the embedding table that the seeded input never asks for."""
    a = checkpoint("tiny-internvl2")
    b = edited(a, tmp_path / "b", lambda s: s["language_model.model.embed_tokens.weight"][313].add_(1))
    found = diff(a, b)
    assert not found.equal and found.first is None and len(found.tensors) == 1


def test_a_setting_shows_in_the_activations(checkpoint, tmp_path):
    a = checkpoint("tiny-internvl2")
    b = shutil.copytree(a, tmp_path / "b")
    config = json.loads((b / "config.json").read_text())
    config["spec"]["language"]["rope_theta"] = 500.0
    (b / "config.json").write_text(json.dumps(config))
    found = diff(a, b)
    assert found.settings == {"language.rope_theta": [1000000.0, 500.0]}
    assert found.first.name == "language_model.model.rotary_emb" and not found.tensors


def test_dtypes_are_listed_apart_from_values(checkpoint, tmp_path):
    a = edited(checkpoint("tiny-internvl2"), tmp_path / "a", lambda s: [t.round_() for t in s.values()])
    b = edited(a, tmp_path / "b", lambda s: s.update({k: t.bfloat16() for k, t in s.items()}))
    found = diff(a, b)
    assert found.equal and found.dtypes["projector.1.bias"] == ["float32", "bfloat16"]


def test_models_that_take_no_common_input_are_compared_by_tensor(golden_data):
    found = diff(golden_data / "internvl2-v2pe-tiny", golden_data / "internvl-chat-v1-2-tiny")
    assert not found.equal and "the vocabulary is 320 in A, 300 in B" in found.skipped
    assert "encoder.encoder.layers.2.ls1" in found.only_b
    assert found.tensors[0].max_abs is None


def test_a_tolerance_and_a_picture_with_a_question(checkpoint, picture, tmp_path):
    a = checkpoint("tiny-convllava")
    b = edited(a, tmp_path / "b", lambda s: s["projector.2.bias"].add_(1e-3))
    assert diff(a, b, picture=picture(), question="What is it?").first.name == "projector.2"
    found = diff(a, b, picture=picture(), atol=100.0)
    assert found.first is None and not found.equal  # the tensors still differ


def test_values_that_are_no_numbers_are_equal_to_themselves_alone():
    nan, inf = float("nan"), float("inf")
    a = torch.tensor([nan, inf, 1.0])
    assert greatest(a, a.clone()) == 0
    assert greatest(a, torch.tensor([nan, inf, nan])) == inf
    assert greatest(a, torch.tensor([nan, -inf, 1.0])) == inf


def test_the_command_exits_with_0_for_equal_and_1_for_different(checkpoint, tmp_path):
    a = checkpoint("tiny-internvl2")
    b = edited(a, tmp_path / "b", lambda s: s["projector.1.bias"].add_(1))
    run = CliRunner().invoke
    same = run(app, ["diff", str(a), str(a)])
    assert same.exit_code == 0 and same.stdout.startswith("equal: all tensors, and the activations of ")
    other = run(app, ["diff", str(a), str(b)])
    assert other.exit_code == 1 and other.stdout.startswith("different: first in projector.1 [1, 4, 64], up to 1")
    shown = run(app, ["diff", str(a), str(b), "--json"])
    assert shown.exit_code == 1 and json.loads(shown.stdout)["first"]["name"] == "projector.1"
