"""Whether a recipe fits a machine, what it will take there, and the smallest change that makes it fit.

Bytes of one GPU: weights, gradients, AdamW's states (by ZeRO stage), DeepSpeed's buffers, and the activations of the
longest row it may get. They must stay below the memory in 10^9 bytes; the 7 % up to the GiB that vendors mean are left
to the CUDA context, NCCL and fragmentation.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch

from vlm.core.errors import HardwareError
from vlm.models.specs import ModelSpec
from vlm.models.vlm import VisionLanguageModel, make_model
from vlm.train.parameters.lora import prepare
from vlm.train.plan.machines import Machine
from vlm.train.plan.memory import Activations, activations
from vlm.train.plan.time import Layout, Work, causal_pairs, make_work, seconds, sequence_bytes, zero_bytes
from vlm.train.recipe.recipe import Recipe

GB = 1e9
BUCKET, LIVE = 500_000_000, 1_000_000_000
"""DeepSpeed's defaults: elements of a gradient bucket, and of the weights that ZeRO-3 keeps gathered."""


@dataclass(frozen=True)
class Estimate:
    """Bytes (GB) of one GPU, what runs in parallel, FLOPs, transfers and hours. `problems`: why it cannot run."""

    machine: str
    gpus: int
    nodes: int
    parallel: str
    gb: dict[str, float]
    gb_activation_phases: dict[str, float]
    gb_host: float
    gb_kv_cache: float
    gb_image_encoder: float
    flops_model: float
    flops_run: float
    gb_sent: dict[str, float]
    seconds: float
    limited_by_transfers: bool
    hours: float | None
    gpu_hours: float | None
    memory_gb: float
    problems: list[str]
    fix: str | None
    notes: list[str]

    @property
    def gb_needed(self) -> float:
        """At the worst moment of a step."""
        return sum(self.gb.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "gb_needed": self.gb_needed}


def meta_model(spec: ModelSpec, recipe: Recipe) -> VisionLanguageModel:
    """The model without memory, frozen and adapted as the recipe says."""
    with torch.device("meta"):
        model = make_model(spec)
        prepare(model, recipe)
    return model


def row_limits(recipe: Recipe, spec: ModelSpec, tokens_per_tile: int) -> tuple[int, int]:
    """(tokens, tiles) of the longest row that the batch may hold."""
    tokens = recipe.batch.max_tokens if recipe.batch.packing != "none" else recipe.max_length
    rule = spec.image_rule
    if recipe.batch.packing == "none" and recipe.batch.max_tiles >= 1_000_000:
        most = rule.max_tiles + 1 if rule.kind == "tiles" else 1
    else:
        most = recipe.batch.max_tiles
    return tokens, min(most, tokens // tokens_per_tile)


@lru_cache(maxsize=32)
def row_activations(spec_json: str, recipe_json: str, cpu: bool) -> Activations:
    """Activations of the longest row, on one process of its group."""
    spec, recipe = ModelSpec.model_validate_json(spec_json), Recipe.model_validate_json(recipe_json)
    model = meta_model(spec, recipe)
    tokens, tiles = row_limits(recipe, spec, model.tokens_per_tile)
    size = recipe.sequence_parallel.size
    local, part = -(-tokens // size), min(-(-tiles // size), tokens // size // model.tokens_per_tile)
    result = activations(
        model,
        tokens=local,
        tiles=part,
        dtype=torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32,
        checkpointing=recipe.gradient_checkpointing,
        sliced=recipe.zero_stage == 3,
        cpu=cpu,
    )
    if size > 1:
        width = 2 if recipe.precision == "bfloat16" else 4
        extra = exchange_bytes(recipe, spec, local, width)
        result = Activations(result.saved, {k: v + extra * ("language" in k) for k, v in result.phases.items()})
    return result


def exchange_bytes(recipe: Recipe, spec: ModelSpec, local: int, width: int) -> int:
    """Buffers of one attention call over a group. Ring: keys and values held and arriving, their float32 gradients held
    and arriving, and the output and query gradient in float32. Ulysses: queries, keys, values, output once more."""
    language = spec.language
    keys = 2 * local * language.kv_heads * (language.width // language.heads)
    if recipe.sequence_parallel.kind == "ring":
        return 2 * keys * width + 2 * keys * 4 + 2 * local * language.width * 4
    return (2 * keys + 2 * local * language.width) * width


def estimate(
    recipe: Recipe,
    spec: ModelSpec,
    machine: Machine,
    name: str,
    *,
    nodes: int,
    gpus_per_node: int,
    steps: int | None,
    tokens_per_sample: float | None = None,
    work: Work | None = None,
) -> Estimate:
    """What the recipe takes on `nodes` x `gpus_per_node` of a machine. `tokens_per_sample`: mean, default `max_length`
    (an upper bound, as are its tiles and labels: all tokens)."""
    gpus, size, stage = nodes * gpus_per_node, recipe.sequence_parallel.size, recipe.zero_stage
    model = meta_model(spec, recipe)
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    half = recipe.precision == "bfloat16"
    width, states = (2, 12) if half else (4, 8)
    layout = Layout(gpus, nodes, size)
    problems = mesh_problems(recipe, spec, gpus)
    alone = with_changes(recipe, {"zero.stage": 3 if stage == 3 else 1, "zero.offload": False})
    row = row_activations(spec.model_dump_json(), alone.model_dump_json(), name == "cpu")
    optimizer = trained * states / (gpus if stage >= 1 else 1)
    on_host = recipe.zero.offload and stage >= 1
    parts = {
        "weights": total * width / (gpus if stage == 3 else 1),
        "gradients": trained * width / (gpus if stage >= 2 else 1),
        "optimizer": 0.0 if on_host else optimizer,
        "buffers": 0.0,
        "activations": float(row.peak),
    }
    if stage >= 1 and gpus > 1:
        parts["buffers"] += min(BUCKET, trained) * width
    if stage == 3 and gpus > 1:
        parts["buffers"] += min(LIVE, total) * width
    step_time = (
        4.0 * trained / (gpus if stage >= 1 else 1) if half and not on_host else 0.0
    )  # float32 gradients of a step
    parts["activations"] = max(parts["activations"], step_time)
    gb = {k: v / GB for k, v in parts.items()}
    if sum(gb.values()) > machine.memory_gb:
        problems.append(f"{sum(gb.values()):.1f} GB a GPU of {machine.memory_gb:g} GB")
    load = total * 4 / GB if stage < 3 else 0.0  # ZeRO-3 loads in slices
    notes = [] if load <= machine.memory_gb else [f"loading puts {load:.0f} GB of float32 weights on each device first"]
    work = work or make_work(model, recipe)
    mean = min(tokens_per_sample or recipe.max_length, recipe.max_length)
    most_tokens, most_tiles = row_limits(recipe, spec, model.tokens_per_tile)
    samples, tokens = recipe.batch.samples, recipe.batch.samples * mean
    tiles = samples * max(1.0, mean * most_tiles / most_tokens) if spec.image_rule.kind == "tiles" else float(samples)
    rows = samples if recipe.batch.packing == "none" else max(1, -(-int(tokens) // most_tokens))
    each = -(-rows // max(1, layout.groups))  # rows of the busiest group
    load_of = (tokens, samples * causal_pairs([mean]), tokens, tiles)
    run = work.run(*load_of)
    sent = {
        "zero": zero_bytes(total * width, trained * width, stage, gpus, each),
        "sequence": sequence_bytes(recipe, model, each, width),
    }
    busiest = run / rows * each / size
    spent = seconds(busiest, sent, machine, recipe, layout)
    hours = None if steps is None else steps * spent / 3600
    kv = 2 * spec.language.depth * spec.language.kv_heads * (spec.language.width // spec.language.heads) * width
    return Estimate(
        machine=name,
        gpus=gpus,
        nodes=nodes,
        parallel=parallel_text(recipe, layout),
        gb=gb,
        gb_activation_phases={k: v / GB for k, v in row.phases.items()},
        gb_host=optimizer * gpus / nodes / GB if on_host else 0.0,
        gb_kv_cache=kv * recipe.max_length / GB,
        gb_image_encoder=max(v for k, v in row.phases.items() if k.startswith("encoder")) / GB,
        flops_model=work.model(*load_of),
        flops_run=run,
        gb_sent={k: v / GB for k, v in sent.items()},
        seconds=spent,
        limited_by_transfers=spent > seconds(busiest, dict.fromkeys(sent, 0.0), machine, recipe, layout),
        hours=hours,
        gpu_hours=None if hours is None else hours * gpus,
        memory_gb=machine.memory_gb,
        problems=problems,
        fix=None,
        notes=notes,
    )


def mesh_problems(recipe: Recipe, spec: ModelSpec, gpus: int) -> list[str]:
    """Why the processes cannot share the work that way."""
    size, found = recipe.sequence_parallel.size, []
    if gpus % size:
        found.append(f"sequence_parallel.size {size} does not divide {gpus} GPUs")
    elif recipe.batch.samples < gpus // size:
        found.append(f"batch.samples {recipe.batch.samples} for {gpus // size} data-parallel groups: some would idle")
    if recipe.sequence_parallel.kind == "ulysses" and spec.language.heads % size:
        found.append(f"ulysses over {size} GPUs, but {spec.language.heads} attention heads")
    return found


def parallel_text(recipe: Recipe, layout: Layout) -> str:
    """Which parallelism is really active."""
    size, stage, n = recipe.sequence_parallel.size, recipe.zero_stage, layout.gpus
    sequence = f"{recipe.sequence_parallel.kind} over {size} GPUs" if size > 1 else "no ring, each GPU holds whole rows"
    sliced = {0: "nothing", 1: "optimizer", 2: "optimizer and gradients", 3: "optimizer, gradients and weights"}[stage]
    zero = f"ZeRO-{stage}: {sliced} in slices over {n} GPUs" if stage and n > 1 else "nothing in slices"
    return f"data {layout.groups} x sequence {size} ({sequence}); {zero}"


def changes(recipe: Recipe, nodes: int, gpus_per_node: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Changes from the smallest on: (dotted keys with values, nodes). Checkpointing, ZeRO, offload, a sequence group,
    then more nodes."""
    ways: list[dict[str, Any]] = [{}]
    if not recipe.gradient_checkpointing:
        ways.append({"gradient_checkpointing": True})
    for stage in range(recipe.zero_stage + 1, 4):
        ways += [{**way, "zero.stage": stage} for way in ways[:2] if "zero.stage" not in way]
    best = ways[-1]
    if not recipe.zero.offload:
        best = {**best, "zero.offload": True} | ({} if recipe.zero_stage else {"zero.stage": best.get("zero.stage", 1)})
        ways.append(best)
    size = 2 * recipe.sequence_parallel.size
    while size <= nodes * gpus_per_node:
        ways += [{"sequence_parallel.size": size}, {**ways[0], **best, "sequence_parallel.size": size}]
        size *= 2
    yield from ((way, nodes) for way in ways[1:])
    for factor in (2, 4, 8, 16):
        yield from ((way, nodes * factor) for way in ({}, best))


def with_changes(recipe: Recipe, way: dict[str, Any]) -> Recipe:
    """The recipe with dotted keys replaced."""
    for key, value in way.items():
        first, _, rest = key.partition(".")
        part = getattr(recipe, first)
        recipe = recipe.model_copy(update={first: part.model_copy(update={rest: value}) if rest else value})
    return recipe


def smallest_change(
    recipe: Recipe, spec: ModelSpec, machine: Machine, name: str, nodes: int, gpus_per_node: int
) -> str | None:
    """The first of `changes` that fits, as options to type; None if none does."""
    work = make_work(meta_model(spec, recipe), recipe)
    for way, count in changes(recipe, nodes, gpus_per_node):
        changed = with_changes(recipe, way)
        if mesh_problems(changed, spec, count * gpus_per_node):
            continue
        found = estimate(changed, spec, machine, name, nodes=count, gpus_per_node=gpus_per_node, steps=None, work=work)
        if not found.problems:
            words = [f"--set {key}={str(value).lower()}" for key, value in way.items()]
            words += [f"--nodes {count}"] * (count != nodes)
            return f"{' '.join(words)}   ({found.gb_needed:.1f} GB a GPU)"
    return None


def refuse_misfit(recipe: str, found: Estimate) -> None:
    """Raise HardwareError where the estimate has problems."""
    if found.problems:
        raise HardwareError(
            f"{recipe} does not run on {found.gpus} x {found.machine}: {'; '.join(found.problems)}",
            fix=found.fix or "a smaller batch.max_tokens, or machines with more memory",
        )
