"""A Qwen2 (InternVL2.5, InternVL3) trains alike on one process and on two, whatever ZeRO splits, tied or not."""

import json
from pathlib import Path

import pytest

from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import save_model, tensors
from vlm.models.specs import load_preset

START = ("model.start=pretrained/tiny-internvl3", "model.preset=tiny-internvl3", "steps=3")
TOKENIZER = Path(__file__).parents[1] / "golden/data/tokenizers/qwen2"
BIAS = "language_model.model.layers.0.self_attn.{}_proj.bias"


def state(out):
    return dict(tensors(out / "model"))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_on_two_processes_trains_as_one_process(stage, alone, trained, numbers, home):
    one, two = alone(*START), trained(2, f"zero{stage}", *START, f"zero.stage={stage}")
    for key in ("loss", "grad_norm"):
        assert numbers(two, key) == pytest.approx(numbers(one, key), rel=1e-5), key
    want, got = state(one), state(two)
    assert got.keys() == want.keys()
    before = dict(tensors(home / "pretrained/tiny-internvl3"))
    for part in "qkv":
        assert (got[BIAS.format(part)] - before[BIAS.format(part)]).any(), part
        assert (got[BIAS.format(part)] - want[BIAS.format(part)]).abs().max() < 1e-3


def test_a_tied_head_stays_tied_in_slices(home, alone, trained, numbers):
    spec = load_preset("tiny-internvl3").with_language(tied=True)
    folder = home / "pretrained/tied-internvl3"
    save_model(build(spec, tokenizer=TOKENIZER, seed=0), folder, tokenizer=TOKENIZER)
    sets = ("model.start=pretrained/tied-internvl3", "model.preset=tiny-internvl3", "steps=3")
    one, two = alone(*sets), trained(2, "tied", *sets, "zero.stage=3")
    assert numbers(two) == pytest.approx(numbers(one), rel=1e-5)
    for out in (one, two):
        assert "language_model.lm_head.weight" not in state(out)
        assert read_layout(out / "model").spec.language.tied


@pytest.mark.parametrize("stage", [2, 3])
def test_adapters_train_alike(stage, alone, trained, numbers):
    lora = json.dumps({"rank": 4, "alpha": 8, "targets": ["language_model.*_proj"]})
    sets = (*START, f"lora={lora}", "trainable=[projector.*]")
    one, two = alone(*sets), trained(2, "two", *sets, f"zero.stage={stage}")
    assert numbers(two) == pytest.approx(numbers(one), rel=1e-5)
    assert (two / "adapter/adapter_model.safetensors").is_file()
