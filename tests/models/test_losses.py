"""What a layout cannot express is refused, or allowed by name and written into the model card."""

import json
import os

import pytest
from typer.testing import CliRunner

from vlm.cli.commands.weights import app
from vlm.core.errors import CheckpointError, ConfigError, UnknownName
from vlm.core.sample.chat import get_template
from vlm.core.sample.tokenizer import load_tokenizer
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.formats import FORMATS
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import initialized, save_model
from vlm.models.checkpoint.losses import opens_in
from vlm.models.specs import load_preset

LOST = {
    "strides to hf": ("tiny-internvl2", {"strides": 64.0}, "hf", "strides", "V2PE strides (64 positions a tile)"),
    "strides to llava": ("tiny-convllava", {"strides": 2.0}, "llava", "strides", "V2PE strides (2 positions a tile)"),
    "no thumbnail to hf": ("tiny-internvl2", {"rule": {"thumbnail": False}}, "hf", "thumbnail", "without a thumbnail"),
    "grids to hf": ("tiny-internvl2", {"rule": {"min_tiles": 5, "max_tiles": 12}}, "hf", "grids", "of 5 to 12 tiles"),
    "fast to internvl": ("tiny-internvl2", {"rule": {"resize": "fast"}}, "internvl", "resize", "the fast resize"),
}


@pytest.mark.parametrize("case", LOST)
def test_a_setting_without_a_key_is_refused_or_written_into_the_model_card(case, tmp_path):
    preset, changes, layout, name, text = LOST[case]
    spec, changes = load_preset(preset), dict(changes)
    if rule := changes.pop("rule", None):
        changes["image_rule"] = spec.image_rule.model_copy(update=rule)
    spec = spec.model_copy(update=changes)
    save_model(initialized(spec, 0), tmp_path / "ours")
    run = CliRunner().invoke
    words = ["convert", str(tmp_path / "ours"), "--to", layout, "-o", str(tmp_path / "theirs")]
    refused = run(app, words).exception
    assert isinstance(refused, ConfigError)
    assert text in refused.found and f"--allow {name}" in refused.fix and not (tmp_path / "theirs").exists()
    assert run(app, [*words, "--allow", name]).exit_code == 0
    assert text in (tmp_path / "theirs" / "README.md").read_text()
    assert read_layout(tmp_path / "theirs").spec == spec
    assert not (convert(tmp_path / "ours", "vlm", tmp_path / "again") / "README.md").exists()


@pytest.mark.parametrize("system", ["convllava", "v2pe", "internvl-chat-v1-2"])
def test_each_model_of_the_quickstart_opens_in_a_published_layout(system):
    spec = load_preset(f"quickstart-{system}")
    found = opens_in(spec, spec.tokens_per_tile)
    published = {name: reader for name, reader in found.items() if name != "vlm"}
    whole = [name for name, reader in published.items() if not reader.startswith("no:") and "loses" not in reader]
    assert whole == {"convllava": ["llava"], "v2pe": ["internvl", "hf"], "internvl-chat-v1-2": ["internvl"]}[system]


def test_only_known_losses_can_be_allowed(golden_data, tmp_path):
    with pytest.raises(UnknownName, match=r"unknown loss 'stride'\n  expected: did you mean strides"):
        convert(golden_data / "internvl2-v2pe-tiny", "hf", tmp_path / "x", allow=["stride"])


def test_the_code_of_a_release_is_copied_and_never_run(golden_data, tmp_path):
    release = tmp_path / "release"
    release.mkdir()
    classes = {"AutoConfig": "configuration_x.Config", "AutoModel": "modeling_x.Model"}
    inner = {"auto_map": {"AutoConfig": "configuration_x.Inner"}}
    (release / "config.json").write_text(json.dumps({"auto_map": classes, "llm_config": inner}))
    for name in ("configuration_x", "modeling_x", "helper"):
        (release / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    source = golden_data / "internvl2-v2pe-tiny"
    words = ["convert", str(source), "--to", "internvl", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--remote-code", str(release)])
    assert done.exit_code == 0 and "--remote-code" not in done.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["auto_map"] == classes and config["llm_config"]["auto_map"] == inner["auto_map"]
    assert sorted(f.stem for f in (tmp_path / "out").glob("*.py")) == ["configuration_x", "helper", "modeling_x"]
    assert read_layout(tmp_path / "out").spec == read_layout(source).spec and not (tmp_path / "ran").exists()
    (release / "modeling_x.py").unlink()
    with pytest.raises(CheckpointError, match=r"auto_map of config\.json names 'modeling_x\.Model'"):
        convert(source, "internvl", tmp_path / "again", remote_code=release)
    assert not (tmp_path / "again").exists()
    with pytest.raises(ConfigError, match="remote code for the hf layout"):
        convert(source, "hf", tmp_path / "again", remote_code=release)


def test_an_internvl_folder_says_which_code_others_need(golden_data, tmp_path):
    words = ["convert", str(golden_data / "internvl2-v2pe-tiny"), "--to", "internvl", "-o", str(tmp_path / "out")]
    assert "modeling_*.py" in CliRunner().invoke(app, words).stderr


@pytest.mark.parametrize("system", [None, "", "Be brief."])
def test_an_internvl_folder_always_says_the_system_text(system, tmp_path):
    """Published loaders have texts of their own for a template: a missing key is not the same prompt."""
    spec = load_preset("tiny-internvl2").model_copy(update={"system": system})
    save_model(initialized(spec, 0), tmp_path / "ours")
    out = convert(tmp_path / "ours", "internvl", tmp_path / "theirs")
    said = json.loads((out / "config.json").read_text())["system_message"]
    assert said == (get_template(spec.template).system if system is None else system)
    assert read_layout(out).spec.system == system


def test_an_internvl_folder_of_a_qwen2_names_a_beginning_of_sequence(golden_data, tmp_path):
    """Its tokenizer has none. transformers 4.37, which the release pins, generates nothing from embeddings without."""
    tokenizer = golden_data / "tokenizers" / "qwen2"
    spec = load_preset("tiny-internvl3")
    save_model(build(spec, tokenizer=tokenizer, seed=0), tmp_path / "ours", tokenizer=tokenizer)
    out = convert(tmp_path / "ours", "internvl", tmp_path / "theirs")
    released = json.loads((golden_data / "internvl3-tiny" / "config.json").read_text())["llm_config"]
    written = json.loads((out / "config.json").read_text())["llm_config"]
    assert written["bos_token_id"] == released["bos_token_id"] == load_tokenizer(tokenizer).pad_id
    assert load_tokenizer(tokenizer).bos_id is None


def test_a_folder_is_as_readable_as_any_other_file(golden_data, tmp_path):
    """The safetensors library makes its files private, whatever the umask."""
    before = os.umask(0o027)
    try:
        out = convert(golden_data / "internvl2-v2pe-tiny", "vlm", tmp_path / "out")
    finally:
        os.umask(before)
    assert {oct(f.stat().st_mode & 0o777) for f in out.iterdir()} == {"0o640"}


@pytest.mark.parametrize(
    ("preset", "changes", "can", "cannot"),
    [
        ("tiny-internvl2", {}, {"internvl", "hf", "vlm"}, {"llava": "encoder"}),
        ("tiny-internvl2", {"strides": 64.0}, {"internvl", "hf", "vlm"}, {"llava": "encoder"}),
        ("tiny-internvl3", {}, {"internvl", "hf", "vlm"}, {"llava": ""}),
        ("tiny-internvl-chat-v1-2", {}, {"internvl", "vlm"}, {"hf": "pixel unshuffle v1", "llava": "encoder"}),
        ("tiny-convllava", {}, {"llava", "vlm"}, {"hf": "encoder", "internvl": "encoder"}),
        ("quickstart-v2pe", {}, {"internvl", "hf", "vlm"}, {"llava": "encoder"}),
        ("quickstart-internvl-chat-v1-2", {}, {"internvl", "vlm"}, {"hf": "pixel unshuffle v1"}),
        ("smol-v2pe", {}, {"vlm"}, {"internvl": "encoder", "hf": "encoder", "llava": "encoder"}),
    ],
)
def test_what_opens_a_model_is_said_for_each_layout(preset, changes, can, cannot):
    spec = load_preset(preset).model_copy(update=changes)
    found = opens_in(spec, 16)
    assert set(found) == set(FORMATS) and can <= {name for name, text in found.items() if not text.startswith("no: ")}
    for name, reason in cannot.items():
        assert found[name].startswith("no: ") and reason in found[name]
    assert ("V2PE code" in found["internvl"]) == ("internvl" in can and spec.strides is not None)
    assert ("--allow strides" in found["hf"]) == (found["hf"][:3] != "no:" and spec.strides is not None)
