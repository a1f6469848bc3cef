"""Adapters for peft alone: on the `-hf` export of their base they give the logits of our merged model; and back."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLForConditionalGeneration

from vlm.cli.commands.weights import convert as convert_command
from vlm.core.errors import CheckpointError, ConfigError
from vlm.models.checkpoint.adapters import convert_adapters
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.load import load_model, save_model
from vlm.models.specs import load_preset
from vlm.train.parameters.lora import add_adapters, load_adapters, merge, save_adapters
from vlm.train.recipe.recipe import Lora

TARGETS = {
    "language": ("language_model.*.self_attn.*_proj", "language_model.*.mlp.*"),
    "encoder": ("encoder.*.attn.qkv", "encoder.*.attn.proj", "encoder.*.mlp.fc1", "projector.1"),
    "one kind": ("language_model.model.layers.1.self_attn.q_proj",),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint of ours, and its export."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"
    save_model(build(load_preset("tiny-internvl2"), tokenizer=tokenizer, seed=1), folder / "ours", tokenizer=tokenizer)
    return folder / "ours", convert(folder / "ours", "hf", folder / "hf")


def adapted(base, folder, targets, trained=()):
    """Write adapters with values in both matrices; return the state of the merged model."""
    model, spec = load_model(base), Lora(rank=4, alpha=16, dropout=0.1, targets=targets)
    layers = add_adapters(model, spec, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or name.startswith(trained or "-"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    patterns = tuple(f"{name}*" for name in trained)
    save_adapters(model.state_dict(), spec, folder, trained=patterns, base=str(base))
    assert layers
    return merge(model.state_dict(), spec)


def logits(model, ids, pixels, *, theirs):
    with torch.no_grad():
        return (
            model(**{"input_ids": ids, "pixel_values": pixels}).logits
            if theirs
            else model(ids, pixel_values=pixels).logits
        )


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft reads it
@pytest.mark.parametrize("kind", [*TARGETS, "language and projector"])
def test_peft_alone_gives_the_logits_of_the_merged_model(kind, base, tmp_path):
    ours, export = base
    trained = ("projector.",) if kind == "language and projector" else ()
    state = adapted(ours, tmp_path / "adapter", TARGETS[kind.split(" and ")[0]], trained)
    merged = load_model(ours).eval()
    context = merged.spec.image_tokens.context_id
    size = merged.spec.vision.image_size
    ids = torch.randint(10, 90, (1, 40), generator=torch.Generator().manual_seed(1))
    ids[0, 5 : 5 + merged.tokens_per_tile] = context
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    plain = logits(merged, ids, pixels, theirs=False)
    merged.load_state_dict(state)
    wanted = logits(merged, ids, pixels, theirs=False)
    assert (wanted - plain).abs().max() > 1e-3  # the adapters matter
    convert_command(str(tmp_path / "adapter"), "hf", tmp_path / "theirs")
    model = InternVLForConditionalGeneration.from_pretrained(export)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "theirs").eval()
    assert (logits(model, ids, pixels, theirs=True) - wanted).abs().max() <= 1e-5
    assert (logits(model.merge_and_unload(), ids, pixels, theirs=True) - wanted).abs().max() <= 1e-5


def test_what_has_no_place_is_refused_and_nothing_is_written(base, tmp_path):
    adapted(base[0], tmp_path / "adapter", TARGETS["one kind"])
    with pytest.raises(ConfigError, match="adapters for the llava layout"):
        convert_adapters(tmp_path / "adapter", "llava", tmp_path / "out")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for change, message in (
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "gone"}, "gone"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "without biases"),
    ):
        broken = tmp_path / "broken"
        shutil.copytree(tmp_path / "adapter", broken, dirs_exist_ok=True)
        (broken / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises((CheckpointError, ConfigError), match=message):
            convert_adapters(broken, "hf", tmp_path / "out")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    (broken / "adapter_config.json").write_text(json.dumps(config))
    for change in (dict(list(tensors.items())[:1]), {"strange": torch.zeros(2)}):
        save_file(change, broken / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match="two matrices"):
            convert_adapters(broken, "hf", tmp_path / "out")
    (broken / "adapter_model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(CheckpointError, match="adapter_model"):
        convert_adapters(broken, "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def restored(base, folder):
    """The state of our base model with the adapters of a folder merged in."""
    model = load_model(base)
    spec = load_adapters(model, folder)
    return merge(model.state_dict(), spec)


@pytest.mark.parametrize("kind", [*TARGETS, "language and projector"])
def test_adapters_there_and_back_are_the_same_bits(kind, base, tmp_path):
    ours, export = base
    trained = ("projector.",) if kind == "language and projector" else ()
    state = adapted(ours, tmp_path / "adapter", TARGETS[kind.split(" and ")[0]], trained)
    convert_command(str(tmp_path / "adapter"), "hf", tmp_path / "theirs")
    convert_command(str(tmp_path / "theirs"), "vlm", tmp_path / "back", base=str(export))
    for name in ("adapter_model.safetensors", *(["trained.safetensors"] if trained else [])):
        one, other = load_file(tmp_path / "adapter" / name), load_file(tmp_path / "back" / name)
        assert one.keys() == other.keys() and all(torch.equal(t, other[k]) for k, t in one.items())
    again = restored(ours, tmp_path / "back")
    assert all(torch.equal(t, again[k]) for k, t in state.items())


TRAINED_BY_PEFT = {
    "suffixes": {"target_modules": ["q_proj", "v_proj", "down_proj", "fc1"]},
    "all linear": {"target_modules": "all-linear"},
    "projector": {"target_modules": ["k_proj"], "modules_to_save": ["linear_1"]},
    "another scale": {"target_modules": ["q_proj", "k_proj", "v_proj"], "use_rslora": True},
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("case", TRAINED_BY_PEFT)
def test_what_peft_trained_on_the_export_comes_back(case, base, tmp_path):
    """Parts of our fused layers have first matrices of their own, or no adapter at all."""
    ours, export = base
    theirs = peft.get_peft_model(
        InternVLForConditionalGeneration.from_pretrained(export),
        peft.LoraConfig(r=3, lora_alpha=5, init_lora_weights=False, **TRAINED_BY_PEFT[case]),
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.05)
    theirs.save_pretrained(tmp_path / "theirs")
    convert_command(str(tmp_path / "theirs"), "vlm", tmp_path / "back", base=str(export))
    merged = load_model(ours).eval()
    size, context = merged.spec.vision.image_size, merged.spec.image_tokens.context_id
    ids = torch.randint(10, 90, (1, 40), generator=torch.Generator().manual_seed(1))
    ids[0, 5 : 5 + merged.tokens_per_tile] = context
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    plain = logits(merged, ids, pixels, theirs=False)
    merged.load_state_dict(restored(ours, tmp_path / "back"))
    got, wanted = logits(merged, ids, pixels, theirs=False), logits(theirs.eval(), ids, pixels, theirs=True)
    assert (plain - wanted).abs().max() > 1e-3
    assert (got - wanted).abs().max() <= 1e-5 * max(1, wanted.abs().max())


def test_the_way_back_names_what_does_not_fit(base, tmp_path):
    adapted(base[0], tmp_path / "adapter", TARGETS["language"])
    convert_command(str(tmp_path / "adapter"), "hf", tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="names no base model"):
        convert_adapters(tmp_path / "theirs", "vlm", tmp_path / "out")
    tensors = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    first = min(tensors)
    for change, message in (
        ({first: tensors[first]}, "two matrices"),
        ({**tensors, "base_model.model.strange.lora_A.weight": torch.zeros(2, 2)}, "no tensor of the -hf layout"),
        ({k: t[:, :8].contiguous() if "lora_A" in k else t for k, t in tensors.items()}, "another shape"),
        ({k.replace("layers.1.", "layers.9."): t for k, t in tensors.items()}, "which .* has not"),
    ):
        save_file(change, tmp_path / "theirs" / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            convert_adapters(tmp_path / "theirs", "vlm", tmp_path / "out", base=str(base[1]))
    assert not (tmp_path / "out").exists()
