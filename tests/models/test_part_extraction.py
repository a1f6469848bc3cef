"""Parts taken out of a checkpoint, swapped, and put together again; positions resized; blocks left out by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.core.errors import CheckpointError, ConfigError, UnknownName
from vlm.models.checkpoint.assemble import assemble
from vlm.models.checkpoint.load import load_model, save_model
from vlm.models.checkpoint.parts.extract import extract
from vlm.models.specs import load_preset

PARTS = ("encoder", "projector", "language")


@pytest.fixture
def parts(preset, checkpoint, tmp_path):
    return {part: extract(checkpoint(preset), part, tmp_path / part) for part in PARTS}


def test_extracted_parts_make_the_same_model_again(preset, checkpoint, parts, tmp_path):
    whole = load_model(checkpoint(preset))
    again = assemble(whole.spec, tokenizer=checkpoint(preset), **parts)
    assert again.fresh == [] and again.left_out == []
    again.write(tmp_path / "again")
    state = load_model(tmp_path / "again").state_dict()
    assert state.keys() == whole.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.state_dict().items())


def test_an_extracted_language_model_opens_in_transformers(preset, checkpoint, parts):
    from transformers import AutoModelForCausalLM

    theirs, info = AutoModelForCausalLM.from_pretrained(
        parts["language"], dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    model, ids = load_model(checkpoint(preset)), torch.tensor([[5, 7, 11, 13]])
    ours = model(ids, position_ids=torch.arange(4)[None]).logits
    assert torch.allclose(theirs(ids).logits, ours, atol=1e-4)
    assert any((parts["language"] / name).exists() for name in ("tokenizer.json", "tokenizer.model"))


def test_parts_have_the_names_of_the_published_ones(parts, preset):
    encoder, projector = (list(load_file(parts[part] / "model.safetensors")) for part in PARTS[:2])
    config = json.loads((parts["encoder"] / "config.json").read_text())
    if preset == "tiny-convllava":
        assert "embeddings.patch_embeddings.weight" in encoder and config["model_type"] == "convnext"
        assert sorted(projector)[0] == "mm_projector.0.bias"
    else:
        assert "embeddings.class_embedding" in encoder and config["model_type"] == "intern_vit_6b"
        assert sorted(projector)[0] == "0.bias"


def test_a_part_that_is_none_is_named(checkpoint, tmp_path):
    with pytest.raises(UnknownName, match=r"(?s)part.*vision.*encoder"):
        extract(checkpoint("tiny-internvl2"), "vision", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_gives_no_part(broken, tmp_path):
    state = load_file(broken / "model.safetensors")
    del state["projector.0.weight"]
    save_file(state, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"projector\.0\.weight"):
        extract(broken, "encoder", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_timm_encoder_has_no_published_names(tmp_path, golden_data):
    from vlm.models.checkpoint.assemble import build

    spec = load_preset("tiny-convllava").model_dump()
    vision = {"kind": "timm", "name": "test_convnext", "extra_stage": {"width": 48, "depth": 1}}
    spec = type(load_preset("tiny-convllava")).model_validate({**spec, "vision": vision})
    tokenizer = golden_data / "tokenizers" / "llama"
    save_model(build(spec, tokenizer=tokenizer), tmp_path / "timm", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"timm encoder"):
        extract(tmp_path / "timm", "encoder", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert extract(tmp_path / "timm", "projector", tmp_path / "out").is_dir()


def test_a_swapped_language_model_keeps_encoder_and_projector(tiny, checkpoint, tmp_path):
    old = load_model(checkpoint("tiny-internvl2"))
    other = tiny("tiny-internvl2", depth=3)
    save_model(other, tmp_path / "other", tokenizer=checkpoint("tiny-internvl2"))
    language = extract(tmp_path / "other", "language", tmp_path / "language")
    spec = old.spec.with_language(depth=3)
    made = assemble(spec, tokenizer=language, base=checkpoint("tiny-internvl2"), language=language)
    assert made.fresh == []
    made.write(tmp_path / "swapped")
    state = load_model(tmp_path / "swapped").state_dict()
    for name, tensor in state.items():
        source = other if name.startswith("language_model.") else old
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_a_base_of_another_shape_is_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"are in no part|no place in the preset| is \["):
        assemble(load_preset("tiny-internvl-chat-v1-2"), tokenizer=checkpoint("tiny-internvl-chat-v1-2"),
                 base=checkpoint("tiny-convllava"))  # fmt: skip


def changed_vision(preset, **vision):
    spec = load_preset(preset).model_dump()
    return type(load_preset(preset)).model_validate({**spec, "vision": {**spec["vision"], **vision}})


def test_positions_are_resized_only_when_asked(checkpoint, tmp_path):
    name = "tiny-internvl-chat-v1-2"
    old = load_model(checkpoint(name))
    encoder = extract(checkpoint(name), "encoder", tmp_path / "encoder")
    larger = old.spec.vision.image_size * 2
    spec = changed_vision(name, image_size=larger)
    given = {"tokenizer": checkpoint(name), "encoder": encoder, "base": checkpoint(name)}
    with pytest.raises(CheckpointError, match=r"(?s)position_embedding.*--resize-positions"):
        assemble(spec, **given)
    assemble(spec, **given, resize_positions=True).write(tmp_path / "larger")
    table = load_model(tmp_path / "larger").encoder.embeddings.position_embedding
    side = larger // old.spec.vision.patch_size
    assert torch.equal(table, old.encoder.embeddings.positions(side, side))
    unchanged = assemble(old.spec, **given, resize_positions=True)
    unchanged.write(tmp_path / "same")
    same = load_model(tmp_path / "same").encoder.embeddings.position_embedding
    assert torch.equal(same, old.encoder.embeddings.position_embedding)


def test_a_longer_encoder_gives_its_first_blocks_and_says_so(tiny, checkpoint, tmp_path):
    name = "tiny-internvl-chat-v1-2"
    spec = load_preset(name)
    encoder = extract(checkpoint(name), "encoder", tmp_path / "encoder")
    shorter = changed_vision(name, depth=spec.vision.depth - 1)
    made = assemble(shorter, tokenizer=checkpoint(name), encoder=encoder, base=checkpoint(name))
    assert made.left_out == [f"encoder.encoder.layers.{spec.vision.depth - 1}"]
    made.write(tmp_path / "shorter")
    state, old = load_model(tmp_path / "shorter").state_dict(), load_model(checkpoint(name)).state_dict()
    assert all(torch.equal(tensor, old[key]) for key, tensor in state.items())
    with pytest.raises(CheckpointError, match="are in no part"):
        assemble(changed_vision(name, depth=spec.vision.depth + 1), tokenizer=checkpoint(name), encoder=encoder)
