"""Devices and precision of a model's weights: one device, several GPUs, offloaded layers, 8 or 4 bits.

>>> device_map(load_preset("internvl-chat-v1-2"), gpus=2)["language_model.model.layers.20"]
1

accelerate moves tensors between devices, bitsandbytes quantizes; both are imported only when they are used.
"""

import math
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm.core.errors import CheckpointError, ConfigError, HardwareError, UnknownName
from vlm.core.extras import require
from vlm.core.home import scratch
from vlm.models.attention import KVStorage
from vlm.models.linear.low_bit import BITS, LowBitLinear, check_low_bit, check_size
from vlm.models.linear.packed import PackedLinear, packs
from vlm.models.specs import ModelSpec
from vlm.models.vlm import VisionLanguageModel

Devices = Mapping[str, int | str]
"""Module name -> GPU number, torch device, or "disk"; the longest name applies, "" is the whole model."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
QUANTIZATIONS = ("8bit", "4bit")
LOW_BYTES = {"8bit": 1, "4bit": 0.53, "int8": 1, "int4": 0.63}
"""Bytes of a quantized weight with the constants of its group; those of NF4 are quantized themselves."""
OFFLOADS = ("cpu", "disk")

LAYERS, HEAD = "language_model.model.layers", "language_model.lm_head"
TRUNK = "encoder.trunk."
"""An encoder of timm's, which may use the weight of a layer by itself."""
TOGETHER = (
    "encoder",
    "projector",
    "language_model.model.embed_tokens",
    "language_model.model.rotary_emb",
    "language_model.model.norm",
    HEAD,
)
"""Modules on the device of the first and the last layer: an answer begins and ends on one device."""


def resolve_dtype(name: str) -> torch.dtype | None:
    """Return a floating-point type by name; None for "auto" (as stored). Raises UnknownName."""
    if name != "auto" and name not in DTYPES:
        raise UnknownName("dtype", name, ["auto", *DTYPES])
    return DTYPES.get(name)


def device_map(spec: ModelSpec, gpus: int) -> dict[str, int | str]:
    """Distribute layers over GPUs; the first takes half a share, and also encoder, projector and the last layer.

    With L layers on W GPUs a share is ceil(L / (W - 1/2)). Source: published multi-GPU quick start of
    InternVL-Chat-V1-2 (60 layers on 2 GPUs: 21 and 39; on 8: 5, six times 8, 7). Few layers on many GPUs leave the
    last ones idle, as published.

    Raises:
        ConfigError: fewer than one GPU.
    """
    if gpus < 1:
        raise ConfigError(f"a device map over {gpus} GPUs", expected="at least 1")
    depth = spec.language.depth
    share = -(-2 * depth // (2 * gpus - 1))
    counts = [-(-share // 2), *[share] * (gpus - 1)] if gpus > 1 else [depth]
    owners = [gpu for gpu, count in enumerate(counts) for _ in range(count)][:depth]
    owners[-1] = 0
    return {**dict.fromkeys(TOGETHER, 0), **{f"{LAYERS}.{i}": gpu for i, gpu in enumerate(owners)}}


def offload_map(spec: ModelSpec, main: int | str, where: str) -> dict[str, int | str]:
    """Keep all decoder layers in `where` ("cpu" or "disk"), moved to `main` one at a time; all else is on `main`."""
    return {**dict.fromkeys(TOGETHER, main), **{f"{LAYERS}.{i}": where for i in range(spec.language.depth)}}


def device_of(name: str, devices: Devices) -> int | str:
    """Return the device of a tensor or module. Raises ConfigError when the map leaves it out."""
    part = name
    while part not in devices:
        if not part:
            raise ConfigError(f"the device map leaves out {name}", expected='a module above it, or "" for the rest')
        part = part.rpartition(".")[0]
    return devices[part]


def quantized_linears(model: nn.Module) -> list[str]:
    """Return the names of the modules that every quantization replaces: the linear layers of the decoder layers.

    Encoder, projector and embedding are not quantized: InternViT-6B in 4 bits gives nonsense (documented by the
    authors of InternVL-Chat-V1-2).
    """
    return [n for n, m in model.named_modules() if n.startswith(f"{LAYERS}.") and isinstance(m, nn.Linear)]


def quantizations(model: VisionLanguageModel, quantize: str) -> dict[str, str]:
    """Return the modules to quantize, and how each is.

    With `int4` or `int8` the head, all of which a new token reads, is int8. A head that is the embedding stays.
    """
    found = dict.fromkeys(quantized_linears(model), quantize)
    return found | ({HEAD: "int8"} if quantize in BITS and not model.spec.language.tied else {})


def resolve_devices(spec: ModelSpec, device: str | Devices, offload: str | None = None) -> dict[str, int | str]:
    """Return the device of each module for `auto`, `cpu`, `cuda`, `cuda:1`, `map` or a dict.

    Raises:
        ConfigError: an unknown device or offload; HardwareError: a GPU that does not exist.
    """
    if offload is not None and offload not in OFFLOADS:
        raise UnknownName("offload", offload, OFFLOADS)
    if not isinstance(device, str):
        return dict(device)
    gpus = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    try:
        number = 0 if device == "map" else torch.device(device).index or 0
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}", expected="auto, cpu, cuda, cuda:1, …, or map") from error
    if device.startswith(("cuda", "map")) and number >= gpus:
        raise HardwareError(
            f"--device {device}, but torch sees {gpus} CUDA GPUs",
            fix="--device cpu; or install the NVIDIA driver and a CUDA build of torch (`vlm doctor` shows both)",
        )
    if device == "map":
        if offload:
            raise ConfigError("--device map with --offload", expected="one of them")
        return device_map(spec, gpus)
    if offload == "cpu" and device == "cpu":
        raise ConfigError("--offload cpu, but the model runs on the CPU", fix="leave it out, or --offload disk")
    return offload_map(spec, device, offload) if offload else {"": device}


@dataclass
class WeightPlacement:
    """Puts each tensor of a checkpoint on its device as soon as it is read, so that no second copy exists.

    Call `prepare(model)` before the first tensor, `put` for each, `finish` after the last.
    """

    devices: dict[str, int | str]
    dtype: torch.dtype | None
    quantize: str | None = None
    infer: bool = False
    quantized: dict[str, str] = field(default_factory=dict)
    offloaded: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    stored: set[torch.dtype] = field(default_factory=set)

    def prepare(self, model: VisionLanguageModel) -> None:
        """Replace the modules to quantize or pack (nothing is allocated); make a folder for offloaded layers."""
        if self.quantize:
            self.quantized = quantizations(model, self.quantize)
            for name, kind in sorted(self.quantized.items()):
                old = model.get_submodule(name)
                assert isinstance(old, nn.Linear)
                check_size(kind, name, old)
                replace_module(model, name, self._low_bit(old, kind))
        if self.infer and packs(set(self.devices.values()), self.dtype):
            for name, module in list(model.named_modules()):
                stays = name.startswith(TRUNK) or name in self.quantized or (name == HEAD and model.spec.language.tied)
                if isinstance(module, nn.Linear) and not stays:
                    replace_module(model, name, PackedLinear(module))
        if "disk" in self.devices.values():
            kept = ExitStack()
            self.folder = kept.enter_context(scratch("vlm-offload"))
            weakref.finalize(model, kept.close)

    def put(self, model: VisionLanguageModel, name: str, tensor: Tensor) -> None:
        """Cast and move one tensor, and set it in the model."""
        device = device_of(name, self.devices)
        dtype = tensor.dtype
        if tensor.is_floating_point():
            self.stored.add(dtype)
            dtype = self.dtype or dtype
        module_name, _, leaf = name.rpartition(".")
        module = model.get_submodule(module_name)
        if device == "disk":
            from accelerate.utils import offload_weight

            offload_weight(tensor.to(dtype), name, str(self.folder), self.offloaded)
            device = "meta"  # accelerate reads a weight in the type that the module says
        if isinstance(module, LowBitLinear) and leaf == "weight":
            module.pack(tensor)
        elif isinstance(module, PackedLinear) and leaf == "weight":
            module.pack(tensor.to(dtype))
        elif module_name in self.quantized and leaf == "weight":
            empty = module.weight
            module.weight = type(empty)(tensor.to(dtype), **_settings(self.quantize)).to(device)
        elif leaf in module._parameters:
            trained = module._parameters[leaf].requires_grad  # type: ignore[union-attr]
            setattr(module, leaf, nn.Parameter(tensor.to(device, dtype), requires_grad=trained))
        else:
            setattr(module, leaf, tensor.to(device, dtype))

    def finish(self, model: VisionLanguageModel) -> None:
        """Tie shared weights and, with several devices, let accelerate carry activations and weights between them.

        Raises:
            CheckpointError: dtype "auto" with tensors of several types.
        """
        if self.dtype is None and len(self.stored) > 1:
            raise CheckpointError(
                f"the checkpoint holds {' and '.join(sorted(str(d).removeprefix('torch.') for d in self.stored))}",
                expected="one floating-point type for --dtype auto",
                fix="name one: --dtype bfloat16",
            )
        model.language_model.tie_weights()
        if len(set(self.devices.values())) == 1 and not self.folder:
            return
        from accelerate import dispatch_model
        from accelerate.utils import save_offload_index

        if self.folder:
            save_offload_index(self.offloaded, str(self.folder))
        main: Any = device_of("encoder", self.devices)
        dispatch_model(
            model,
            dict(self.devices),
            main_device=main,
            offload_dir=str(self.folder) if self.folder else None,
            skip_keys="past_key_values",
        )

    def needs(self, model: VisionLanguageModel, tensors: Mapping[str, Tensor]) -> Counter[int | str]:
        """Return the bytes of tensors by the device where they will lie; they may be on `meta`, as they are stored."""
        low = (
            {f"{name}.weight": kind for name, kind in quantizations(model, self.quantize).items()}
            if self.quantize
            else {}
        )
        found: Counter[int | str] = Counter()
        for name, tensor in tensors.items():
            dtype = self.dtype if self.dtype and tensor.is_floating_point() else tensor.dtype
            width = LOW_BYTES[low[name]] if name in low else dtype.itemsize
            found[device_of(name, self.devices)] += math.ceil(tensor.numel() * width)
        return found

    def smaller(self, spec: ModelSpec) -> Iterator[tuple[str, "WeightPlacement"]]:
        """Yield placements that need less, with their options, from the one that changes least on."""
        main, half = device_of("encoder", self.devices), torch.bfloat16
        if self.quantize is None:
            if self.dtype is None or self.dtype.itemsize > half.itemsize:
                yield "--dtype bfloat16", replace(self, dtype=half)
            if set(self.devices.values()) == {main}:
                for name in BITS if main == "cpu" else QUANTIZATIONS:
                    yield f"--dtype bfloat16 --quantize {name}", replace(self, dtype=half, quantize=name)
        if main != "cpu":
            yield "--dtype bfloat16 --offload cpu", WeightPlacement(offload_map(spec, main, "cpu"), half)
        yield "--dtype bfloat16 --offload disk", WeightPlacement(offload_map(spec, main, "disk"), half)

    def _low_bit(self, old: nn.Linear, kind: str) -> nn.Module:
        if kind in BITS:
            return LowBitLinear(old, BITS[kind])
        bnb = _bitsandbytes(str(self.quantize))
        sizes: dict[str, Any] = {
            "input_features": old.in_features,
            "output_features": old.out_features,
            "bias": old.bias is not None,
        }
        with torch.device("meta"):
            if self.quantize == "8bit":
                low: nn.Module = bnb.nn.Linear8bitLt(**sizes, has_fp16_weights=False)
            else:
                low = bnb.nn.Linear4bit(**sizes, quant_type="nf4", compute_dtype=self.dtype)
        return low


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put another module in the place of one."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def _settings(quantize: str | None) -> dict[str, Any]:
    """Return the keywords of a low-bit weight: plain int8, or NF4 with double quantization."""
    if quantize == "8bit":
        return {"requires_grad": False, "has_fp16_weights": False}
    return {"requires_grad": False, "quant_type": "nf4", "compress_statistics": True}


def _bitsandbytes(quantize: str) -> Any:
    require("quant", f"--quantize {quantize}")
    import bitsandbytes

    return bitsandbytes


def make_placement(
    spec: ModelSpec,
    device: str | Devices = "cpu",
    dtype: str = "float32",
    *,
    quantize: str | None = None,
    offload: str | None = None,
    infer: bool = False,
) -> WeightPlacement:
    """Check all settings before anything is read, and return where weights go; arguments are those of `load_model`.

    Raises:
        ConfigError: unknown names, settings that exclude each other.
        HardwareError: a GPU that does not exist, a library that is not installed.
    """
    if quantize is not None:
        if quantize not in (*QUANTIZATIONS, *BITS):
            raise UnknownName("quantization", quantize, (*QUANTIZATIONS, *BITS))
        if quantize in BITS:
            devices = resolve_devices(spec, device)
            check_low_bit(quantize, set(devices.values()), resolve_dtype(dtype), bool(offload))
            return WeightPlacement(devices, resolve_dtype(dtype), quantize, infer)
        if offload or (not isinstance(device, str) and "disk" in device.values()):
            raise ConfigError("quantized weights cannot be offloaded", fix="leave out --offload or --quantize")
        _bitsandbytes(quantize)
    return WeightPlacement(resolve_devices(spec, device, offload), resolve_dtype(dtype), quantize, infer)


def make_storage(device: str | Devices, kv_dtype: str = "auto", kv_offload: bool = False) -> KVStorage:
    """Check how keys and values shall be kept, before anything is read; arguments are those of `load_model`.

    Raises:
        UnknownName: no such dtype. ConfigError: an offload to the device that the model runs on.
    """
    storage = KVStorage(kv_dtype, kv_offload)
    only = device if isinstance(device, str) else " ".join(sorted({str(place) for place in device.values()}))
    if kv_offload and (only == "cpu" or (only == "auto" and not torch.cuda.is_available())):
        raise ConfigError(
            "--kv-offload, but the model runs on the CPU",
            fix="leave it out; --kv-dtype int8 needs a quarter of float32",
        )
    return storage
