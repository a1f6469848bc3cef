"""Whether an evaluation fits a device: weights, KV cache, images and activations of its longest prompt.

>>> found = estimate_evaluation(load_preset("internvl2-2b"), PromptSize(65_536, 255, 32), Share("bfloat16"))
>>> {part: round(gb, 1) for part, gb in found.gb.items()}                                      # doctest: +SKIP

The model's own code runs forward, without gradients, on tensors that hold no numbers (`plan.memory`). One prompt is
asked at a time, as `vlm eval` does with long ones. Teacher forcing keeps no KV cache, and a ring holds its share of the
tokens and tiles in each process.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vlm.core.errors import ConfigError, HardwareError
from vlm.models.attention import PACKED, KVStorage
from vlm.models.checkpoint.placement import LAYERS, device_map, resolve_dtype
from vlm.models.generation.decoding import PREFILL_CHUNK
from vlm.models.sequence_parallel import TILES
from vlm.models.specs import ModelSpec
from vlm.models.vlm import VisionLanguageModel, make_model
from vlm.train.plan.machines import Machine, machine_table
from vlm.train.plan.memory import FEW, MORE, equal_blocks, faked, shortened
from vlm.train.plan.trace import Cost, state, trace

GB = 1e9
ROW = 8 + 8 + 8
"""Bytes of ids, positions and mask of a token."""


@dataclass(frozen=True)
class PromptSize:
    """The longest prompt: its tokens (with those of the images), its tiles, and the tokens of an answer at most."""

    tokens: int
    tiles: int
    new_tokens: int
    teacher_forced: bool = False


@dataclass(frozen=True)
class Share:
    """How a model is spread: `gpus` that its layers lie on (`--device map`), or `processes` of a ring; and dtypes."""

    dtype: str = "bfloat16"
    gpus: int = 1
    processes: int = 1
    kv_dtype: str = "auto"

    @property
    def devices(self) -> int:
        """Return the GPUs of one job."""
        return self.gpus * self.processes

    @property
    def options(self) -> str:
        """Return the options of `vlm eval`, with a space before each."""
        words = f" --dtype {self.dtype}" if self.dtype != "float32" else ""
        words += f" --kv-dtype {self.kv_dtype}" if self.kv_dtype != "auto" else ""
        words += " --device map" if self.gpus > 1 else ""
        return words + (f" --processes {self.processes}" if self.processes > 1 else "")


@dataclass(frozen=True)
class EvaluationFit:
    """GB (10^9) of the fullest device, by part."""

    prompt: PromptSize
    share: Share
    gb: dict[str, float]

    @property
    def gb_needed(self) -> float:
        """GB at the worst moment."""
        return sum(self.gb.values())

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers for JSON."""
        return {**asdict(self), "gb_needed": self.gb_needed}


def check_share(spec: ModelSpec, prompt: PromptSize, share: Share) -> None:
    """Raise ConfigError for a spread that `vlm eval` refuses or that leaves devices idle."""
    if share.processes > 1 and not prompt.teacher_forced:
        raise ConfigError(
            f"--processes {share.processes} where a model answers by itself",
            expected="a teacher-forced benchmark (MM-NIAH-long-…)",
            fix=f"--gpus {share.processes} lays the layers over so many",
        )
    if share.processes > 1 and share.gpus > 1:
        raise ConfigError(
            f"--gpus {share.gpus} --processes {share.processes}", expected="one of them: a ring has a GPU a process"
        )
    if prompt.teacher_forced and share.kv_dtype != "auto":
        raise ConfigError(
            f"--kv-dtype {share.kv_dtype} with teacher forcing, which has no KV cache", fix="leave it out"
        )
    if share.gpus > spec.language.depth:
        raise ConfigError(
            f"--gpus {share.gpus} for {spec.language.depth} layers", expected="at most as many GPUs as layers"
        )


def estimate_evaluation(spec: ModelSpec, prompt: PromptSize, share: Share) -> EvaluationFit:
    """Estimate what one prompt takes on the fullest device.

    Raises:
        ConfigError: a spread that cannot be, or a KV dtype without a KV cache. UnknownName: no such dtype.
    """
    check_share(spec, prompt, share)
    dtype = resolve_dtype(share.dtype) or torch.bfloat16
    with torch.device("meta"):
        model = make_model(spec).requires_grad_(False).eval()
    return max((on_device(model, prompt, share, dtype, gpu) for gpu in range(share.gpus)), key=lambda f: f.gb_needed)


def on_device(
    model: VisionLanguageModel, prompt: PromptSize, share: Share, dtype: torch.dtype, gpu: int
) -> EvaluationFit:
    """Return what one GPU of a layer map holds; the first has the encoder, and the first and the last layers."""
    language, width = model.spec.language, dtype.itemsize
    devices = device_map(model.spec, share.gpus)
    layers = [n for n in range(language.depth) if devices[f"{LAYERS}.{n}"] == gpu]
    weights = sum(p.numel() for layer in layers for p in model.language_model.model.layers[layer].parameters())
    if gpu == 0:
        inside = {id(p) for p in model.language_model.model.layers.parameters()}
        weights += sum(p.numel() for p in model.parameters() if id(p) not in inside)
    head = language.width // language.heads
    keys = 2 * language.kv_heads * head * width
    storage = KVStorage(share.kv_dtype)
    kept = 2 * language.kv_heads * head * storage.bytes_per_value(dtype, head)
    cache = 0 if prompt.teacher_forced else round(len(layers) * kept * (prompt.tokens + prompt.new_tokens))
    if cache and storage.kept(dtype) != dtype:
        cache += keys * (prompt.tokens + prompt.new_tokens)  # one layer is read back at a time
    tokens, tiles = -(-prompt.tokens // share.processes), -(-prompt.tiles // share.processes)
    features = tiles * model.tokens_per_tile * language.width * width if gpu == 0 else 0
    rule = model.spec.image_rule
    together = TILES * (rule.max_tiles if rule.kind == "whole" else 1)  # a whole image is encoded in one piece
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with faked(model, mode, dtype):
        images = images_cost(model, mode, dtype, min(tiles, together)) if gpu == 0 and tiles else 0
        at_once = tokens if prompt.teacher_forced else min(tokens, PREFILL_CHUNK)
        row = ROW * prompt.tokens + 2 * 4 * at_once * head  # and rotary tables
        embedded = tokens * language.width * width  # the caller holds them while the layers run
        answer = row + embedded + layer_cost(model, mode, dtype, at_once) + language.vocab * 4 * 2
    if share.processes > 1:  # keys and values held and arriving, the merged output in float32
        answer += 2 * keys * tokens + 2 * 4 * tokens * language.width
    gb = {
        "weights": weights * width,
        "KV cache": cache,
        "features of the images": features,
        "activations": max(images - cache, answer),  # the cache is made when the images are encoded
    }
    return EvaluationFit(prompt, share, {part: size / GB for part, size in gb.items()})


def images_cost(model: VisionLanguageModel, mode: FakeTensorMode, dtype: torch.dtype, tiles: int) -> int:
    """Return the peak bytes of encoding some tiles at once."""

    def encode(x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = model.projector(model.encoder(x.to(dtype)))
            return out

    def cost() -> Cost:
        shape = (tiles, 3, model.image_size, model.image_size)
        return trace(encode, [*state(model.encoder), *state(model.projector)], mode, shape, torch.float32, False)

    if not equal_blocks(model.encoder):
        return cost().forward
    with shortened(model.encoder, FEW):  # nothing is kept: more blocks need no more
        few = cost().forward
    with shortened(model.encoder, MORE):
        return max(few, cost().forward)


def layer_cost(model: VisionLanguageModel, mode: FakeTensorMode, dtype: torch.dtype, tokens: int) -> int:
    """Return the peak bytes of one decoder layer over some tokens; the others reuse them."""
    language = model.spec.language
    layer: nn.Module = model.language_model.model.layers[-1]
    borders = torch.tensor([0, tokens], dtype=torch.int32)
    with mode:
        tables = tuple(torch.empty(1, tokens, language.width // language.heads, dtype=torch.float32) for _ in range(2))

    def decode(x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = layer(
                x, attention_mask=PACKED, position_embeddings=tables, cu_seqlens=borders, use_cache=False
            )
            return out

    shape = (1, tokens, language.width)
    return trace(decode, [*state(layer), *tables], mode, shape, dtype, False).forward


def spreads(prompt: PromptSize, share: Share, depth: int) -> Iterator[Share]:
    """Yield spreads from the smallest on: bfloat16, an int8 KV cache, then more GPUs of one node, or a larger ring."""
    half = replace(share, dtype="bfloat16")
    yield from [half] if share.dtype not in ("bfloat16", "float16") else []
    if not prompt.teacher_forced and share.kv_dtype not in ("int8", "fp8"):
        yield replace(half, kv_dtype="int8")
    for count in (2, 4, 8):
        if count > share.gpus and count <= depth and share.processes == 1:
            yield replace(half, gpus=count)
    for count in (2, 4, 8, 16, 32, 64, 128):
        if prompt.teacher_forced and count > share.processes:
            yield replace(half, processes=count, gpus=1)


def what_fits(spec: ModelSpec, prompt: PromptSize, share: Share, machine: Machine) -> tuple[EvaluationFit | None, str]:
    """Return the first of `spreads` that fits the machine, and a larger machine that the asked one fits on, or ""."""
    found = (estimate_evaluation(spec, prompt, wider) for wider in spreads(prompt, share, spec.language.depth))
    fits = next((fit for fit in found if fit.gb_needed <= machine.memory_gb), None)
    needed = estimate_evaluation(spec, prompt, share).gb_needed
    larger = sorted((m.memory_gb, name) for name, m in machine_table().items() if m.memory_gb >= needed)
    return fits, larger[0][1] if larger else ""


def evaluation_misfit(what: str, found: EvaluationFit, machine: Machine, name: str, spec: ModelSpec) -> HardwareError:
    """Return the error of an evaluation that does not fit; with what does."""
    fits, larger = what_fits(spec, found.prompt, found.share, machine)
    ways = []
    if fits is not None:
        option = f"--processes {fits.share.processes}" if fits.share.processes > 1 else f"--gpus {fits.share.gpus}"
        option += "" if fits.share.kv_dtype == found.share.kv_dtype else f" --kv-dtype {fits.share.kv_dtype}"
        dtype = "" if fits.share.dtype == found.share.dtype else f" --dtype {fits.share.dtype}"
        ways.append(f"{option}{dtype}   ({fits.gb_needed:.1f} GB on the fullest of {fits.share.devices})")
    ways += [f"--machine {larger}"] if larger else []
    return HardwareError(
        f"{what} does not fit {found.share.devices} x {name}: {found.gb_needed:.1f} GB of {machine.memory_gb:g} GB",
        fix=" or ".join(ways) or "a lower --tiles, or another machine",
    )
