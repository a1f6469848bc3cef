"""Linear layers with int8 or int4 weights on a CPU, computed in bfloat16 by torch's own kernels.

A new token reads every weight once, so its time is that of their bytes. `int8` has a scale for each output; `int4` 16
steps between the least and the greatest weight of each group of 32 inputs. Source: ours; the kernels are those that
torch's own quantization calls.

Where the CPU multiplies int8 by int8 (VNNI), the inputs of an int8 layer are integers of 16 bits, as two rows of 8: a
difference of at most 1/64,516 of a row's greatest input, far below the steps of the weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.core.errors import CheckpointError, ConfigError, HardwareError

BITS = {"int8": 8, "int4": 4}
"""Names of `--quantize` -> bits."""

GROUP = 32
"""Inputs that share a scale and a zero point in int4."""

FEW = 16
"""Rows up to which the int8 kernel is faster than a product with the weights made bfloat16 again."""

BLOCK = 256
"""Rows computed at once, or outputs whose weights are made bfloat16 again: they stay in the cache of the processor."""

INSTRUCTIONS = ("AVX2", "AVX512", "SVE256", "NEON")
"""What torch calls the instructions that the kernels are written for; without them they run number by number."""


class LowBitLinear(nn.Linear):
    """A linear layer whose weight is packed by `pack` and is no parameter.

    Args:
        like: the layer to stand for.
        bits: 8 or 4.
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, like: nn.Linear, bits: int):
        super().__init__(like.in_features, like.out_features, like.bias is not None, device="meta")
        self.bits = bits
        self.integers = bits == 8 and torch.cpu._is_vnni_supported()  # else sums of two products would saturate
        self.requires_grad_(False)

    def pack(self, weight: Tensor) -> None:
        """Quantize a weight [out, in] on the CPU.

        Raises:
            CheckpointError: NaN or infinity in it.
        """
        weight = weight.float()
        if not weight.isfinite().all():
            raise CheckpointError("NaN or infinity in weights to quantize", fix="take another checkpoint of this run")
        packed, scale = (packed_int8 if self.bits == 8 else packed_int4)(weight)
        if self.integers:
            packed, scale = torch.ops.onednn.qlinear_prepack(packed, None), scale.float()
        self.register_parameter("weight", None)
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out], bfloat16."""
        rows = x.reshape(-1, self.in_features)
        if self.bits == 4:
            out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scale)
        elif self.integers:
            out = torch.cat([integer_product(part, self.packed, self.scale) for part in rows.split(BLOCK)])
        elif len(rows) <= FEW:
            out = torch.ops.aten._weight_int8pack_mm(rows, self.packed, self.scale)
        else:
            blocks = zip(self.packed.split(BLOCK), self.scale.split(BLOCK), strict=True)
            out = torch.cat([F.linear(rows, w.to(x.dtype).mul_(scale[:, None])) for w, scale in blocks], dim=1)
        out = out.view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


def packed_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight [out, in] as int8, and its scales [out], bfloat16."""
    scale = (weight.abs().amax(1).clamp(min=1e-30) / 127).bfloat16()
    return (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def integer_product(rows: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """Return rows [n, in] times int8 weights, in their dtype; a row becomes 127 and 127 * 254 steps on each side of 0.

    The kernel takes unsigned inputs, with a zero of 128.
    """
    step = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True, dtype=torch.float32).clamp_(min=1e-30) / 127
    steps = rows / step + 128
    coarse = (steps + 0.5).to(torch.uint8)
    fine = ((steps - coarse) * 254 + 128.5).to(torch.uint8)
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        torch.cat([coarse, fine]), 1.0, 128, packed, scale, None, None, 1.0, 0, torch.float32, "none", [], ""
    )
    much, little = out.chunk(2) if len(rows) else (out, out)
    return much.add(little, alpha=1 / 254).mul_(step).to(rows.dtype)


def packed_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight [out, in] as the kernel packs it, and scales with zero points [in / 32, out, 2], bfloat16."""
    groups = weight.unflatten(1, (-1, GROUP))
    least, most = groups.amin(-1), groups.amax(-1)
    scale = ((most - least).clamp(min=1e-30) / 15).bfloat16()
    zero = (least + 8 * scale.float()).bfloat16()
    steps = ((groups - zero.float()[..., None]) / scale.float()[..., None] + 8).round().clamp(0, 15)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps.to(torch.int32).flatten(1), 1)
    return packed, torch.stack([scale, zero], dim=-1).transpose(0, 1).contiguous()


def check_low_bit(name: str, devices: set[int | str], dtype: torch.dtype | None, offload: bool) -> None:
    """Check a quantization of `BITS` before anything is read.

    Raises:
        ConfigError: another device than the CPU, another dtype than bfloat16, or layers that wait elsewhere.
        HardwareError: a CPU for which torch has no such kernel.
    """
    if devices != {"cpu"} or offload:
        raise ConfigError(
            f"--quantize {name} with layers elsewhere",
            expected="--device cpu, without --offload",
            fix="--quantize 8bit",
        )
    if dtype != torch.bfloat16:
        raise ConfigError(f"--quantize {name} computes in bfloat16", fix=f"--dtype bfloat16 --quantize {name}")
    if (found := torch.backends.cpu.get_cpu_capability()) not in INSTRUCTIONS:
        raise HardwareError(
            f"--quantize {name}: torch runs without vector instructions on this CPU ({found})",
            expected=f"one of {', '.join(INSTRUCTIONS)}",
            fix="--dtype bfloat16 alone",
        )


def check_size(kind: str, path: str, layer: nn.Linear) -> None:
    """Raise ConfigError for a layer whose sizes the int4 kernel cannot take."""
    if kind == "int4" and (layer.in_features % GROUP or layer.out_features % 16):
        raise ConfigError(
            f"--quantize int4: {path} is {layer.out_features} x {layer.in_features}",
            expected=f"multiples of 16 x {GROUP}",
            fix="--quantize int8",
        )
