"""Start checkpoints from published parts: every tensor accounted for, only what no part can hold is fresh."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.core.errors import CheckpointError
from vlm.models.checkpoint.assemble import assemble, build
from vlm.models.checkpoint.formats import llava
from vlm.models.checkpoint.formats.schema import LLAMA
from vlm.models.checkpoint.load import load_model
from vlm.models.checkpoint.renaming import inverted, prefixed, rename
from vlm.models.specs import load_preset

LAST = "encoder.stages.4."
CONV = LAST + "blocks.0.conv_dw.weight"
LANGUAGE = inverted(prefixed(LLAMA, "", "language_model."))


def published(state, patterns, folder):
    """Tensors under their published names, in a folder of safetensors."""
    folder.mkdir()
    renaming = rename(list(state), patterns)
    assert not renaming.unknown
    save_file({theirs: state[ours].clone() for ours, theirs in renaming.renamed.items()}, folder / "model.safetensors")
    return folder


def parts(state, name):
    return {k: v for k, v in state.items() if k.startswith(name)}


@pytest.fixture
def convllava(golden_data, tmp_path):
    """(spec, tokenizer, donor state, folders of a four-stage ConvNeXt, of all five stages, and of a Llama)."""
    spec, tokenizer = load_preset("tiny-convllava"), golden_data / "tokenizers" / "llama"
    state = build(spec, tokenizer=tokenizer, seed=5).state_dict()
    names = inverted(llava.ENCODER)
    whole = parts(state, "encoder.")
    four = {k: v for k, v in whole.items() if not k.startswith(LAST)}
    llama = {k: v[:540] if v.shape[0] == 560 else v for k, v in parts(state, "language_model.").items()}
    folders = published(four, names, tmp_path / "four"), published(whole, names, tmp_path / "five")
    return spec, tokenizer, state, *folders, published(llama, LANGUAGE, tmp_path / "llama")


def test_a_four_stage_trunk_gets_a_fresh_fifth_stage_and_a_five_stage_one_no_second(convllava, tmp_path):
    spec, tokenizer, state, four, five, llama = convllava
    start = assemble(spec, tokenizer=tokenizer, encoder=four, language=llama)
    start.write(tmp_path / "a")
    assert start.fresh == ["encoder.stages.4", "projector"]
    model = load_model(tmp_path / "a").state_dict()
    assert all(torch.equal(model[k], v) for k, v in parts(state, "encoder.").items() if not k.startswith(LAST))
    assert not torch.equal(model[CONV], state[CONV])
    gamma = model[LAST + "blocks.0.gamma"]
    assert torch.equal(gamma, torch.full_like(gamma, 1e-6))
    table = model["language_model.model.embed_tokens.weight"]
    old = state["language_model.model.embed_tokens.weight"][:540]
    assert torch.equal(table[:540], old)
    torch.testing.assert_close(table[540:], old.mean(0).expand(20, -1))
    start = assemble(spec, tokenizer=tokenizer, encoder=five, language=llama)
    start.write(tmp_path / "b")
    assert start.fresh == ["projector"]
    assert torch.equal(load_model(tmp_path / "b").state_dict()[CONV], state[CONV])
    assemble(spec, tokenizer=tokenizer, encoder=four, language=llama, seed=1).write(tmp_path / "c")
    assert not torch.equal(load_model(tmp_path / "c").state_dict()["projector.0.weight"], model["projector.0.weight"])


def test_an_intern_vit_and_its_projector_file_become_one_checkpoint(golden_data, tmp_path):
    spec, tokenizer = load_preset("tiny-internvl-chat-v1-2"), golden_data / "tokenizers" / "internlm2"
    state = build(spec, tokenizer=tokenizer, seed=5).state_dict()
    vit = {k.removeprefix("encoder."): v.clone().bfloat16() for k, v in parts(state, "encoder.").items()}
    (tmp_path / "vit").mkdir()
    save_file(vit, tmp_path / "vit" / "model.safetensors")
    torch.save({k.removeprefix("projector."): v for k, v in parts(state, "projector.").items()}, tmp_path / "mlp.pth")
    llama = published(parts(state, "language_model."), LANGUAGE, tmp_path / "llama")
    given = {"tokenizer": tokenizer, "encoder": tmp_path / "vit", "language": llama}
    start = assemble(spec, projector=tmp_path / "mlp.pth", **given)
    start.write(tmp_path / "out")
    assert start.fresh == []
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in stored.items():  # each dtype as it was stored
        assert torch.equal(tensor, state[name].bfloat16() if name.startswith("encoder.") else state[name])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["spec"]["family"] == spec.family


def test_missing_unknown_and_misshapen_tensors_are_named_before_anything_is_written(convllava, tmp_path):
    spec, tokenizer, _, four, _, llama = convllava
    given = {"tokenizer": tokenizer, "language": llama}
    good = load_file(four / "model.safetensors")
    for name, change, message in (
        ("short", {k: v for k, v in good.items() if not k.endswith("stages.1.layers.0.pwconv1.bias")}, "in no part"),
        ("more", {**good, "text_model.weight": torch.ones(2)}, "unknown tensors, first text_model.weight"),
        ("wide", {**good, "embeddings.patch_embeddings.bias": torch.ones(99)}, r"is \[99\]"),
    ):
        (tmp_path / name).mkdir()
        save_file(change, tmp_path / name / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            assemble(spec, encoder=tmp_path / name, **given)
