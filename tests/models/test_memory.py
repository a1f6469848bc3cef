"""What is larger than the memory: said before weights are read or a prompt is computed, with what fits."""

import json
import struct
from types import SimpleNamespace

import pytest
import torch

from support.tiny_models import TOKENIZERS, lively_model, random_ids
from vlm.core.errors import HardwareError
from vlm.eval.backends.base import is_out_of_memory
from vlm.models import memory
from vlm.models.attention import KVStorage
from vlm.models.checkpoint.formats.ours import write_spec
from vlm.models.checkpoint.load import copy_tokenizer, load_model
from vlm.models.engine import ChatEngine, ContextOverflow, GenerationRequest, Sampling
from vlm.models.memory import CacheTooLarge, free_bytes
from vlm.models.processor import load_processor
from vlm.models.session import user_turn
from vlm.models.specs import load_preset
from vlm.models.vlm import make_model

FREE = free_bytes("cpu")


def sparse_checkpoint(folder, spec, shard_size=5e9):
    """A checkpoint in our layout, bfloat16, whose weights are holes in files: of their size, taking no space."""
    with torch.device("meta"):
        state = make_model(spec).state_dict()
    if spec.language.tied:
        del state["language_model.lm_head.weight"]
    folder.mkdir()
    shards, held = [[]], 0
    for name, tensor in state.items():
        held += 2 * tensor.numel()
        if held > shard_size:
            shards, held = [*shards, []], 2 * tensor.numel()
        shards[-1].append((name, tensor))
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for file, shard in zip(names, shards, strict=True):
        header, end = {}, 0
        for name, tensor in shard:
            start, end = end, end + 2 * tensor.numel()
            header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + end)
    index = {"weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name, _ in shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(write_spec(spec)))
    copy_tokenizer(TOKENIZERS["tiny-internvl2"], folder)
    return folder


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """160 GB of float32: InternVL-Chat-V1-2 in its published size."""
    return sparse_checkpoint(tmp_path_factory.mktemp("huge") / "model", load_preset("internvl-chat-v1-2"))


@pytest.mark.skipif(FREE is None or FREE > 79e9, reason="this machine has the memory")
def test_a_model_that_is_larger_than_the_memory(huge, monkeypatch) -> None:
    monkeypatch.setattr("vlm.models.checkpoint.placement.WeightPlacement.put", lambda *_: pytest.fail("it is read"))
    for dtype, size in (("float32", "160.3 GB"), ("auto", "80.1 GB")):
        with pytest.raises(HardwareError) as raised:
            load_model(huge, dtype=dtype)
        assert f"needs {size} on cpu" in raised.value.found
        assert "are free" in raised.value.found and raised.value.fix


@pytest.mark.skipif(FREE is None or FREE > 79e9, reason="this machine has the memory")
def test_one_file_that_is_larger_than_the_memory(tmp_path) -> None:
    folder = sparse_checkpoint(tmp_path / "model", load_preset("internvl-chat-v1-2"), shard_size=1e12)
    with pytest.raises(HardwareError):  # the system may map it nevertheless; then it does not fit
        load_model(folder)


def test_the_first_option_that_fits_is_named(tmp_path, monkeypatch) -> None:
    spec = load_preset("internvl2-2b")
    folder = sparse_checkpoint(tmp_path / "model", spec)
    monkeypatch.setattr("vlm.models.checkpoint.placement.WeightPlacement.put", lambda *_: pytest.fail("it is read"))
    ways = [
        (5, "--dtype bfloat16 "),
        (3, "--dtype bfloat16 --quantize int8"),
        (2.5, "--dtype bfloat16 --quantize int4"),
    ]
    for free, option in (
        *ways,
        (1.6, "--dtype bfloat16 --offload disk   (1.4 GB)"),
        (0.5, "a machine with more memory"),
    ):
        monkeypatch.setattr(memory, "free_bytes", lambda place, free=free: int(1e12 if place == "disk" else free * 1e9))
        with pytest.raises(HardwareError, match=r"needs 8\.8 GB") as raised:
            load_model(folder)
        assert raised.value.fix.startswith(option), (free, raised.value.fix)


def test_layers_for_a_disk_that_is_too_small(tmp_path, monkeypatch) -> None:
    folder = sparse_checkpoint(tmp_path / "model", load_preset("internvl2-2b"))
    monkeypatch.setattr("vlm.models.checkpoint.placement.WeightPlacement.put", lambda *_: pytest.fail("it is read"))
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**9))
    with pytest.raises(HardwareError, match=r"needs 3\.0 GB in .*, of which 1\.0 GB are free") as raised:
        load_model(folder, dtype="bfloat16", offload="disk")
    assert raised.value.fix.startswith("TMPDIR=")


@pytest.mark.skipif(FREE is None or FREE > 400e9, reason="this machine has the memory")
def test_a_cache_that_is_larger_than_the_memory(monkeypatch) -> None:
    model = lively_model()
    ids = random_ids(model, 1000)
    monkeypatch.setattr(model, "embed", lambda *_, **__: pytest.fail("it is computed"))
    with pytest.raises(CacheTooLarge) as raised:
        model.generate(ids, max_new_tokens=8, num_beams=1_000_000)
    assert "1,000,000 x 1,008 tokens need 516.1 GB on cpu" in raised.value.found
    assert "fewer than 1,000,000 rows" in raised.value.fix
    assert is_out_of_memory(raised.value), "an evaluation must halve its batch"


def test_the_kv_dtype_that_fits_is_named_and_then_fits(monkeypatch) -> None:
    model = lively_model()
    ids = random_ids(model, 1000)
    monkeypatch.setattr(memory, "SMALL", 0)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 400_000)
    with pytest.raises(CacheTooLarge, match=r"need 516\.1 kB") as raised:
        model.generate(ids, max_new_tokens=8)
    assert raised.value.fix == "--kv-dtype bfloat16" and raised.value.expected == "at most 781 tokens in all"
    model.kv_storage = KVStorage("bfloat16")
    assert model.generate(ids, max_new_tokens=8).shape == (1, 8)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 200_000)
    with pytest.raises(CacheTooLarge) as raised:
        model.prefill(ids)
    assert raised.value.fix == "--kv-dtype int8"


def test_the_server_refuses_a_prompt_whose_cache_cannot_be(checkpoint, monkeypatch) -> None:
    model, processor = load_model(checkpoint()), load_processor(checkpoint())
    prompt = processor.encode([user_turn("Why?", [], [], processor.template)])
    with ChatEngine(model, processor) as engine:
        monkeypatch.setattr(memory, "SMALL", 0)
        monkeypatch.setattr(memory, "free_bytes", lambda _: 1000)
        with pytest.raises(ContextOverflow, match="keys and values"):
            engine.submit(GenerationRequest(prompt, Sampling(), lambda _: None))
