"""A checkpoint that another number of processes wrote in slices (ZeRO-1 to 3), cut anew for those of now.

Each process reads what its own slices are made of from the files (mapped, not loaded whole) and hands it to DeepSpeed
as if it had written it. Nothing is written, so a kill or a full disk can lose nothing.

Layouts, from DeepSpeed 0.19: ZeRO-1 and 2 lay the parameters of a group one behind the other, zeros behind them, and
give each process a stretch of it. ZeRO-3 cuts each parameter for itself, the last cut filled up with zeros, and lays
the cuts of a process one behind the other; which parameters share a group depends on the number of processes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlm.core.errors import CheckpointError
from vlm.train.run.engine import Engine

Shapes = list[dict[str, torch.Size]]
"""Name -> shape of the trained parameters, group by group, in the order in which they lie."""
Slices = Sequence[Mapping[int, Tensor]]
"""Of each writer: the number of a group -> its flat slice."""
KEYS = (
    ("base_optimizer_state", "single_partition_of_fp32_groups"),  # ZeRO-1 and 2
    ("optimizer_state_dict", "fp32_flat_groups"),  # ZeRO-3
)
"""Where DeepSpeed keeps AdamW's state and the float32 weights."""


@dataclass(frozen=True)
class Vector:
    """A vector of `numel` elements, of which each writer has `width`, from `start` on in its slice of `group`."""

    group: int
    start: int
    width: int
    numel: int

    def cut(self, slices: Slices, rank: int, width: int) -> Tensor:
        """Elements `[rank * width, (rank + 1) * width)`, zeros behind the end of the vector."""
        begin, end = rank * width, min((rank + 1) * width, self.numel)
        pieces, at = [], 0
        for groups in slices:
            piece = groups[self.group][self.start : self.start + self.width]
            pieces.append(piece[max(0, begin - at) : max(0, end - at)])
            at += len(piece)
        made = torch.cat(pieces)
        return pad(made, (0, width - len(made)))


def by_group(before: Shapes, slices: Slices) -> list[list[Vector]]:
    """ZeRO-1 and 2: a group is one vector."""
    counts = [sum(math.prod(shape) for shape in group.values()) for group in before]
    return [[Vector(i, 0, len(slices[0][i]), n)] for i, n in enumerate(counts)]


def by_parameter(before: Shapes, now: Shapes, writers: int) -> list[list[Vector]]:
    """ZeRO-3: each parameter is a vector. In the groups of now, from wherever the writers had them."""
    found: dict[str, Vector] = {}
    for i, group in enumerate(before):
        start = 0
        for name, shape in group.items():
            n = math.prod(shape)
            found[name] = Vector(i, start, math.ceil(n / writers), n)
            start += found[name].width
    return [[found[name] for name in group] for group in now]


def load(engine: Engine, path: Path, writers: int) -> None:
    """Load a checkpoint of `writers` processes into the slices of this one: weights, moments, rates and counts.

    Raises CheckpointError where it is in no slices of this ZeRO stage, or holds other parameters than are trained now.
    """
    deepspeed, zero, world = engine.deepspeed, engine.deepspeed.optimizer, engine.world
    stage = deepspeed.zero_optimization_stage()
    base, fp32 = KEYS[stage == 3]
    states, saved = read(path, writers, fp32)
    before, now = saved["param_shapes"], deepspeed._get_zero_param_shapes()  # the method that made the saved ones
    mine, settings = zero.state_dict(), states[0][base]["param_groups"]
    as_before = before == now if stage < 3 else sorted(flat(before)) == sorted(flat(now))
    if not as_before or len(settings) != len(mine[base]["param_groups"]):
        raise CheckpointError(
            f"{path} was written while other parameters were trained, or in other groups",
            fix="go on with the recipe that wrote it, or start in a new folder",
        )
    weights: Slices = [dict(enumerate(state[fp32])) for state in states]
    if stage == 3:
        vectors = by_parameter(before, now, writers)
        widths = [[math.ceil(v.numel / world.size) for v in group] for group in vectors]
    else:
        vectors = by_group(before, weights)
        widths = [[group["params"][0].numel()] for group in zero.optimizer.param_groups]  # padded for alignment

    def recut(slices: Slices) -> list[Tensor]:
        return [
            torch.cat([v.cut(slices, world.rank, width) for v, width in zip(group, sizes, strict=True)])
            for group, sizes in zip(vectors, widths, strict=True)
        ]

    moments = [state[base]["state"] for state in states]
    made: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(vectors))}
    for key, value in moments[0].get(0, {}).items():
        slices: Slices = [{i: group[key] for i, group in state.items()} for state in moments]
        for i, part in enumerate(recut(slices) if value.dim() else [value.clone() for _ in vectors]):  # or the count
            made[i][key] = part
    pairs = zip(settings, mine[base]["param_groups"], strict=True)
    mine[base] = {"state": made, "param_groups": [{**was, "params": here["params"]} for was, here in pairs]}
    mine[fp32] = recut(weights)

    if stage == 3:
        zero.checkpoint_event_prologue()
    buffers = {name for name, _ in engine.model.named_buffers()}
    kept = {k: v for k, v in saved["module"].items() if stage < 3 or k in buffers}  # ZeRO-3 leaves no weights there
    engine.model.load_state_dict(kept, strict=False)
    zero.load_state_dict({world.rank: mine}, load_from_fp32_weights=True)  # it takes the entry of this process
    if stage == 3:
        zero.checkpoint_event_epilogue()
    for count in ("global_steps", "global_samples", "skipped_steps"):
        setattr(deepspeed, count, saved[count])


def read(path: Path, writers: int, key: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The optimizer states of all writers, which must have `key`, and the rest, of which all have the same."""
    open_ = partial(torch.load, map_location="cpu", mmap=True, weights_only=False)  # DeepSpeed's own classes are inside
    files = [f for r in range(writers) for f in path.glob(f"*zero_pp_rank_{r}_mp_rank_00_optim_states.pt")]
    states = [open_(f)["optimizer_state_dict"] for f in files]
    if len(states) != writers or any(key not in state for state in states):
        raise CheckpointError(
            f"{path} is not in {writers} slices of the recipe's ZeRO stage",
            fix="go on with the stage that wrote it, or start in a new folder",
        )
    return states, open_(min(path.glob("*_model_states.pt")))


def flat(shapes: Shapes) -> list[tuple[str, torch.Size]]:
    return [pair for group in shapes for pair in group.items()]
