"""What a model costs on any machine: FLOPs of a step and activations of its longest row, each worked out once."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from vlm.models.specs import ModelSpec
from vlm.models.vlm import VisionLanguageModel, make_model
from vlm.train.parameters.lora import prepare
from vlm.train.plan.memory import Activations, activations
from vlm.train.plan.time import Work, make_work
from vlm.train.recipe.recipe import Recipe


def meta_model(spec: ModelSpec, recipe: Recipe) -> tuple[VisionLanguageModel, dict[str, int]]:
    """Build the model without memory, frozen and adapted as the recipe says.

    Returns:
        The model on the meta device, and the number of trained parameters of each part.

    Raises:
        ConfigError: a pattern of `trainable` or `lora.targets` matches nothing.
    """
    with torch.device("meta"):
        model = make_model(spec)
        return model, prepare(model, recipe)


def row_limits(recipe: Recipe, spec: ModelSpec, tokens_per_tile: int) -> tuple[int, int]:
    """Return (tokens, tiles) of the longest row that the batch may hold."""
    tokens = recipe.batch.max_tokens if recipe.batch.packing != "none" else recipe.max_length
    rule = spec.image_rule
    if recipe.batch.packing == "none" and recipe.batch.max_tiles >= 1_000_000:
        most = {"tiles": rule.max_tiles + 1, "whole": rule.max_tiles}.get(rule.kind, 1)
    else:
        most = recipe.batch.max_tiles
    return tokens, min(most, tokens // tokens_per_tile)


def exchange_bytes(recipe: Recipe, spec: ModelSpec, local: int, width: int) -> int:
    """Return the bytes of one attention call's buffers over a sequence group.

    Ring: keys and values held and arriving, their float32 gradients held and arriving, and the output and query
    gradient in float32. Ulysses: queries, keys, values and output once more.

    Args:
        recipe: gives the kind of sequence parallelism.
        spec: gives the shape of the language model.
        local: tokens that one process holds.
        width: bytes of a number.
    """
    language = spec.language
    keys = 2 * local * language.kv_heads * (language.width // language.heads)
    if recipe.sequence_parallel.kind == "ring":
        return 2 * keys * width + 2 * keys * 4 + 2 * local * language.width * 4
    return (2 * keys + 2 * local * language.width) * width


@dataclass
class ModelCosts:
    """Costs of a meta-device model under a recipe, and under that recipe with other settings of the run.

    `work` are the FLOPs under the recipe itself; `row` gives the activations under any change of it, traced once for
    each setting that matters.
    """

    model: VisionLanguageModel
    recipe: Recipe
    traced: dict[tuple[Any, ...], Activations] = field(default_factory=dict)

    @cached_property
    def work(self) -> Work:
        """FLOPs of a training step, per token, pair, label and tile."""
        return make_work(self.model, self.recipe)

    def row(self, recipe: Recipe, *, cpu: bool) -> Activations:
        """Return the activation bytes of the longest row on one process of its group. `cpu`: with kernels' scratch."""
        spec, sequence = self.model.spec, recipe.sequence_parallel
        limits, sliced = row_limits(recipe, spec, self.model.tokens_per_tile), recipe.zero_stage == 3
        key = (limits, sequence.size, sequence.kind, recipe.precision, recipe.gradient_checkpointing, sliced, cpu)
        if key not in self.traced:
            self.traced[key] = self._trace_row(recipe, *limits, sliced=sliced, cpu=cpu)
        return self.traced[key]

    def _trace_row(self, recipe: Recipe, tokens: int, tiles: int, *, sliced: bool, cpu: bool) -> Activations:
        size, per_tile = recipe.sequence_parallel.size, self.model.tokens_per_tile
        local, part = -(-tokens // size), min(-(-tiles // size), tokens // size // per_tile)
        half = recipe.precision == "bfloat16"
        found = activations(
            self.model,
            tokens=local,
            tiles=part,
            dtype=torch.bfloat16 if half else torch.float32,
            checkpointing=recipe.gradient_checkpointing,
            sliced=sliced,
            cpu=cpu,
        )
        if size == 1:
            return found
        extra = exchange_bytes(recipe, self.model.spec, local, 2 if half else 4)
        return Activations(found.saved, {k: v + extra * ("language" in k) for k, v in found.phases.items()})
