"""Loading and saving checkpoints; every fault is named."""

import json
import shutil

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from vlm.core.errors import CheckpointError
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import fingerprint, initialized, load_model, save_model
from vlm.models.checkpoint.locate import find_checkpoint
from vlm.models.checkpoint.safetensors_io import DTYPES, save_tensors
from vlm.models.specs import load_preset


def edit_config(folder, **changes):
    """Change keys of config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    path.unlink()
    save_file(state, path)


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A checkpoint that may be broken."""
    return shutil.copytree(checkpoint("tiny-internvl2"), tmp_path / "broken")


def test_saving_what_was_loaded_gives_the_same_bytes(preset, checkpoint, tmp_path):
    source = checkpoint(preset)
    save_model(load_model(source), tmp_path / "again", tokenizer=source)
    assert sorted(f.name for f in source.iterdir()) == sorted(f.name for f in (tmp_path / "again").iterdir())
    for file in source.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    assert fingerprint(source) == fingerprint(tmp_path / "again")
    assert list(tmp_path.iterdir()) == [tmp_path / "again"]  # nothing temporary stays


@pytest.mark.parametrize("name", ["internvl2-v2pe-tiny", "internvl-chat-v1-2-tiny", "convllava-tiny"])
def test_a_published_checkpoint_saved_in_our_layout_is_the_same_model(name, golden_data, tmp_path):
    published = load_model(golden_data / name)
    save_model(published, tmp_path / "ours")
    ours = load_model(tmp_path / "ours")
    assert ours.spec == published.spec and not ours.training
    state = ours.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in published.state_dict().items())
    assert len(state) == len(published.state_dict())


def test_tied_embeddings_are_stored_once_and_tied_again(tiny, tmp_path):
    save_model(tiny(tied=True), tmp_path / "tied")
    assert "language_model.lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    model = load_model(tmp_path / "tied")
    assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight
    assert not any(p.is_meta for p in model.parameters())


def test_dtype_is_the_one_asked_for(checkpoint):
    model = load_model(checkpoint("tiny-internvl2"), dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_checkpoint_is_found_by_its_name_below_pretrained(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    shutil.copytree(checkpoint("tiny-internvl2"), tmp_path / "pretrained" / "mine")
    assert find_checkpoint("mine") == tmp_path / "pretrained" / "mine"
    assert find_checkpoint("someone/mine") == tmp_path / "pretrained" / "mine"
    with pytest.raises(CheckpointError, match="fix: `vlm list models`"):
        find_checkpoint("yours")
    with pytest.raises(CheckpointError, match=r"fix: vlm download V2PE$"):
        find_checkpoint("pretrained/V2PE-32K")


def test_a_missing_shard_is_named(copy, checkpoint):
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    save_torch_state_dict(state, copy, max_shard_size="200KB")
    names = sorted(f.name for f in copy.glob("*.safetensors"))
    assert len(names) > 2
    whole = load_model(checkpoint("tiny-internvl2")).state_dict()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in load_model(copy).state_dict().items())
    (copy / names[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"broken: missing shards {names[1]}"):
        load_model(copy)


FAULTS = {
    "no config": (lambda c: (c / "config.json").unlink(), r"no checkpoint at .*broken"),
    "config cut off": (lambda c: (c / "config.json").write_text('{"model_type'), r"broken/config\.json is not JSON"),
    "unknown family": (
        lambda c: edit_config(c, model_type="gpt"),
        r"broken/config\.json: model_type 'gpt' is not known\n  expected: one of internvl, .*\n  fix: ",
    ),
    "no family": (lambda c: edit_config(c, model_type=None), r"broken/config\.json: model_type None is not known"),
    "no spec": (lambda c: edit_config(c, spec=None), r"broken/config\.json has no key 'spec'"),
    "no weights": (lambda c: (c / "model.safetensors").unlink(), r"no weights in .*broken\n  expected: .*\n  fix: "),
    "missing tensor": (
        lambda c: edit_tensors(c, lambda s: s.pop("projector.1.weight")),
        r"broken: 1 missing tensors, first projector\.1\.weight\n  expected: .* in model\.safetensors\n  fix: .*--keys",
    ),
    "extra tensor": (
        lambda c: edit_tensors(c, lambda s: s.update(stranger=torch.zeros(1))),
        r"broken/model\.safetensors: 1 unexpected tensors, first stranger\n  expected: .*\n  fix: .*--keys",
    ),
    "wrong shape": (
        lambda c: edit_tensors(c, lambda s: s.update({"projector.1.bias": torch.zeros(3)})),
        r"broken/model\.safetensors: projector\.1\.bias is \[3\] float32\n  expected: \[64\]",
    ),
    "whole numbers": (
        lambda c: edit_tensors(c, lambda s: s.update({"projector.1.bias": s["projector.1.bias"].long()})),
        r"broken/model\.safetensors: projector\.1\.bias is int64\n  expected: float32, .*\n  fix: take the unquantized",
    ),
    "8-bit floats": (
        lambda c: edit_tensors(
            c, lambda s: s.update({"projector.1.bias": s["projector.1.bias"].to(torch.float8_e4m3fn)})
        ),
        r"broken/model\.safetensors: projector\.1\.bias is float8_e4m3fn",
    ),
    "twice": (
        lambda c: save_file(
            {"projector.1.bias": torch.zeros(64)},
            (c / "model.safetensors").rename(c / "a.safetensors").with_name("b.safetensors"),
        ),
        r"broken/b\.safetensors and a\.safetensors both hold projector\.1\.bias",
    ),
    "a shard of three": (
        lambda c: (c / "model.safetensors").rename(c / "model-00002-of-00003.safetensors"),
        r"broken: missing shards model-00001-of-00003\.safetensors, model-00003-of-00003\.safetensors",
    ),
    "empty file": (
        lambda c: (c / "model.safetensors").write_bytes(b""),
        r"broken/model\.safetensors: .*\n  fix: the file is damaged",
    ),
    "truncated": (
        lambda c: (c / "model.safetensors").write_bytes((c / "model.safetensors").read_bytes()[:-100]),
        r"broken/model\.safetensors: .*\n  fix: the file is damaged",
    ),
    "index cut off": (
        lambda c: (c / "model.safetensors.index.json").write_text('{"weight'),
        r"broken/model\.safetensors\.index\.json is not JSON",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_checkpoint_is_named_with_its_fault(fault, copy):
    break_it, message = FAULTS[fault]
    break_it(copy)
    with pytest.raises(CheckpointError, match=message):
        load_model(copy)


def test_the_file_of_a_bad_tensor_is_named_among_many(copy):
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    state["projector.1.bias"] = torch.zeros(3)
    save_torch_state_dict(state, copy, max_shard_size="100KB")
    index = json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"]
    with pytest.raises(CheckpointError, match=f"broken/{index['projector.1.bias']}: projector"):
        load_model(copy)


def test_a_cut_shard_is_named_among_many(copy):
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    save_torch_state_dict(state, copy, max_shard_size="200KB")
    shard = sorted(copy.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=rf"broken/{shard.name}: "):
        load_model(copy)


def test_a_missing_pickle_shard_is_named(copy):
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(state, copy / "pytorch_model-00001-of-00002.bin")
    index = {
        "weight_map": dict.fromkeys(state, "pytorch_model-00001-of-00002.bin")
        | {"x": "pytorch_model-00002-of-00002.bin"}
    }
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"missing shards pytorch_model-00002-of-00002\.bin"):
        load_model(copy)


def test_no_pickle_is_opened_beside_safetensors(copy):
    (copy / "pytorch_model.bin").write_bytes(b"never read")
    load_model(copy)


def test_a_tied_head_that_is_stored_anyway_is_dropped_by_name(tiny, tmp_path):
    save_model(tiny(tied=True), tmp_path / "tied")
    edit_tensors(tmp_path / "tied", lambda s: s.update({"language_model.lm_head.weight": torch.zeros(320, 64)}))
    model = load_model(tmp_path / "tied")
    assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight
    assert model.language_model.lm_head.weight.abs().sum() > 0


class Command:
    """A pickle that would run a command."""

    def __reduce__(self):
        import os

        return os.system, ("touch pwned",)


@pytest.mark.parametrize("content", ["command", "truncated"])
def test_pickles_hold_tensors_or_are_refused(content, copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    file = copy / "pytorch_model.bin"
    torch.save(state, file)
    assert torch.equal(load_model(copy).projector[1].weight, state["projector.1.weight"])
    if content == "command":
        torch.save({**state, "a": Command()}, file)
    else:
        file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"broken/pytorch_model\.bin"):
        load_model(copy)
    assert not (tmp_path / "pwned").exists()


def test_a_published_config_without_a_key_is_named(golden_data, tmp_path):
    folder = shutil.copytree(golden_data / "internvl2-v2pe-tiny", tmp_path / "broken")
    edit_config(folder, downsample_ratio=None)
    with pytest.raises(CheckpointError, match=r"broken/config\.json has no key 'downsample_ratio'"):
        read_layout(folder)


def test_a_layer_selection_that_we_do_not_have_is_refused(golden_data, tmp_path):
    folder = shutil.copytree(golden_data / "convllava-tiny", tmp_path / "broken")
    edit_config(folder, mm_vision_select_layer=-2)
    with pytest.raises(CheckpointError, match="broken: mm_vision_select_layer -2"):
        read_layout(folder)


def test_fresh_weights_depend_on_the_seed_alone():
    spec = load_preset("tiny-internvl2")
    before = torch.random.get_rng_state()
    first, again, other = (initialized(spec, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    assert not torch.equal(first["projector.1.weight"], other["projector.1.weight"])


def test_the_fingerprint_holds_the_vision_tower(golden_data, tmp_path):
    folder = shutil.copytree(golden_data / "convllava-tiny", tmp_path / "convllava")
    before = fingerprint(folder)
    edit_tensors(folder / "vision_tower", lambda s: s["embeddings.layernorm.bias"][:1].add_(1e-3))
    assert fingerprint(folder) != before


def test_the_fingerprint_changes_with_one_value(copy):
    before = fingerprint(copy)
    edit_tensors(copy, lambda s: s["projector.1.bias"][:1].add_(1e-3))
    assert fingerprint(copy) != before


def test_files_are_the_bytes_that_safetensors_writes(tmp_path):
    draw = torch.Generator().manual_seed(0)
    tensors = {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "turned": torch.rand(3, 5, generator=draw).T}
    for i, (kind, dtype) in enumerate(DTYPES.items()):
        for name in ("z", "a.gewölbt"):
            tensors[f"{name}{kind}"] = torch.randint(0, 2, (3, 4 + i), generator=draw).to(torch.float32).to(dtype)
    save_tensors(tensors, tmp_path / "ours")
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
