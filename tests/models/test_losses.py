"""What a layout cannot express is refused, or allowed by name and written into the model card."""

import pytest
from typer.testing import CliRunner

from vlm.cli.commands.weights import app
from vlm.core.errors import ConfigError, UnknownName
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import initialized, save_model
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


def test_only_known_losses_can_be_allowed(golden_data, tmp_path):
    with pytest.raises(UnknownName, match=r"unknown loss 'stride'\n  expected: did you mean strides"):
        convert(golden_data / "internvl2-v2pe-tiny", "hf", tmp_path / "x", allow=["stride"])
