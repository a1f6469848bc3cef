"""Trained parameters, their learning rates and weight decay; schedules as pure functions of the step."""

import fnmatch
import math
from typing import TypedDict

import torch
from torch import nn

from vlm.core.errors import ConfigError
from vlm.train.recipe.recipe import Optimizer


def freeze(model: nn.Module, trainable: tuple[str, ...]) -> dict[str, int]:
    """Train exactly the parameters whose names match a pattern (`*` matches dots too).

    Returns:
        Part of the model -> number of trained parameters.

    Raises:
        ConfigError: a pattern matches nothing; a typo must not freeze an encoder silently.
    """
    names = [name for name, _ in model.named_parameters()]
    idle = [p for p in trainable if not fnmatch.filter(names, p)]
    if idle:
        raise ConfigError(
            f"trainable patterns match no parameter: {', '.join(idle)}",
            expected=f"patterns over names such as {names[0]} or {names[-1]}",
        )
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(fnmatch.fnmatchcase(name, p) for p in trainable)
        if parameter.requires_grad:
            part = part_of(name)
            counts[part] = counts.get(part, 0) + whole_shape(parameter).numel()
    return counts


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """Return a parameter's shape, also where the engine has left only a ZeRO-3 slice of it."""
    shape: torch.Size = getattr(parameter, "whole_shape", parameter.shape)
    return shape


def part_of(name: str) -> str:
    """Return the part of the model that a parameter is counted under, such as `encoder.stages.4` or `projector`."""
    pieces = name.split(".")
    if any(piece.startswith("lora_") for piece in pieces):
        return f"{pieces[0]} (LoRA)"
    if pieces[0] == "projector":
        return "projector"
    return ".".join(pieces[: 3 if name.startswith("encoder.stages") else 2])


NO_DECAY = ("norm", "bias", "ls1", "ls2", "gamma", "embed", "embedding", "bn")


def decays(name: str, parameter: torch.Tensor, rule: str, owner: nn.Module | None = None) -> bool:
    """Return whether weight decay applies to a parameter of the module `owner`, by `Optimizer.decay`.

    `intended`: matrices only, never embeddings. `trainer`: all but biases, torch's own LayerNorm and Llama's norm, the
    ones that transformers' Trainer knew. `published`: everything (V2PE's DeepSpeed optimizer got one flat list).
    """
    if rule == "published":
        return True
    if rule == "trainer":
        llama_norm = "LlamaRMSNorm" in (kind.__name__ for kind in type(owner).__mro__)
        return "bias" not in name and type(owner) is not nn.LayerNorm and not llama_norm
    return len(whole_shape(parameter)) > 1 and not any(part in piece for piece in name.split(".") for part in NO_DECAY)


class ParameterGroup(TypedDict):
    """One group of AdamW; `base_lr` is the rate that schedules scale."""

    params: list[nn.Parameter]
    lr: float
    base_lr: float
    weight_decay: float


def parameter_groups(model: nn.Module, spec: Optimizer) -> list[ParameterGroup]:
    """Group the trained parameters by (learning rate, decay); `spec.groups` gives patterns their own rate.

    The first pattern that matches wins.

    Raises:
        ConfigError: a pattern of `groups` matches no trained parameter, so its rate would have no effect.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if idle := [pattern for pattern in spec.groups if not fnmatch.filter(trained, pattern)]:
        raise ConfigError(
            f"optimizer.groups: no trained parameter matches {', '.join(idle)}",
            fix="add its parameters to `trainable`, or remove it",
        )
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = next((rate for pattern, rate in spec.groups.items() if fnmatch.fnmatchcase(name, pattern)), spec.lr)
        owner = model.get_submodule(name.rpartition(".")[0])
        decay = spec.weight_decay if decays(name, parameter, spec.decay, owner) else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": p, "lr": lr, "base_lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]


def make_optimizer(model: nn.Module, spec: Optimizer, *, on_host: bool = False) -> torch.optim.AdamW:
    """Make AdamW on the trainable parameters.

    Args:
        model: with its frozen parts set.
        spec: rates, decay and moments.
        on_host: offloaded to the CPU, with torch's fused kernel, which reads each state once.

    Raises:
        ConfigError: no parameter is trainable.
    """
    groups = parameter_groups(model, spec)
    if not groups:
        raise ConfigError("no parameter is trainable", fix="add patterns to `trainable`")
    return torch.optim.AdamW(
        [dict(group) for group in groups], lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=on_host or None
    )


def lr_factor(step: int, total: int, spec: Optimizer) -> float:
    """Return the factor on each group's rate for a step counted from 0: linear warm-up, then the schedule.

    >>> [lr_factor(s, 4, Optimizer(lr=1.0, warmup=2, schedule="constant")) for s in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """
    warmup = round(spec.warmup * total) if spec.warmup < 1 else int(spec.warmup)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if spec.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0 - done if spec.schedule == "linear" else 1.0
