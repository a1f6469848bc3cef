"""Where weights go: device maps, types, offload, quantization. GPUs are played by the CPU, the disk and `meta`."""

import gc
import os
import sys
import weakref
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.core.errors import CheckpointError, ConfigError, HardwareError, UnknownName
from vlm.core.extras import install_line
from vlm.models.checkpoint import load as weights
from vlm.models.checkpoint import placement
from vlm.models.checkpoint.load import load_model
from vlm.models.checkpoint.placement import (
    LAYERS,
    TOGETHER,
    device_map,
    device_of,
    make_placement,
    offload_map,
    quantized_linears,
)
from vlm.models.specs import load_preset
from vlm.models.vlm import make_model

SIZES = {"internvl-chat-v1-2": 60, "internvl2-2b": 24, "internvl3-2b": 28, "convllava-1536": 32}
NAME = "tiny-internvl2"


@cache
def on_meta(name):
    """A published model without its numbers."""
    with torch.device("meta"):
        return make_model(load_preset(name))


def counts(spec, gpus):
    found = Counter(gpu for name, gpu in device_map(spec, gpus).items() if name.startswith(LAYERS))
    return [found[gpu] for gpu in range(gpus)]


@pytest.mark.parametrize(
    ("gpus", "layers"),
    [(1, [60]), (2, [21, 39]), (3, [13, 24, 23]), (4, [10, 18, 18, 14]), (8, [5, 8, 8, 8, 8, 8, 8, 7])],
)
def test_layers_per_gpu_of_the_published_rule(gpus, layers):
    assert counts(load_preset("internvl-chat-v1-2"), gpus) == layers


@pytest.mark.parametrize("gpus", range(1, 9))
@pytest.mark.parametrize("name", SIZES)
def test_every_module_has_one_gpu_and_an_answer_begins_and_ends_on_the_first(name, gpus):
    spec, depth = load_preset(name), SIZES[name]
    devices = device_map(spec, gpus)
    assert all(devices[part] == 0 for part in (*TOGETHER, f"{LAYERS}.0", f"{LAYERS}.{depth - 1}"))
    assert len(devices) == len(TOGETHER) + depth  # no phantom layers
    between = [devices[f"{LAYERS}.{i}"] for i in range(depth - 1)]
    assert between == sorted(between) and max(between) < gpus
    assert gpus == 1 or counts(spec, gpus)[0] <= max(counts(spec, gpus)[1:])
    for tensor in on_meta(name).state_dict():
        assert device_of(tensor, devices) in range(gpus)


def test_a_map_over_no_gpu_or_with_a_hole_is_refused():
    with pytest.raises(ConfigError, match="0 GPUs"):
        device_map(load_preset(NAME), 0)
    with pytest.raises(ConfigError, match=r"leaves out projector\.0\.weight"):
        device_of("projector.0.weight", {"encoder": 0})


@pytest.mark.parametrize(
    ("gpus", "settings", "error", "message"),
    [
        (0, {"device": "cuda"}, HardwareError, "sees 0 CUDA GPUs"),
        (0, {"device": "map"}, HardwareError, "install the NVIDIA driver and a CUDA build of torch"),
        (2, {"device": "cuda:2"}, HardwareError, "--device cuda:2, but torch sees 2"),
        (0, {"device": "gpu"}, ConfigError, "unknown device 'gpu'"),
        (0, {"dtype": "fp16"}, UnknownName, "unknown dtype 'fp16'"),
        (0, {"quantize": "3bit"}, UnknownName, "unknown quantization '3bit'"),
        (0, {"offload": "tape"}, UnknownName, "unknown offload 'tape'"),
        (0, {"offload": "cpu"}, ConfigError, "the model runs on the CPU"),
        (2, {"device": "map", "offload": "cpu"}, ConfigError, "one of them"),
        (0, {"quantize": "4bit", "offload": "disk"}, ConfigError, "cannot be offloaded"),
    ],
)
def test_impossible_placements_are_reported_before_anything_is_read(
    gpus, settings, error, message, checkpoint, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(weights, "renamed_tensors", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(error, match=message):
        load_model(checkpoint(NAME), **settings)


@pytest.mark.parametrize(
    ("gpus", "device", "offload", "expected"),
    [
        (0, "auto", None, {"": "cpu"}),
        (2, "auto", None, {"": "cuda"}),
        (2, "cuda:1", None, {"": "cuda:1"}),
        (2, "map", None, device_map(load_preset(NAME), 2)),
        (1, "cuda", "cpu", offload_map(load_preset(NAME), "cuda", "cpu")),
    ],
)
def test_devices_by_name(gpus, device, offload, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert make_placement(load_preset(NAME), device, offload=offload).devices == expected


# types ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(checkpoint, tmp_path):
    """`stored(dtype, ...)`: a checkpoint whose tensors have these types in turn."""

    def make(*dtypes: torch.dtype) -> Path:
        source = checkpoint(NAME)
        state = load_file(source / "model.safetensors")
        save_file(
            {k: t.to(dtypes[i % len(dtypes)]) for i, (k, t) in enumerate(state.items())}, tmp_path / "m.safetensors"
        )
        (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
        return tmp_path

    return make


@pytest.mark.parametrize("dtype", placement.DTYPES)
def test_every_type_of_the_table_is_loaded_and_auto_keeps_the_stored_one(dtype, checkpoint, stored):
    wanted = placement.DTYPES[dtype]
    for model in (load_model(checkpoint(NAME), dtype=dtype), load_model(stored(wanted), dtype="auto")):
        assert {p.dtype for p in model.parameters()} == {wanted}


def test_auto_refuses_a_mixture_that_could_not_be_computed(stored):
    with pytest.raises(CheckpointError, match="bfloat16 and float32") as error:
        load_model(stored(torch.float32, torch.bfloat16), dtype="auto")
    assert "--dtype bfloat16" in error.value.fix


def test_one_tensor_is_in_memory_beside_the_model_at_a_time(checkpoint, monkeypatch):
    """Types differ, so a tensor that was read must be gone when the next one comes."""
    read = weights.renamed_tensors

    def watched(*args):
        alive = lambda: None  # noqa: E731
        for name, tensor in read(*args):
            tensor = tensor.clone()
            assert alive() is None
            alive = weakref.ref(tensor)
            pair = (name, tensor)
            del tensor
            yield pair
            del pair

    monkeypatch.setattr(weights, "renamed_tensors", watched)
    steps = []
    model = load_model(checkpoint(NAME), dtype="bfloat16", progress=lambda done, total: steps.append((done, total)))
    total = sum(p.numel() for p in model.parameters())
    assert steps[-1] == (total, total) and steps == sorted(steps) and len(steps) > 20


# several devices ------------------------------------------------------------------------------------------------------


@pytest.fixture
def question(prompt, tiles):
    """Ids, pixels and positions of one prompt with an image."""

    def make(model):
        ids = prompt(model, 3, "image", 4)
        return {
            "input_ids": ids,
            "pixel_values": tiles(model, 1),
            "position_ids": torch.arange(ids.shape[1])[None] * 1.0,
        }

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_on_the_disk_give_the_same_answers_and_leave_no_files(
    preset, checkpoint, question, tmp_path, monkeypatch, dtype
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "vlm-offload-of-a-killed-process"
    left.mkdir()
    os.utime(left, (0, 0))
    whole, offloaded = (
        load_model(checkpoint(preset), dtype=dtype),
        load_model(checkpoint(preset), "cpu", dtype, offload="disk"),
    )
    assert {p.device.type for p in offloaded.language_model.model.layers.parameters()} == {"meta"}
    assert {p.device.type for p in offloaded.encoder.parameters()} == {"cpu"}
    inputs = question(whole)
    inputs["pixel_values"] = inputs["pixel_values"].to(getattr(torch, dtype))
    with torch.inference_mode():
        torch.testing.assert_close(offloaded(**inputs).logits, whole(**inputs).logits, rtol=0, atol=0)
    for model in (whole, offloaded):
        inputs["ids"] = model.generate(**{k: v for k, v in inputs.items() if k != "ids"}, max_new_tokens=5)
    assert inputs["ids"].shape[1] == 5
    (folder,) = tmp_path.glob("vlm-offload-*")
    assert list(folder.glob("*.dat")) and folder != left
    del offloaded, model
    gc.collect()
    assert not folder.exists()


def test_tensors_of_a_map_land_on_their_devices_and_hooks_carry_the_rest(checkpoint, question):
    """`meta` plays the second GPU: what runs there has no numbers, but must get its inputs there."""
    spec = load_preset(NAME)
    devices = {name: "meta" if gpu else "cpu" for name, gpu in device_map(spec.with_language(depth=2), 2).items()}
    devices[f"{LAYERS}.1"] = "meta"
    model = load_model(checkpoint(NAME), devices)
    for name, parameter in model.named_parameters():
        assert parameter.device.type == device_of(name, devices)
    hooks = {i: layer._hf_hook.execution_device for i, layer in enumerate(model.language_model.model.layers)}
    assert hooks == {0: "cpu", 1: "meta"}


def test_layers_in_memory_wait_for_a_device_that_computes(checkpoint):
    """`meta` plays the GPU: layers stay in CPU memory, and nothing of theirs is copied."""
    model = load_model(checkpoint(NAME), offload_map(load_preset(NAME), "meta", "cpu"))
    layer = model.language_model.model.layers[0]
    kept = layer.mlp.up_proj._hf_hook.weights_map["weight"]
    assert kept.device.type == "cpu" and layer.mlp.up_proj.weight.device.type == "meta"
    original = load_file(checkpoint(NAME) / "model.safetensors")
    torch.testing.assert_close(kept, original[f"{LAYERS}.0.mlp.up_proj.weight"])


# quantization ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_quantization_replaces_the_linears_of_the_language_model_alone(name):
    model = on_meta(name)
    chosen = quantized_linears(model)
    assert len(chosen) == 7 * SIZES[name]
    assert all(n.startswith(f"{LAYERS}.") for n in chosen)
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    left = linears - set(chosen)
    assert "language_model.lm_head" in left and all(
        n.startswith(("encoder", "projector", "language_model.lm")) for n in left
    )


def test_without_bitsandbytes_the_error_names_the_extra(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(HardwareError, match="--quantize 8bit needs bitsandbytes") as error:
        load_model(checkpoint(NAME), quantize="8bit")
    assert error.value.fix == install_line("quant")


@pytest.mark.parametrize(("quantize", "bound"), [("8bit", 0.05), ("4bit", 0.35)])
@pytest.mark.parametrize("name", [NAME, "tiny-internvl3"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantized_layers_stay_close_and_the_rest_is_untouched(name, quantize, bound, checkpoint, question):
    pytest.importorskip("bitsandbytes")
    whole, small = load_model(checkpoint(name)), load_model(checkpoint(name), quantize=quantize)
    states = [{k: v for k, v in m.state_dict().items() if not k.startswith(LAYERS)} for m in (whole, small)]
    assert states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert small.language_model.model.layers[0].mlp.up_proj.weight.dtype in (torch.int8, torch.uint8)
    inputs = question(whole)
    with torch.inference_mode():
        logits = [m(**inputs).logits for m in (whole, small)]
    error = (logits[0] - logits[1]).norm() / logits[0].norm()
    assert 0 < error < bound
