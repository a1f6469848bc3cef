"""FLOPs, bytes between processes, and seconds of a step, by arithmetic over the model's own layers.

A multiplication and an addition count as two. `model` FLOPs are what the mathematics needs; `run` FLOPs add what
checkpointing and the chunked loss compute twice. Only matrix products and convolutions count.
"""

import random
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vlm.models.vlm import VisionLanguageModel
from vlm.train.plan.machines import EFFICIENCY, Machine
from vlm.train.plan.memory import equal_blocks, shortened
from vlm.train.recipe.recipe import Recipe


@dataclass(frozen=True)
class Work:
    """FLOPs of a training step for each token, each (query, key) pair that attention sees, each label and each tile.

    `again_*` are FLOPs that the backward pass computes a second time.
    """

    token: float
    pair: float
    label: float
    tile: float
    again_token: float
    again_pair: float
    again_label: float
    again_tile: float

    def model(self, tokens: float, pairs: float, labels: float, tiles: float) -> float:
        """Return the FLOPs that the mathematics needs, forward and backward."""
        return self.token * tokens + self.pair * pairs + self.label * labels + self.tile * tiles

    def run(self, tokens: float, pairs: float, labels: float, tiles: float) -> float:
        """Return the FLOPs that are computed: those of `model` and those of the recomputation."""
        again = self.again_token * tokens + self.again_pair * pairs
        again += self.again_label * labels + self.again_tile * tiles
        return self.model(tokens, pairs, labels, tiles) + again


def causal_pairs(lengths: list[float]) -> float:
    """Count the (query, key) pairs of documents of those lengths: each token sees itself and those before it."""
    return sum(n * (n + 1) / 2 for n in lengths)


def make_work(model: VisionLanguageModel, recipe: Recipe) -> Work:
    """Count the FLOPs of a meta-device model whose frozen parts are set, under the recipe's checkpointing and ZeRO."""
    language, spec = model.language_model, model.spec.language
    first = next(language.get_input_embeddings().parameters()).requires_grad
    flows = first or any(p.requires_grad for part in (model.encoder, model.projector) for p in part.parameters())
    token = once = pairs_trained = 0.0
    recomputed = recipe.gradient_checkpointing
    for layer in language.model.layers:
        for linear in (m for m in layer.modules() if isinstance(m, nn.Linear)):
            forward = 2.0 * linear.weight.numel()
            token += forward * (1 + flows + linear.weight.requires_grad)
            flows = flows or linear.weight.requires_grad
            if linear is not layer.mlp.down_proj:  # computing again stops before the last product
                once += forward * flows
        pairs_trained += flows
    pair = 4.0 * spec.width  # scores and values, all heads
    head = language.lm_head.weight
    tile, tile_forward, encoder_trained = tile_flops(model)
    return Work(
        token=token,
        pair=pair * (len(language.model.layers) + 2 * pairs_trained),
        label=2.0 * head.numel() * (1 + flows + head.requires_grad),
        tile=tile,
        again_token=once * recomputed,
        again_pair=pair * pairs_trained * recomputed,
        again_label=2.0 * head.numel() * (recipe.zero_stage == 3),  # a head in slices computes its logits again
        again_tile=tile_forward * recomputed * encoder_trained,
    )


def tile_flops(model: VisionLanguageModel) -> tuple[float, float, bool]:
    """Count the FLOPs of one tile through encoder and projector, on the meta device and without checkpointing.

    Returns:
        (FLOPs forward and backward, FLOPs of the encoder's forward pass, whether the encoder keeps a graph).
    """
    model.set_gradient_checkpointing(False)
    model.train()
    if not (blocks := equal_blocks(model.encoder)):
        return count_tile(model)
    with shortened(model.encoder, 1):
        one = count_tile(model)
    with shortened(model.encoder, 2):
        two = count_tile(model)
    return two[0] + (blocks - 2) * (two[0] - one[0]), two[1] + (blocks - 2) * (two[1] - one[1]), two[2]


def count_tile(model: VisionLanguageModel) -> tuple[float, float, bool]:
    """Count the FLOPs of one tile through the blocks that the encoder has now; returns as `tile_flops`."""
    pixels = torch.empty(1, 3, model.image_size, model.image_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        grid = model.encoder(pixels)
        encoder = counter.get_total_flops()
        tokens = model.projector(grid)
        if tokens.requires_grad:
            tokens.sum().backward()
    model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops()), float(encoder), grid.requires_grad


@dataclass(frozen=True)
class MeshShape:
    """Shape of a run's processes: `gpus` in all, `nodes` machines, `sequence` processes that hold a row together."""

    gpus: int
    nodes: int
    sequence: int

    @property
    def groups(self) -> int:
        """Number of sequence groups, the data parallel size."""
        return self.gpus // self.sequence


def typical_lengths(samples: int, mean: float, longest: int) -> list[int]:
    """Return lengths with that mean for the samples of a step, spread evenly as widely as 0 and `longest` allow (ours).

    No published run says how its lengths are distributed. In random order, always the same.

    >>> sorted(typical_lengths(4, 6, longest=10))
    [3, 5, 7, 9]
    """
    half = min(mean, longest - mean)
    found = [max(1, round(mean + half * ((2 * i + 1) / samples - 1))) for i in range(samples)]
    random.Random(0).shuffle(found)
    return found


def zero_bytes(weights: float, gradients: float, stage: int, gpus: int, rows: int) -> float:
    """Return the bytes that a GPU sends in a step for ZeRO, with gradients averaged over all GPUs.

    Stages 0 and 1 reduce once and pass weights (0: sums) round once; stage 2 reduces after every row; stage 3 also
    gathers the weights for every forward and every backward pass.

    Args:
        weights: bytes of all weights.
        gradients: bytes of all gradients.
        stage: ZeRO stage.
        gpus: processes in all.
        rows: rows of each GPU in a step.
    """
    share = (gpus - 1) / gpus
    if stage == 3:
        return share * rows * (2 * weights + gradients)
    return share * ((rows if stage == 2 else 1) + 1) * gradients


def sequence_bytes(recipe: Recipe, model: VisionLanguageModel, rows: int, width: int) -> float:
    """Return the bytes that a GPU sends in a step because its group holds `rows` rows together.

    Ring: keys and values go round forward and backward (and once more when recomputed), their gradients in float32.
    Ulysses: queries, keys, values and the output are exchanged each time. `width`: bytes of a number.
    """
    size, language = recipe.sequence_parallel.size, model.spec.language
    if size == 1:
        return 0.0
    local = recipe.batch.max_tokens / size
    head, passes = language.width / language.heads, 2 + recipe.gradient_checkpointing
    keys = 2 * local * language.kv_heads * head
    if recipe.sequence_parallel.kind == "ring":
        layer = keys * ((size - 1) * passes * width + size * 4)
    else:
        layer = (keys + 2 * local * language.width) * width * passes * (size - 1) / size
    return rows * language.depth * layer


def step_seconds(
    run_flops: float,
    sent: dict[str, float],
    machine: Machine,
    recipe: Recipe,
    mesh: MeshShape,
    efficiency: float = EFFICIENCY,
) -> float:
    """Return the seconds of a step on the busiest GPU: those of its FLOPs or of its transfers, the longer of the two.

    Transfers overlap with FLOPs; a ring stays in a node where its group does.

    Args:
        run_flops: of the busiest GPU.
        sent: bytes that it sends, by `zero` and `sequence`.
        machine: the kind of device.
        recipe: gives the precision.
        mesh: the processes.
        efficiency: share of the peak that FLOPs run at.
    """
    compute = run_flops / (machine.peak(recipe.precision) * efficiency)
    across = machine.link_gbs if mesh.nodes == 1 else machine.net_gbs
    inside = machine.link_gbs if mesh.sequence <= mesh.gpus // mesh.nodes else machine.net_gbs
    return max(compute, sent["zero"] / (across * 1e9) + sent["sequence"] / (inside * 1e9))
