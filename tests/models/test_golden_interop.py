"""Published checkpoints of all families there and back: equal spec, equal bits, also when transformers saved them."""

from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import load_model
from vlm.models.checkpoint.losses import losses, opens_in
from vlm.models.vlm import make_model

THROUGH = {
    "internvl2-v2pe-tiny": ("internvl", "hf"),
    "internvl-chat-v1-2-tiny": ("internvl",),
    "convllava-tiny": ("llava",),
    "internvl3-tiny": ("internvl", "hf"),
    "internvl3-tiny-hf": ("internvl", "hf"),
}
"""Checkpoint -> the published layouts that hold its family."""


def assert_same(folder: Path, other: Path) -> None:
    assert read_layout(folder).spec == read_layout(other).spec
    want, got = load_model(folder, dtype="auto").state_dict(), load_model(other, dtype="auto").state_dict()
    assert want.keys() == got.keys()
    assert all(t.dtype == got[k].dtype and torch.equal(t, got[k]) for k, t in want.items())


@pytest.mark.parametrize(("name", "layout"), [(name, x) for name, layouts in THROUGH.items() for x in layouts])
def test_a_published_checkpoint_comes_back(name, layout, golden_data, tmp_path):
    ours = convert(golden_data / name, "vlm", tmp_path / "ours")
    allow = losses(read_layout(ours).spec, layout)
    theirs = convert(ours, layout, tmp_path / "theirs", allow=allow)
    saved = theirs
    if layout == "hf":
        saved = tmp_path / "saved"
        AutoModelForImageTextToText.from_pretrained(theirs, dtype="auto").save_pretrained(saved)
        AutoImageProcessor.from_pretrained(theirs, backend="pil").save_pretrained(saved)
        assert not (saved / "processor_config.json").exists() or not (saved / "preprocessor_config.json").exists()
    assert_same(ours, convert(saved, "vlm", tmp_path / "back"))
    assert_same(golden_data / name, tmp_path / "back")


@pytest.mark.parametrize("name", THROUGH)
def test_inspect_says_which_layouts_hold_a_published_checkpoint(name, golden_data):
    spec = read_layout(golden_data / name).spec
    with torch.device("meta"):
        tokens = make_model(spec).tokens_per_tile
    open_in = {layout for layout, text in opens_in(spec, tokens).items() if not text.startswith("no: ")}
    assert open_in == {*THROUGH[name], "vlm"}
