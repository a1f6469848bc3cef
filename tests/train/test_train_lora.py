"""Adapters: their layers, no effect at the start, and the same results after merging, saving and loading."""

import json
import shutil
import weakref

import peft
import pytest
import torch

from vlm.core.errors import CheckpointError, ConfigError
from vlm.models import load_model, load_preset, make_model
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.load import save_model, tensors
from vlm.train.parameters.lora import add_adapters, is_adapter, load_adapters, merge, prepare, save_adapters
from vlm.train.recipe.recipe import Lora, load_recipe
from vlm.train.run import loop
from vlm.train.run.loop import train

SPEC = Lora(
    rank=4, alpha=8, targets=("language_model.*_proj", "encoder.*.attn.qkv", "encoder.*.attn.proj", "encoder.*.mlp.fc?")
)


def fresh(dtype=torch.float32, preset="tiny-internvl2"):
    torch.manual_seed(0)
    model = make_model(load_preset(preset)).eval().to(dtype)
    for name, parameter in model.named_parameters():
        if name.startswith("language_model") and name.endswith("_proj.bias"):  # Qwen2's, zero in a fresh model
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def trained(dtype=torch.float32, preset="tiny-internvl2"):
    """A model whose adapters are not zero."""
    model = fresh(dtype, preset)
    layers = add_adapters(model, SPEC, seed=0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model, layers


def answer(model, dtype=torch.float32):
    torch.manual_seed(1)
    ids = torch.randint(0, 300, (1, 24))
    ids[0, 3 : 3 + model.tokens_per_tile] = model.spec.image_tokens.context_id
    pixels = torch.randn(1, 3, model.image_size, model.image_size, dtype=dtype)
    with torch.no_grad():
        return model(ids, pixel_values=pixels).logits


def test_fresh_adapters_change_nothing_and_sit_on_every_target_of_both_towers():
    model = fresh()
    before = answer(model)
    layers = add_adapters(model, SPEC, seed=0)
    assert torch.equal(answer(model), before)
    assert len(layers) == 2 * 7 + 2 * 4 and {name.split(".")[0] for name in layers} == {"language_model", "encoder"}


def test_first_matrices_depend_on_the_seed_alone():
    def first(seed, global_seed):
        model = fresh()
        torch.manual_seed(global_seed)
        add_adapters(model, SPEC, seed)
        return next(p for n, p in model.named_parameters() if ".lora_A." in n)

    assert torch.equal(first(0, 1), first(0, 2)) and not torch.equal(first(0, 1), first(1, 1))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_merged_weights_compute_what_the_adapters_compute(dtype, tolerance):
    model, _ = trained(dtype)
    state = merge(model.state_dict(), SPEC)
    plain = fresh(dtype)
    assert state.keys() == plain.state_dict().keys()
    distance = (answer(model, dtype) - answer(plain, dtype)).abs().max()
    assert distance > 0.01, "the adapters do something"
    plain.load_state_dict(state)
    assert (answer(model, dtype) - answer(plain, dtype)).abs().max() < tolerance


def test_merging_is_what_peft_merges():
    model, _ = trained()
    state = merge(model.state_dict(), SPEC)
    for name, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.merge()
            torch.testing.assert_close(module.base_layer.weight, state[f"{name}.weight"], atol=1e-7, rtol=0)


def test_adapters_alone_are_saved_small_and_read_again_to_the_same_answer(tmp_path):
    model, _ = trained()
    with torch.no_grad():
        model.projector[1].weight += 0.01
    folder = tmp_path / "adapter"
    save_adapters(model.state_dict(), SPEC, folder, trained=("projector.*",), base="pretrained/x")
    whole = sum(t.numel() * 4 for n, t in model.state_dict().items() if not is_adapter(n))
    assert (folder / "adapter_model.safetensors").stat().st_size < whole / 2
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "pretrained/x"
    other = fresh()
    spec = load_adapters(other, folder)
    assert (spec.rank, spec.alpha) == (4, 8)
    assert torch.equal(answer(other), answer(model))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("preset", ["tiny-internvl2", "tiny-internvl3"])
def test_peft_reads_the_adapters(preset, tmp_path):
    model, _ = trained(preset=preset)
    save_adapters(model.state_dict(), SPEC, tmp_path / "adapter")
    other = peft.PeftModel.from_pretrained(fresh(preset=preset), tmp_path / "adapter")
    torch.testing.assert_close(answer(other), answer(model))


def test_merged_adapters_of_a_qwen2_keep_its_biases(tmp_path):
    model, layers = trained(preset="tiny-internvl3")
    assert sum(name.startswith("language_model") for name in layers) == 2 * 7
    state, plain = merge(model.state_dict(), SPEC), fresh(preset="tiny-internvl3")
    assert state.keys() == plain.state_dict().keys()
    biases = [name for name in state if name.endswith("_proj.bias")]
    assert len(biases) == 2 * 3 and all(torch.equal(state[name], plain.state_dict()[name]) for name in biases)
    plain.load_state_dict(state)
    torch.testing.assert_close(answer(plain), answer(model))


def test_adapters_of_another_model_are_refused(tmp_path):
    model, _ = trained()
    save_adapters(model.state_dict(), SPEC, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="another model"):
        load_adapters(make_model(load_preset("tiny-convllava")), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        load_adapters(fresh(), tmp_path)


def test_a_target_that_is_no_linear_layer_is_named():
    with pytest.raises(ConfigError, match=r"no linear layer: encoder\.\*\.norm1"):
        add_adapters(fresh(), SPEC.model_copy(update={"targets": ("encoder.*.norm1", "*_proj")}), seed=0)


@pytest.mark.parametrize("pattern", ["language_model.lm_head", "*", "language_model.*"])
def test_a_target_that_is_tied_to_the_embedding_is_refused_before_anything_is_trained(recipe, home, tmp_path, pattern):
    """Its adapter used to learn, and the exported model was the start, bit for bit."""
    spec = load_preset("tiny-internvl2").with_language(tied=True)
    save_model(
        build(spec, tokenizer=home / "pretrained/tiny-internvl2", seed=1),
        tmp_path / "tied",
        tokenizer=home / "pretrained/tiny-internvl2",
    )
    lora = {"rank": 4, "alpha": 8, "targets": [pattern, "language_model.*.q_proj"]}
    asked = recipe(f"model.start={tmp_path / 'tied'}", "trainable=[projector.*]", lora=lora)
    with pytest.raises(ConfigError, match=r"lm_head is tied to language_model\.model\.embed_tokens") as error:
        train(asked, tmp_path / "out", quiet=True)
    assert not list((tmp_path / "out").glob("[!.]*")), "nothing was begun"
    fixed = recipe(
        f"model.start={tmp_path / 'tied'}",
        "steps=1",
        lora={**lora, "targets": [error.value.fix.split()[-1]]},
        trainable=[],
    )
    assert (train(fixed, tmp_path / "out", quiet=True) / "config.json").exists(), "the fix works"


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize(
    "preset,layout",
    [("tiny-internvl2", "internvl"), ("tiny-internvl2", "hf"), ("tiny-internvl2", "vlm"), ("tiny-convllava", "llava")],
)
def test_adapters_on_the_start_and_the_merged_model_agree_in_every_layout(recipe, home, tmp_path, preset, layout, tied):
    spec = load_preset(preset).with_language(tied=tied)
    save_model(
        build(spec, tokenizer=home / "pretrained" / preset, seed=1),
        tmp_path / "ours",
        tokenizer=home / "pretrained" / preset,
    )
    start = tmp_path / "ours" if layout == "vlm" else convert(tmp_path / "ours", layout, tmp_path / "start")
    head = [] if tied else ["language_model.lm_head"]
    lora = {"rank": 4, "alpha": 8, "targets": ["language_model.model.layers.*.q_proj", *head]}
    sets = (f"model.start={start}", f"model.preset={preset}", "steps=3", "optimizer.lr=0.01", "strides=null")
    asked = recipe(*sets, "trainable=[projector.*]", lora=lora)
    folder = train(asked, tmp_path / "out", quiet=True)
    again = folder if layout == "vlm" else convert(folder, layout, tmp_path / "again")
    adapted = load_model(start)
    load_adapters(adapted, tmp_path / "out/adapter")
    here = answer(adapted.eval())
    assert (here - answer(load_model(start))).abs().max() > 0.01, "it learned something"
    for merged in (folder, again):
        assert (here - answer(load_model(merged))).abs().max() < 1e-5


def test_only_adapters_and_what_is_trainable_get_gradients(recipe):
    spec = {"rank": 2, "alpha": 4, "targets": ["language_model.*.q_proj"]}
    model = fresh().train()
    counts = prepare(model, recipe(lora=spec, trainable=["projector.*"]))
    assert set(counts) == {"language_model (LoRA)", "projector"}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (is_adapter(name) or name.startswith("projector.")), name
    torch.manual_seed(1)
    ids = torch.randint(0, 300, (1, 24))
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_published_lora_of_v1_2_has_122_880_000_parameters():
    with torch.device("meta"):
        model = make_model(load_preset("internvl-chat-v1-2"))
    assert prepare(model, load_recipe("internvl-chat-v1-2-finetune-lora")) == {"language_model (LoRA)": 122_880_000}


def test_a_run_writes_model_and_adapters_and_continues_from_a_checkpoint(
    vlm, recipe_file, recipe, home, tmp_path, curve
):
    entry = {**recipe().data[0].model_dump(), "max_tiles": 1}
    sets = {
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "targets": ["language_model.*.q_proj", "encoder.*.attn.qkv"]},
        "trainable": [],
        "data": [entry],
        "model.spec": {"vision": {"drop_path": 0.2}},
        "jpeg_quality": [75, 90],
        "batch.packing": "none",
        "batch.grouping": "modality",
        "steps": 4,
        "save_every": 2,
    }
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    command = ("train", "-r", recipe_file, "--run", tmp_path, "--quiet", *words)
    first = vlm(*command)
    assert first.wait(120) == 0, first.said
    out = tmp_path / "train/tiny"
    before, after = (dict(tensors(folder)) for folder in (home / "pretrained/tiny-internvl2", out / "model"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.endswith(("q_proj.weight", "attn.qkv.weight")) for name in changed)
    model = load_model(home / "pretrained/tiny-internvl2")
    spec = load_adapters(model, out / "adapter")
    assert all(torch.equal(t, after[n]) for n, t in merge(model.state_dict(), spec).items())
    whole = curve(out)
    shutil.rmtree(out / "model")
    again = vlm(*command)
    assert again.wait(120) == 0, again.said
    assert curve(out) == whole and len(whole) == 4, "it continues from step 2 to the same bits"


def test_the_export_holds_one_merged_tensor_at_a_time(recipe, tmp_path, monkeypatch):
    """A second model in memory, 9 GB for InternVL2-2B, ended a run that had trained."""
    merge_one, made = loop.merge_one, []

    def watched(parts, spec):
        assert not [old for old in made if old() is not None], "the tensor before is held"
        tensor = merge_one(parts, spec)
        if len(parts) > 1:
            made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(loop, "merge_one", watched)
    lora = {"rank": 2, "alpha": 4, "targets": ["language_model.*.q_proj"]}
    train(recipe("steps=1", f"lora={json.dumps(lora)}", "trainable=[]"), tmp_path, quiet=True)
    assert len(made) == 2, "one of each layer"
