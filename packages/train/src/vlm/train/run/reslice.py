"""Load a ZeRO-1, 2 or 3 checkpoint that another number of processes saved, by repartitioning it.

Each process reads what its own slices are made of from the files (mapped, not loaded whole) and hands it to DeepSpeed
as if it had saved it. Nothing is written, so a kill or a full disk can lose nothing.

Layouts, from DeepSpeed 0.19: ZeRO-1 and 2 put the parameters of a group one after the other, zeros at the end, and give
each process an equal part of it. ZeRO-3 cuts each parameter for itself, the last cut padded with zeros, and puts the
cuts of a process one after the other; which parameters share a group depends on the number of processes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlm.core.errors import CheckpointError
from vlm.train.run.engine import Engine, Shapes, load_saved

Slices = Sequence[Mapping[int, Tensor]]
"""Of each writer: the number of a group -> its flat slice."""
KEYS = (
    ("base_optimizer_state", "single_partition_of_fp32_groups"),  # ZeRO-1 and 2
    ("optimizer_state_dict", "fp32_flat_groups"),  # ZeRO-3
)
"""Where DeepSpeed keeps AdamW's state and the float32 weights."""
COUNTS = ("global_steps", "global_samples", "skipped_steps")


@dataclass(frozen=True)
class Vector:
    """A vector of `numel` elements; each writer has `width` of them, from `start` on in its slice of `group`."""

    group: int
    start: int
    width: int
    numel: int

    def cut(self, slices: Slices, rank: int, width: int) -> Tensor:
        """Return elements `[rank * width, (rank + 1) * width)`, zeros beyond the end of the vector."""
        begin, end = rank * width, min((rank + 1) * width, self.numel)
        pieces, at = [], 0
        for groups in slices:
            piece = groups[self.group][self.start : self.start + self.width]
            pieces.append(piece[max(0, begin - at) : max(0, end - at)])
            at += len(piece)
        made = torch.cat(pieces)
        return pad(made, (0, width - len(made)))


def by_group(before: Shapes, slices: Slices) -> list[list[Vector]]:
    """Describe a ZeRO-1 or 2 checkpoint: each group is one vector."""
    counts = [sum(math.prod(shape) for shape in group.values()) for group in before]
    return [[Vector(i, 0, len(slices[0][i]), n)] for i, n in enumerate(counts)]


def by_parameter(before: Shapes, now: Shapes, writers: int) -> list[list[Vector]]:
    """Describe a ZeRO-3 checkpoint: each parameter is a vector, listed in the current groups."""
    found: dict[str, Vector] = {}
    for i, group in enumerate(before):
        start = 0
        for name, shape in group.items():
            n = math.prod(shape)
            found[name] = Vector(i, start, math.ceil(n / writers), n)
            start += found[name].width
    return [[found[name] for name in group] for group in now]


def load_slices(engine: Engine, path: Path, writers: int) -> int:
    """Load a checkpoint of `writers` processes into this process's slices: weights, moments, counts; return its step.

    Raises:
        CheckpointError: it has no slices of this ZeRO stage, or holds other parameters than are trained now.
    """
    rank, size, mine = engine.world.rank, engine.world.size, engine.slices()
    stage, own = mine.stage, mine.state
    base, fp32 = KEYS[stage == 3]
    states, saved = read_slices(path, writers, fp32)
    before, now = saved["param_shapes"], mine.shapes
    settings = states[0][base]["param_groups"]
    as_before = before == now if stage < 3 else sorted(named_shapes(before)) == sorted(named_shapes(now))
    if not as_before or len(settings) != len(own[base]["param_groups"]):
        raise CheckpointError(
            f"{path} was saved while other parameters were trained, or in other groups",
            fix="continue with the recipe that saved it, or start in a new folder",
        )
    weights: Slices = [dict(enumerate(state[fp32])) for state in states]
    if mine.padded is None:
        vectors = by_parameter(before, now, writers)
        widths = [[math.ceil(v.numel / size) for v in group] for group in vectors]
    else:
        vectors = by_group(before, weights)
        widths = [[width] for width in mine.padded]

    def recut(slices: Slices) -> list[Tensor]:
        return [
            torch.cat([v.cut(slices, rank, width) for v, width in zip(group, sizes, strict=True)])
            for group, sizes in zip(vectors, widths, strict=True)
        ]

    moments = [state[base]["state"] for state in states]
    made: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(vectors))}
    for key, value in moments[0].get(0, {}).items():
        slices: Slices = [{i: group[key] for i, group in state.items()} for state in moments]
        for i, part in enumerate(recut(slices) if value.dim() else [value.clone() for _ in vectors]):  # or the count
            made[i][key] = part
    pairs = zip(settings, own[base]["param_groups"], strict=True)
    own[base] = {"state": made, "param_groups": [{**was, "params": here["params"]} for was, here in pairs]}
    own[fp32] = recut(weights)
    engine.put_slices(own, saved["module"], {name: saved[name] for name in COUNTS})
    return int(saved["step"])


def read_slices(path: Path, writers: int, key: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read the optimizer states of all writers, which must have `key`, and the rest, which is the same in all.

    Raises:
        CheckpointError: another number of states, one without `key`, or a file that is not of ours.
    """
    files = [f for r in range(writers) for f in path.glob(f"*zero_pp_rank_{r}_mp_rank_00_optim_states.pt")]
    states = [load_saved(f, mmap=True)["optimizer_state_dict"] for f in files]
    if len(states) != writers or any(key not in state for state in states):
        raise CheckpointError(
            f"{path} is not in {writers} slices of the recipe's ZeRO stage",
            fix="continue with the stage that saved it, or start in a new folder",
        )
    return states, load_saved(min(path.glob("*_model_states.pt")), mmap=True)


def named_shapes(shapes: Shapes) -> list[tuple[str, torch.Size]]:
    """Return (name, shape) of all groups in one list."""
    return [pair for group in shapes for pair in group.items()]
