"""Every layout into every other that can hold it, bit for bit; both copies of ConvLLaVA's vision weights."""

import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vlm.cli.commands.weights import app
from vlm.core.errors import CheckpointError, ConfigError, UnknownName
from vlm.models.checkpoint import safetensors_io as stored
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import initialized, load_model, save_model
from vlm.models.checkpoint.reader import CheckpointReader
from vlm.models.specs import ConvNextSpec, ExtraStage, MlpSpec, RopeScaling, TimmSpec, load_preset

COPY = "model.vision_tower.vision_tower."


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder and its towers, by folder and key."""
    files = [f for f in sorted(folder.rglob("*.safetensors")) if "cases" not in f.parts]
    return {f"{f.parent.relative_to(folder)}/{k}": t for f in files for k, t in load_file(f).items()}


def assert_same_tensors(a: Path, b: Path) -> None:
    one, other = stored_tensors(a), stored_tensors(b)
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype and torch.equal(tensor, other[key]), key


def assert_same_files(a: Path, b: Path) -> None:
    names = sorted(str(f.relative_to(a)) for f in a.rglob("*") if f.is_file())
    assert names == sorted(str(f.relative_to(b)) for f in b.rglob("*") if f.is_file())
    for name in names:
        one, other = ((folder / name).read_bytes().replace(bytes(folder), b"OUT") for folder in (a, b))
        assert one == other, name  # the path of a vision tower is that of its own folder


def chain(path: Path, folder: Path, *layouts: str, **kwargs) -> Path:
    for i, layout in enumerate(layouts):
        path = convert(path, layout, folder / f"{i}-{layout}", **kwargs)
    return path


@pytest.mark.parametrize("size", ["5GB", "100KB"])
@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        ("internvl2-v2pe-tiny", ["vlm", "internvl"]),
        ("internvl2-v2pe-tiny", ["hf", "internvl"]),
        ("internvl2-v2pe-tiny", ["hf", "vlm", "hf", "vlm", "internvl"]),
        ("internvl-chat-v1-2-tiny", ["vlm", "internvl"]),
        ("convllava-tiny", ["vlm", "llava"]),
    ],
)
def test_a_published_checkpoint_comes_back_bit_for_bit(name, layouts, size, golden_data, tmp_path):
    back = chain(golden_data / name, tmp_path, *layouts, max_shard_size=size)
    assert_same_tensors(golden_data / name, back)
    assert read_layout(back).spec == read_layout(golden_data / name).spec


def spec_of(layout: str, width: int, heads: int, kv_heads: int):
    preset = {"internvl": "tiny-internvl2", "hf": "tiny-internvl2", "llava": "tiny-convllava"}[layout]
    return load_preset(preset).with_language(width=width, heads=heads, kv_heads=kv_heads, depth=1)


# width, heads, key-value heads; what else differs from the preset
MODELS = [
    ((96, 6, 3), {}),
    ((64, 8, 1), {"strides": 16.0, "system": "Be brief."}),
    ((40, 2, 2), {"strides": 0.5, "template": "Hermes-2-2024-07"}),
]


@pytest.mark.parametrize(("shape", "changes"), MODELS)
@pytest.mark.parametrize("layout", ["internvl", "hf", "llava"])
def test_our_models_survive_every_layout_that_holds_them(layout, shape, changes, tmp_path):
    """ours -> theirs -> ours is the same model; theirs -> ours -> theirs the same bytes; dtypes stay mixed."""
    spec = spec_of(layout, *shape).model_copy(update=changes)
    model = initialized(spec, 5)
    model.encoder.bfloat16()
    model.projector.half()
    save_model(model, tmp_path / "ours")
    allow = ["strides"] if spec.strides and layout != "internvl" else []
    theirs = convert(tmp_path / "ours", layout, tmp_path / "theirs", allow=allow)
    ours = convert(theirs, "vlm", tmp_path / "back")
    assert read_layout(ours).spec == read_layout(theirs).spec == spec
    assert_same_files(tmp_path / "ours", ours)
    (theirs / "README.md").unlink(missing_ok=True)  # its title is the name of the source
    for name, source in (("again", ours), ("resaved", theirs)):
        again = convert(source, layout, tmp_path / name, allow=allow)
        assert (again / "README.md").exists() == bool(allow)
        (again / "README.md").unlink(missing_ok=True)
        assert_same_files(theirs, again)


def test_language_settings_and_a_linear_projector_survive(tmp_path):
    spec = load_preset("tiny-convllava").with_language(tied=True, rope_scaling=RopeScaling(kind="dynamic", factor=2.0))
    spec = spec.model_copy(update={"projector": MlpSpec(depth=1), "strides": 8.0})
    save_model(initialized(spec, 5), tmp_path / "ours")
    theirs = convert(tmp_path / "ours", "llava", tmp_path / "llava", allow=["strides"])
    assert "model.mm_projector.weight" in load_file(theirs / "model.safetensors")
    assert_same_files(tmp_path / "ours", convert(theirs, "vlm", tmp_path / "back"))


def test_a_published_config_says_the_strides_in_both_ways(tmp_path):
    spec = load_preset("tiny-internvl2").model_copy(update={"strides": 64.0})
    save_model(initialized(spec, 5), tmp_path / "ours")
    path = convert(tmp_path / "ours", "internvl", tmp_path / "theirs") / "config.json"
    config = json.loads(path.read_text())
    assert (config["rope_pos_id_version"], config["rope_pos_id_stride"]) == ("v2pe_fix", 64)
    assert config["llm_config"]["rope_pos_id_version"] == "v2pe_fix"
    assert isinstance(config["rope_pos_id_stride"], int)
    assert config["llm_config"]["rope_scaling"]["type"] in ("linear", "dynamic")  # "v2pe" cannot be read again
    assert config["vlm"]["strides"] == 64.0
    path.write_text(json.dumps({**config, "rope_pos_id_stride": 16}))
    with pytest.raises(CheckpointError, match=r"vlm\.strides is 64\.0 but the published keys say 16"):
        read_layout(path.parent)


def test_the_published_loader_finds_the_tower_from_any_working_directory(golden_data, tmp_path, monkeypatch):
    """It hands `mm_vision_tower` to transformers as it is; ours finds the tower wherever the folder went."""
    from transformers import ConvNextConfig

    made = convert(golden_data / "convllava-tiny", "llava", tmp_path / "made")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    named = json.loads((made / "config.json").read_text())["mm_vision_tower"]
    assert ConvNextConfig.from_pretrained(named).num_stages == 5
    moved = made.rename(tmp_path / "moved")
    assert read_layout(moved).spec == read_layout(golden_data / "convllava-tiny").spec
    with pytest.raises(ConfigError, match="'siglip' in it for another kind"):
        convert(golden_data / "convllava-tiny", "llava", tmp_path / "my-SigLIP" / "x")
    assert not (tmp_path / "my-SigLIP").exists()


def test_a_tower_has_the_files_that_its_published_loader_reads(golden_data, tmp_path):
    """Name by name what the published tower's config and processor hold, but for library defaults."""
    before, after = golden_data / "convllava-tiny", chain(golden_data / "convllava-tiny", tmp_path, "llava")
    for name in ("config.json", "vision_tower/config.json", "vision_tower/preprocessor_config.json"):
        want, got = (json.loads((folder / name).read_text()) for folder in (before, after))
        differ = {k for k in want if k in got and want[k] != got[k] and k != "mm_vision_tower"}
        assert not differ and len(got.keys() & want.keys()) > 10
    from transformers import AutoImageProcessor, ConvNextConfig, ConvNextModel

    config = ConvNextConfig.from_pretrained(after / "vision_tower")
    tower, info = ConvNextModel.from_pretrained(after / "vision_tower", config=config, output_loading_info=True)
    assert not info["unexpected_keys"] and set(info["missing_keys"]) == {"layernorm.weight", "layernorm.bias"}
    assert AutoImageProcessor.from_pretrained(after / "vision_tower").crop_size["height"] == 768
    pixels = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        want = tower.encoder(tower.embeddings(pixels), output_hidden_states=True).hidden_states[-1]
        got = load_model(after).encoder(pixels).permute(0, 3, 1, 2)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["internvl2-v2pe-tiny", "internvl-chat-v1-2-tiny"])
def test_an_internvl_config_agrees_with_the_published_one(name, golden_data, tmp_path):
    after = convert(golden_data / name, "internvl", tmp_path / "again")
    want, got = (json.loads((folder / "config.json").read_text()) for folder in (golden_data / name, after))
    for theirs, ours in ((want, got), *((want[k], got[k]) for k in ("llm_config", "vision_config"))):
        differ = {k for k in theirs.keys() & ours.keys() if theirs[k] != ours[k]}
        assert differ <= {"llm_config", "vision_config", "use_flash_attn"}, differ


def test_tokenizer_and_special_ids_travel_along(checkpoint, tmp_path):
    source = checkpoint("tiny-internvl-chat-v1-2")
    out = convert(source, "internvl", tmp_path / "theirs")
    assert (out / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    language = json.loads((out / "config.json").read_text())["llm_config"]
    assert {k: language[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")} == {
        "bos_token_id": 1,
        "eos_token_id": 7,
        "pad_token_id": 0,
    }


def test_no_more_than_one_stored_tensor_is_in_memory(golden_data, tmp_path, monkeypatch):
    read, given, reports = stored.WeightReader.read, [], []

    def watched(self, name):
        assert not [old for old in given if old() is not None], f"{name} is read while another is held"
        tensor = read(self, name)
        given.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(stored.WeightReader, "read", watched)
    source, target = golden_data / "internvl2-v2pe-tiny", tmp_path / "hf"
    out = convert(source, "hf", target, max_shard_size="100KB", report=lambda *now: reports.append(now))
    files = sorted(out.glob("*.safetensors"))
    assert len(given) > 50 and len(files) > 5
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == reports[-1][0] == reports[-1][1]
    assert sorted(set(index["weight_map"].values())) == [f.name for f in files]
    assert reports == sorted(reports)


def test_an_interrupted_conversion_leaves_nothing(golden_data, tmp_path, monkeypatch):
    read, calls = CheckpointReader.read, []

    def failing(self, name):
        calls.append(name)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr(CheckpointReader, "read", failing)
    with pytest.raises(KeyboardInterrupt):
        convert(golden_data / "internvl2-v2pe-tiny", "vlm", tmp_path / "out", max_shard_size="50KB")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_never_overwritten(checkpoint, tmp_path):
    source = shutil.copytree(checkpoint("tiny-internvl2"), tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"mine exists"):
        convert(source, "internvl", source)
    assert_same_files(checkpoint("tiny-internvl2"), source)


LOW = {"vision": TimmSpec(name="tf_efficientnet_lite0", extra_stage=ExtraStage(width=8, depth=1))}
NO_HOME = {
    "timm to llava": ("tiny-convllava", LOW, "llava", "the encoder timm has no place in the llava layout"),
    "timm to internvl": ("tiny-internvl2", LOW, "internvl", "the encoder timm"),
    "ConvNeXt to hf": ("tiny-convllava", {}, "hf", "the encoder convnext"),
    "InternViT to llava": ("tiny-internvl2", {}, "llava", "the encoder intern_vit"),
    "MLP to internvl": ("tiny-internvl2", {"projector": MlpSpec()}, "internvl", "the projector mlp"),
    "v1 to hf": ("tiny-internvl-chat-v1-2", {}, "hf", "pixel unshuffle v1"),
    "padding to internvl": ("tiny-internvl2", {"rule": {"kind": "pad"}}, "internvl", "the image rule pad"),
    "other statistics": ("tiny-internvl2", {"rule": {"mean": (0.5, 0.5, 0.5)}}, "internvl", "the pixel mean"),
    "tiles to llava": ("tiny-convllava", {"rule": {"kind": "tiles"}}, "llava", "the image rule tiles"),
}


@pytest.mark.parametrize("case", NO_HOME)
def test_a_part_without_a_place_in_the_layout_is_refused(case, tmp_path):
    preset, changes, layout, message = NO_HOME[case]
    spec = load_preset(preset)
    changes = dict(changes)
    if rule := changes.pop("rule", None):
        changes["image_rule"] = spec.image_rule.model_copy(update=rule)
    save_model(initialized(spec.model_copy(update=changes), 0), tmp_path / "ours")
    with pytest.raises(ConfigError, match=message):
        convert(tmp_path / "ours", layout, tmp_path / "theirs")
    assert [f.name for f in tmp_path.iterdir()] == ["ours"]
    assert_same_files(tmp_path / "ours", convert(tmp_path / "ours", "vlm", tmp_path / "again"))


def test_an_unknown_layout_or_size_is_refused(golden_data, tmp_path):
    with pytest.raises(UnknownName, match=r"unknown layout 'internvll'\n  expected: did you mean internvl"):
        convert(golden_data / "convllava-tiny", "internvll", tmp_path / "x")
    with pytest.raises(ConfigError, match="max shard size 'lots'"):
        convert(golden_data / "convllava-tiny", "vlm", tmp_path / "x", max_shard_size="lots")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def with_copy(golden_data, tmp_path):
    """`with_copy(change)`: ConvLLaVA as it is released: the tower's tensors a second time in the checkpoint."""

    def make(change=lambda copy: None, name="ConvLLaVA-1"):
        folder = shutil.copytree(golden_data / "convllava-tiny", tmp_path / name, ignore=lambda *_: ["cases"])
        copy = {COPY + k: v for k, v in load_file(folder / "vision_tower" / "model.safetensors").items()}
        change(copy)
        save_file({**load_file(folder / "model.safetensors"), **copy}, folder / "model.safetensors")
        return folder

    return make


def edit(folder: Path, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


STEM = "embeddings.layernorm.bias"


def test_equal_copies_are_accounted_for_and_one_is_read(with_copy, golden_data):
    folder = with_copy(lambda copy: copy.update({COPY + "layernorm.weight": torch.ones(48)}))
    source = CheckpointReader(read_layout(folder), folder)
    source.check()
    assert source.check_copy() == len(source.accounts.copies) == 110
    assert source.accounts.dropped == [COPY + "layernorm.weight"]
    want, got = (load_model(f).state_dict() for f in (golden_data / "convllava-tiny", folder))
    assert all(torch.equal(t, got[k]) for k, t in want.items())


def test_different_copies_are_an_error_and_one_can_be_chosen(with_copy, tmp_path):
    folder = with_copy(lambda copy: copy[COPY + STEM][3:4].add_(0.5))
    with pytest.raises(
        CheckpointError, match=r"(?s)encoder\.stem\.1\.bias: differs by up to 0\.5 between .*the published loader reads"
    ) as error:
        load_model(folder)
    assert 'vision="checkpoint"' in str(error.value) and "--vision tower" in str(error.value)
    tower, copy = (load_model(folder, vision=v).encoder.stem[1].bias for v in ("tower", "checkpoint"))
    assert torch.isclose(copy[3] - tower[3], torch.tensor(0.5))
    clean = convert(folder, "llava", tmp_path / "clean", vision="checkpoint")
    assert torch.equal(load_model(clean).encoder.stem[1].bias, copy)


def test_copies_with_other_keys_or_shapes_are_an_error(with_copy):
    folder = with_copy(lambda copy: copy.pop(COPY + STEM))
    with pytest.raises(CheckpointError, match=r"encoder\.stem\.1\.bias is only in .*vision_tower"):
        load_model(folder)
    folder = with_copy(lambda copy: copy.update({COPY + STEM: torch.zeros(3)}), name="ConvLLaVA-2")
    with pytest.raises(CheckpointError, match=r"encoder\.stem\.1\.bias: \[8\] in .*, \[3\] in "):
        load_model(folder)


def test_without_the_towers_weights_the_copy_is_read(with_copy, golden_data):
    folder = with_copy()
    (folder / "vision_tower" / "model.safetensors").unlink()
    assert torch.equal(
        load_model(folder).encoder.stem[1].bias, load_model(golden_data / "convllava-tiny").encoder.stem[1].bias
    )
    with pytest.raises(CheckpointError, match="no vision weights in the tower"):
        load_model(folder, vision="tower")


def test_without_the_towers_folder_the_copy_tells_its_shape(with_copy, golden_data):
    folder = with_copy()
    shutil.rmtree(folder / "vision_tower")
    with pytest.raises(CheckpointError, match=r"none at .*\n.*\n  fix: vlm download vision_tower"):
        load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    config["mm_vision_tower"] = "ConvLLaVA/ConvLLaVA-ConvNeXt-768"
    (folder / "config.json").write_text(json.dumps(config))
    spec = load_model(folder).spec
    assert spec == read_layout(golden_data / "convllava-tiny").spec
    assert isinstance(spec.vision, ConvNextSpec) and spec.image_rule.size == 768


def test_a_tower_is_found_where_the_checkpoint_was_moved_to(golden_data, tmp_path):
    """After training the config names the folder of that machine."""
    folder = shutil.copytree(golden_data / "convllava-tiny", tmp_path / "moved", ignore=lambda *_: ["cases"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "/gone/out/vision_tower"}))
    assert read_layout(folder).towers[0][0] == folder / "vision_tower"
    (folder / "vision_tower").rename(tmp_path / "vision_tower")
    assert read_layout(folder).towers[0][0] == tmp_path / "vision_tower"


def test_a_tower_in_timms_dialect_loads(golden_data, tmp_path):
    folder = shutil.copytree(golden_data / "convllava-tiny", tmp_path / "timm", ignore=lambda *_: ["cases"])
    want = load_model(folder)
    state = {k: v.clone() for k, v in want.encoder.state_dict().items()}
    state |= {"head.norm.weight": torch.ones(48), "head.fc.bias": torch.zeros(5)}
    save_file(state, folder / "vision_tower" / "model.safetensors")
    got = load_model(folder).encoder.state_dict()
    assert all(torch.equal(t, got[k]) for k, t in want.encoder.state_dict().items())
    assert CheckpointReader(read_layout(folder), folder).accounts.dropped == ["head.fc.bias", "head.norm.weight"]
    edit(folder / "vision_tower", lambda s: s.update({"embeddings.layernorm.bias": torch.zeros(8)}))
    with pytest.raises(CheckpointError, match=r"both .* stand for encoder\.stem\.1\.bias"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
        ({"mm_projector_type": "identity"}, "mm_projector_type 'identity'"),
    ],
)
def test_a_llava_setting_that_we_lack_is_refused(changes, message, golden_data, tmp_path):
    folder = shutil.copytree(golden_data / "convllava-tiny", tmp_path / "x", ignore=lambda *_: ["cases"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=message):
        read_layout(folder)


def test_the_commands_convert_and_account_for_every_key(with_copy, tmp_path):
    folder = with_copy()
    run = CliRunner().invoke
    done = run(app, ["convert", str(folder), "--to", "vlm", "-o", str(tmp_path / "ours"), "--max-shard-size", "200KB"])
    assert done.exit_code == 0 and done.stdout.strip() == str(tmp_path / "ours")
    shown = json.loads(run(app, ["inspect", str(folder), "--keys", "--json"]).stdout)["keys"]
    assert shown == {
        "used": 135,
        "dropped": [],
        "missing": [],
        "unknown": [],
        "vision_copy": "110 tensors, equal to the tower's",
    }
    edit(folder, lambda s: (s.pop("model.mm_projector.0.bias"), s.update(stranger=torch.zeros(1))))
    done = run(app, ["inspect", str(folder), "--keys", "--json"])
    shown = json.loads(done.stdout)["keys"]
    assert (shown["missing"], shown["unknown"]) == (["projector.0.bias"], ["stranger"])
    assert done.exit_code == 5
