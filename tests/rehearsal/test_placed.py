"""Weights on several devices: the published split, layers offloaded to memory or disk, refusals."""

import sys

import pytest
import torch

from support.tiny_models import TOKENIZERS, lively_model, random_ids, random_tiles
from vlm.core.errors import ConfigError, HardwareError
from vlm.models.attention import local
from vlm.models.checkpoint.load import load_model, save_model
from vlm.models.checkpoint.placement import LAYERS, device_map, offload_map
from vlm.models.session import ChatSession


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A checkpoint with five layers: the published split over two devices gives 3 (with the last one) and 2."""
    folder = tmp_path_factory.mktemp("deep") / "model"
    save_model(lively_model(depth=5), folder, tokenizer=TOKENIZERS["tiny-internvl2"])
    return folder


def inputs(model, device="cpu"):
    ids = random_ids(model, 4, "image", 6)
    given = {
        "input_ids": ids,
        "pixel_values": random_tiles(model, 1),
        "position_ids": torch.arange(ids.shape[1])[None] * 0.5,
    }
    return {k: v.to(device) for k, v in given.items()}


def split(model, device, second):
    """The published split, by the names of the devices."""
    return {name: second if number else device for name, number in device_map(model.spec, 2).items()}


def same(found, wanted, device, close, *settings):
    """Logits and new tokens of a placed model."""
    with torch.inference_mode():
        logits = found(**inputs(wanted, device)).logits
        close(logits, wanted(**inputs(wanted)).logits)
    assert logits.device == torch.device(device)
    for how in ({}, *settings):
        new = found.generate(**inputs(wanted, device), max_new_tokens=4, **how)
        assert new.tolist() == wanted.generate(**inputs(wanted), max_new_tokens=4, **how).tolist()


def test_the_published_split_over_two_devices(deep, device, second, close):
    whole = load_model(deep)
    model = load_model(deep, split(whole, device, second))
    places = [str(layer.mlp.up_proj.weight.device) for layer in model.language_model.model.layers]
    assert {places[0], places[-1]} == {device} and second in places
    same(model, whole, device, close, {"prefill_chunk": 5}, {"num_beams": 2})


def test_packed_rows_and_prefixes_over_two_devices(deep, device, second, close):
    whole = load_model(deep)
    model = load_model(deep, split(whole, device, second))
    ids = random_ids(whole, 5, "image", 9)
    given = {
        "pixel_values": random_tiles(whole, 1),
        "position_ids": None,
        "cu_seqlens": torch.tensor([0, 5 + whole.tokens_per_tile, ids.shape[1]], dtype=torch.int32),
    }
    there = {k: None if v is None else v.to(device) for k, v in given.items()}
    for backend in ("sdpa", "varlen"):
        whole.set_attention(backend)
        model.set_attention(backend)
        with torch.inference_mode():
            close(model(ids.to(device), **there).logits, whole(ids, **given).logits)
    found = []
    for one, where in ((whole, "cpu"), (model, device)):
        prefix = one.prefill(random_ids(whole, 6).to(where))
        asked = random_ids(whole, 3, seed=1).to(where).repeat(2, 1)
        found.append(one.generate(asked, prefix=prefix, max_new_tokens=4).tolist())
    assert found[0] == found[1]


def test_chat_over_two_devices(deep, device, second, picture):
    plain = ChatSession(deep)
    spread = ChatSession(deep, device=split(plain.model, device, second))
    said = [
        (
            chat.ask("What is this?", images=[picture(1)], max_new_tokens=6),
            chat.ask_batch(["One?", "Two, and more?"], max_new_tokens=4),
        )
        for chat in (plain, spread)
    ]
    assert said[0] == said[1]


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_layers_that_wait_elsewhere(where, deep, device, close):
    whole = load_model(deep)
    model = load_model(deep, offload_map(whole.spec, device, where))
    assert {p.device.type for n, p in model.named_parameters() if n.startswith(LAYERS)} == {"meta"}
    same(model, whole, device, close)


def test_what_cannot_be_is_refused_before_weights_are_read(deep, device, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(local, "find_spec", lambda name: None)
    for quantize in ("8bit", "4bit"):
        with pytest.raises(HardwareError, match="bitsandbytes"):
            load_model(deep, device, quantize=quantize)
        with pytest.raises(ConfigError, match="offloaded"):
            load_model(deep, device, quantize=quantize, offload="cpu")
    with pytest.raises(ConfigError, match="flash_attention_2"):
        load_model(deep, device, attention="flash_attention_2")
