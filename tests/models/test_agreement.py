"""Tokenizer, configuration and template of a checkpoint are confronted once, when a processor is built."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.core.errors import CheckpointError, UnknownName
from vlm.core.synth.train_tokenizer import SPECIAL
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import load_model
from vlm.models.processor import load_processor
from vlm.models.session import ChatSession


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps(change(content) or content))


def setting(*keys, value):
    """A change of one key of config.json's spec."""

    def change(config):
        place = config["spec"]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def test_more_tokens_than_rows_are_an_error_with_both_counts(whole, broken):
    state = load_file(broken / "model.safetensors")
    tokens = len(load_processor(whole).tokenizer)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        state[name] = state[name][: tokens - 10].contiguous()
    save_file(state, broken / "model.safetensors")
    edit(broken / "config.json", setting("language", "vocab", value=tokens - 10))
    with pytest.raises(CheckpointError, match=f"the tokenizer has {tokens} tokens, the embedding {tokens - 10} rows"):
        load_processor(broken)


def test_more_rows_than_tokens_are_fine(whole, broken):
    rows = len(load_processor(whole).tokenizer) + 64
    state = load_file(broken / "model.safetensors")
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        state[name] = torch.cat([state[name], torch.zeros(rows - len(state[name]), 64)])
    save_file(state, broken / "model.safetensors")
    edit(broken / "config.json", setting("language", "vocab", value=rows))
    assert isinstance(ChatSession(broken).ask("hi", max_new_tokens=2), str)


@pytest.mark.parametrize("token", SPECIAL[3:])
def test_a_missing_token_of_images_or_template_is_named(token, broken):
    def rename(content):
        for entry in content["added_tokens"]:
            if entry["content"] == token:
                entry["content"] = f"{token}x"
        content["model"]["vocab"][f"{token}x"] = content["model"]["vocab"].pop(token)

    edit(broken / "tokenizer.json", rename)
    edit(broken / "tokenizer_config.json", lambda c: c.pop("additional_special_tokens") and None)
    with pytest.raises(CheckpointError, match=f"the tokenizer has no {token.replace('|', '[|]')}, ") as error:
        load_processor(broken)
    assert "broken" in str(error.value.fix)


def test_another_context_id_than_the_tokenizers_is_an_error(broken):
    edit(broken / "config.json", setting("image_tokens", "context_id", value=20))
    with pytest.raises(CheckpointError, match="the tokenizer's <IMG_CONTEXT> is 7, the configuration's is 20"):
        load_processor(broken)


def test_a_placeholder_that_is_a_token_is_an_error(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("tiny-convllava"), tmp_path / "broken")
    edit(folder / "config.json", setting("image_tokens", "context_id", value=20))
    with pytest.raises(CheckpointError, match="marked by the id 20, which is a token"):
        load_processor(folder)


def test_the_context_id_is_the_tokenizers_where_tokens_were_added(checkpoint, tmp_path):
    """The published position, seven rows before the end, is a guess that two more tokens make wrong."""
    folder = convert(checkpoint("tiny-internvl2"), "internvl", tmp_path / "model")
    spec = read_layout(folder).spec
    rows, context = spec.language.vocab, spec.image_tokens.context_id
    assert rows - context == 7
    edit(folder / "config.json", lambda c: c["llm_config"].update(vocab_size=rows + 2))
    edit(folder / "added_tokens.json", lambda tokens: {**tokens, "<a>": rows, "<b>": rows + 1})
    assert read_layout(folder).spec.image_tokens.context_id == context
    assert load_processor(folder).encoder.image_tokens.context == context


@pytest.mark.parametrize(("name", "nearest"), [("internlm2-chatt", "internlm2-chat"), ("hermes_2", "Hermes-2")])
def test_an_unknown_template_is_named_with_the_nearest(name, nearest, broken):
    edit(broken / "config.json", setting("template", value=name))
    for use in (load_processor, ChatSession):
        with pytest.raises(UnknownName, match=rf"unknown template '{name}'\n  expected: did you mean .*{nearest}"):
            use(broken)


def test_a_template_is_a_name_and_never_code(broken, tmp_path):
    text = '{{ cycler.__init__.__globals__.os.popen("touch %s") }}' % (tmp_path / "ran")
    edit(broken / "config.json", setting("template", value=text))
    with pytest.raises(UnknownName, match="unknown template"):
        ChatSession(broken)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("value", "dtype"), [("nan", "float32"), ("inf", "bfloat16"), ("-inf", "float16")])
def test_weights_that_are_no_numbers_are_said_once_and_named(value, dtype, broken):
    state = {k: t.to(getattr(torch, dtype)) for k, t in load_file(broken / "model.safetensors").items()}
    state["projector.1.weight"][3, 5] = float(value)
    save_file(state, broken / "model.safetensors")
    with pytest.warns(RuntimeWarning) as said:
        load_model(broken)
    assert len(said) == 1
    text = f"NaN or infinity in 1 of {len(state)} tensors: projector.1.weight; "
    assert text in str(said[0].message) and str(broken) in str(said[0].message)


def test_ordinary_weights_are_loaded_without_a_word(whole):
    load_model(whole)  # warnings are errors here
