"""Tensors that are one in some formats and three in others: InternLM2's `wqkv` and InternViT's `qkv`.

Llama and transformers' InternViT store q, k and v apart.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.models.checkpoint.renaming import compiled
from vlm.models.specs import LanguageSpec


def split_wqkv(fused: Tensor, spec: LanguageSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Split InternLM2's fused rows, grouped by key-value head as [q ... q | k | v], into the q, k, v rows of Llama.

    Args:
        fused: [(heads + 2 * kv_heads) * head size, C].
        spec: gives the numbers of heads.
    """
    head, group = spec.width // spec.heads, spec.heads // spec.kv_heads
    rows = fused.reshape(spec.kv_heads, group + 2, head, *fused.shape[1:])
    return rows[:, :group].flatten(0, 2), rows[:, group].flatten(0, 1), rows[:, group + 1].flatten(0, 1)


def fuse_wqkv(q: Tensor, k: Tensor, v: Tensor, spec: LanguageSpec) -> Tensor:
    """Return InternLM2's fused rows of q, k, v: the inverse of `split_wqkv`."""
    head, group = spec.width // spec.heads, spec.heads // spec.kv_heads
    parts = [
        q.reshape(spec.kv_heads, group, head, *q.shape[1:]),
        k.reshape(spec.kv_heads, 1, head, *k.shape[1:]),
        v.reshape(spec.kv_heads, 1, head, *v.shape[1:]),
    ]
    return torch.cat(parts, dim=1).flatten(0, 2)


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
    """Return how to make the tensor `name` from those in `have`: as it is, split or fused; None if impossible."""
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
    """Return the forms in which a format may hold our tensor `name`: itself, one fused tensor, or three parts."""
    found = [[name]]
    for fused in FUSED:
        if match := compiled(fused.whole).match(name):
            found.append([part.format(match[1]) for part in fused.parts])
        for part in fused.parts:
            if match := compiled(part).match(name):
                found.append([fused.whole.format(match[1])])
    return found
