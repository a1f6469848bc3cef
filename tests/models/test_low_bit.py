"""int8 and int4 weights on a CPU: the error of their steps, answers, and what they cannot be used with."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from vlm.core.errors import CheckpointError, ConfigError, HardwareError
from vlm.models.checkpoint.load import load_model
from vlm.models.checkpoint.placement import quantized_linears
from vlm.models.linear.low_bit import BITS, FEW, GROUP, LowBitLinear, packed_int8
from vlm.models.session import ChatSession


@pytest.fixture(params=[True, False], autouse=True, ids=["vnni", "no vnni"])
def vnni(request: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways of the int8 product, where this CPU has both."""
    if request.param and not torch.cpu._is_vnni_supported():
        pytest.skip("a CPU without VNNI")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: request.param)
    return bool(request.param)


def layer(bits: int, bias: bool = True) -> tuple[LowBitLinear, nn.Linear]:
    """A packed layer and the one that it stands for, whose outputs have scales of their own."""
    torch.manual_seed(0)
    exact = nn.Linear(128, 48, bias)
    with torch.no_grad():
        exact.weight.mul_(torch.logspace(-2, 1, 48)[:, None])
    low = LowBitLinear(exact, bits)
    low.pack(exact.weight.detach())
    low.bias = exact.bias
    return low, exact


@pytest.mark.parametrize("bits", BITS.values())
@pytest.mark.parametrize("rows", [1, 5, FEW + 7])
def test_a_product_is_that_of_the_weights_to_half_a_step(bits: int, rows: int) -> None:
    low, exact = layer(bits)
    x = torch.randn(2, rows, 128).bfloat16()
    found = low(x)
    assert found.shape == (2, rows, 48)
    weight = exact.weight.detach()
    if bits == 8:
        half = weight.abs().amax(1, keepdim=True).expand_as(weight) / 254
    else:
        groups = weight.unflatten(1, (-1, GROUP))
        half = ((groups.amax(-1) - groups.amin(-1)) / 30).repeat_interleave(GROUP, 1)
    rounding = 0.01 * (x.float().abs() @ weight.abs().T)  # of scales and products in bfloat16
    bound = x.float().abs() @ half.T + rounding + 0.01 * exact.bias.abs()
    error = (found.float() - exact(x.float())).abs()
    assert (error <= bound).all() and error.max() > 0


def test_a_small_input_counts_beside_a_large_one(vnni: bool) -> None:
    low, _ = layer(8, bias=False)
    whole, scale = packed_int8(layer(8)[1].weight.detach())
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    x[:, 7] *= 500
    x[1] = 0
    weight = whole.double() * scale.double()[:, None]
    wanted = x.double() @ weight.T
    step = x.double().abs().amax(1, keepdim=True) / 64_516 if vnni else 0
    bound = step * weight.abs().sum(1) + 0.004 * (x.double().abs() @ weight.abs().T)
    assert ((low(x).double() - wanted).abs() <= bound).all()
    assert low(x[:0]).shape == (0, 48)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_gives_no_numbers(broken: float) -> None:
    low, _ = layer(8)
    x = torch.ones(2, 128).bfloat16()
    x[1, 3] = broken
    finite = low(x).isfinite()
    assert finite[0].all() and not finite[1].any()


def test_many_rows_and_few_rows_give_the_same(monkeypatch) -> None:
    low, _ = layer(8)
    x = torch.randn(FEW, 128).bfloat16()
    few = low(x)
    monkeypatch.setattr("vlm.models.linear.low_bit.FEW", 0)
    torch.testing.assert_close(low(x), few, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", BITS)
def test_a_quantized_model_answers_nearly_as_the_whole_one(name: str, checkpoint, prompt, tiles) -> None:
    whole = load_model(checkpoint(), dtype="bfloat16")
    model = load_model(checkpoint(), dtype="bfloat16", quantize=name)
    low = [model.get_submodule(path) for path in quantized_linears(model)]
    assert len(low) == 7 * model.spec.language.depth and all(isinstance(part, LowBitLinear) for part in low)
    head = model.language_model.lm_head
    assert isinstance(head, LowBitLinear) and head.bits == 8, "a new token reads the whole head, too"
    assert all(part.weight is None for part in [*low, head]), "no whole weight stays"
    ids, pixels = prompt(model, 6, "image", 9), tiles(model, 1)
    with torch.inference_mode():
        found, wanted = (m(ids, pixel_values=pixels).logits.float() for m in (model, whole))
    error = float((found - wanted).norm() / wanted.norm())
    assert 1e-4 < error < {"int8": 0.1, "int4": 0.8}[name]
    chat = ChatSession(checkpoint(), dtype="bfloat16", quantize=name)
    assert len(list(chat.stream("What is it?", max_new_tokens=4))) <= 4


def test_a_head_that_is_the_embedding_stays_whole(tiny, tmp_path, prompt) -> None:
    from vlm.models.checkpoint.load import save_model

    save_model(tiny("tiny-internvl2", tied=True), tmp_path / "tied")
    model = load_model(tmp_path / "tied", dtype="bfloat16", quantize="int8")
    language = model.language_model
    assert language.lm_head.weight is language.model.embed_tokens.weight
    assert model(prompt(model, 6)).logits.isfinite().all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quantize": "int8"}, "computes in bfloat16"),
        ({"quantize": "int4", "dtype": "float16"}, "computes in bfloat16"),
        ({"quantize": "int8", "dtype": "bfloat16", "offload": "disk"}, "layers elsewhere"),
        ({"quantize": "int8", "dtype": "bfloat16", "device": {"": "meta"}}, "layers elsewhere"),
        ({"quantize": "int3"}, "int4|int8|8bit"),
    ],
)
def test_what_cannot_be_is_said_before_weights_are_read(given: dict, said: str, checkpoint, monkeypatch) -> None:
    monkeypatch.setattr("vlm.models.checkpoint.load.renamed_tensors", lambda *_: pytest.fail("weights are read"))
    with pytest.raises(ConfigError, match=said):
        load_model(checkpoint(), **given)


def test_sizes_that_the_int4_kernel_cannot_take_are_named(tiny, tmp_path) -> None:
    from vlm.models.checkpoint.load import save_model

    save_model(tiny("tiny-internvl2", mlp_width=72), tmp_path / "odd")
    with pytest.raises(ConfigError, match=r"down_proj is 64 x 72"):
        load_model(tmp_path / "odd", dtype="bfloat16", quantize="int4")
    load_model(tmp_path / "odd", dtype="bfloat16", quantize="int8")


def test_damaged_weights_are_not_hidden() -> None:
    low, exact = layer(8)
    with torch.no_grad():
        exact.weight[3, 4] = torch.nan
    with pytest.raises(CheckpointError, match="NaN"):
        low.pack(exact.weight.detach())


def test_a_cpu_without_a_kernel_is_named() -> None:
    code = """import torch
from vlm.models.linear.low_bit import check_low_bit
check_low_bit("int8", {"cpu"}, torch.bfloat16, False)"""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode and HardwareError.__name__ in done.stderr and "without vector instructions" in done.stderr
