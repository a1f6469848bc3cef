"""Tensors that are one here and three there: InternLM2's `wqkv` (Llama has q, k, v) and our vision `qkv`
(transformers has q, k, v)."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.models.checkpoint.patterns import compiled, fuse_wqkv, split_wqkv
from vlm.models.specs import LanguageSpec


@dataclass(frozen=True)
class Fused:
    """One tensor on one side, three on the other: `split(whole, spec)` and `fuse(q, k, v, spec)` lose nothing."""

    whole: str
    parts: tuple[str, ...]
    split: Callable[[Tensor, LanguageSpec], tuple[Tensor, ...]]
    fuse: Callable[..., Tensor]


FUSED = (
    Fused(
        "language_model.model.layers.{}.self_attn.wqkv",
        tuple(f"language_model.model.layers.{{}}.self_attn.{x}_proj.weight" for x in "qkv"),
        split_wqkv,
        fuse_wqkv,
    ),
    *(
        Fused(
            f"encoder.encoder.layers.{{}}.attn.qkv.{kind}",
            tuple(f"encoder.encoder.layers.{{}}.attn.{x}.{kind}" for x in "qkv"),
            lambda whole, _: whole.chunk(3),
            lambda q, k, v, _: torch.cat([q, k, v]),
        )
        for kind in ("weight", "bias")
    ),
)


@dataclass(frozen=True)
class Way:
    """How to make one tensor: `make(*[tensors of the names in `needs`], spec)`."""

    needs: tuple[str, ...]
    make: Callable[..., Tensor]


def way_to_make(name: str, have: Collection[str]) -> Way | None:
    """The way to make the tensor `name` of those at hand: as it is, a part of a fused one, or fused; None if none."""
    if name in have:
        return Way((name,), lambda tensor, _: tensor)
    for fused in FUSED:
        if match := compiled(fused.whole).match(name):
            parts = tuple(part.format(match[1]) for part in fused.parts)
            return Way(parts, fused.fuse) if all(part in have for part in parts) else None
        for i, part in enumerate(fused.parts):
            if match := compiled(part).match(name):
                whole = fused.whole.format(match[1])
                split = fused.split  # a clone: parts that share memory cannot be saved
                return Way((whole,), lambda t, spec, i=i, f=split: f(t, spec)[i].clone()) if whole in have else None
    return None


def forms(name: str) -> list[list[str]]:
    """The forms in which a layout may hold our tensor `name`: itself, one fused tensor, or three parts."""
    found = [[name]]
    for fused in FUSED:
        if match := compiled(fused.whole).match(name):
            found.append([part.format(match[1]) for part in fused.parts])
        for part in fused.parts:
            if match := compiled(part).match(name):
                found.append([fused.whole.format(match[1])])
    return found
