"""Whether a recipe fits a machine, what it will take there, and the smallest change that makes it fit.

Bytes of one GPU: weights, gradients, AdamW's states (by ZeRO stage), DeepSpeed's buffers, and the activations of the
longest row it may get. They must stay below the memory in 10^9 bytes; the 7 % up to the GiB that vendors mean are left
to the CUDA context, NCCL and fragmentation.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from vlm.core.errors import HardwareError
from vlm.core.sample.packing import deal, pack_step
from vlm.models.specs import ModelSpec
from vlm.train.plan.costs import ModelCosts, row_limits
from vlm.train.plan.machines import EFFICIENCIES, Machine
from vlm.train.plan.time import MeshShape, causal_pairs, sequence_bytes, step_seconds, typical_lengths, zero_bytes
from vlm.train.recipe.recipe import Recipe

GB = 1e9
BUCKET, LIVE = 500_000_000, 1_000_000_000
"""DeepSpeed's defaults: elements of a gradient bucket, and of the weights that ZeRO-3 keeps gathered."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of one GPU (GB of 10^9), what runs in parallel, FLOPs and transfers of a step, and hours.

    `tokens_per_sample` is the mean length that the time is for, `passes` the rows of the busiest GPU in a step.
    `seconds` and `hours` are at EFFICIENCY, the two `_between` at the ends of EFFICIENCIES, the shorter time first.
    `problems` says why the recipe cannot run there, empty if it can; `fix` is the smallest change that fits.
    """

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
    tokens_per_sample: float
    passes: int
    seconds: float
    seconds_between: tuple[float, float]
    limited_by_transfers: bool
    hours: float | None
    hours_between: tuple[float, float] | None
    gpu_hours: float | None
    memory_gb: float
    problems: list[str]
    fix: str | None
    notes: list[str]

    @property
    def gb_needed(self) -> float:
        """GB at the worst moment of a step."""
        return sum(self.gb.values())

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers for JSON."""
        return {**asdict(self), "gb_needed": self.gb_needed}


def estimate_fit(
    recipe: Recipe,
    costs: ModelCosts,
    machine: Machine,
    name: str,
    *,
    nodes: int,
    gpus_per_node: int,
    steps: int | None,
    tokens_per_sample: float | None = None,
) -> Estimate:
    """Estimate what a recipe takes on `nodes` x `gpus_per_node` GPUs of a machine.

    Args:
        recipe: the recipe, or a change of it that leaves the model as it is.
        costs: of the recipe's model.
        machine: the kind of device.
        name: the machine's name, for the result; on `cpu` activations include the scratch memory of its kernels.
        nodes: machines.
        gpus_per_node: processes of each.
        steps: of the run, None where unknown: then hours are None.
        tokens_per_sample: mean length; default `max_length`, an upper bound, as are its tiles and labels (all tokens).
            Lengths are spread about it as `typical_lengths` says, and packed as training packs them.
    """
    gpus, size, stage = nodes * gpus_per_node, recipe.sequence_parallel.size, recipe.zero_stage
    model, spec = costs.model, costs.model.spec
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    half = recipe.precision == "bfloat16"
    width, states = (2, 12) if half else (4, 8)
    mesh = MeshShape(gpus, nodes, size)
    problems = mesh_problems(recipe, spec, gpus)
    row = costs.row(recipe, cpu=name == "cpu")
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
    mean = min(tokens_per_sample or recipe.max_length, recipe.max_length)
    most_tokens, most_tiles = row_limits(recipe, spec, model.tokens_per_tile)
    samples = recipe.batch.samples
    tiles = samples * max(1.0, mean * most_tiles / most_tokens) if spec.image_rule.kind == "tiles" else float(samples)
    if spec.image_rule.kind == "whole":  # a tile is a token; each sample has one image that fills its budget
        tiles = samples * min(mean, float(spec.image_rule.max_tiles))
    lengths, groups = typical_lengths(samples, mean, recipe.max_length), max(1, mesh.groups)
    rows = pack_step(lengths, [0] * samples, most_tokens, 0, groups=groups, packing=recipe.batch.packing)
    each = -(-len(rows) // groups)
    dealt = deal([sum(lengths[i] for i in row) for row in rows], groups)
    of_groups = [[lengths[i] for r in mine for i in rows[r]] for mine in dealt]

    def work_of(some: list[int]) -> tuple[float, float, float, float]:
        return sum(some), causal_pairs([*map(float, some)]), sum(some), tiles * sum(some) / sum(lengths)

    load_of = work_of(lengths)
    run = costs.work.run(*load_of)
    sent = {
        "zero": zero_bytes(total * width, trained * width, stage, gpus, each),
        "sequence": sequence_bytes(recipe, model, each, width),
    }
    busiest = max(costs.work.run(*work_of(mine)) for mine in of_groups) / size
    spent = step_seconds(busiest, sent, machine, recipe, mesh)
    slow, fast = (step_seconds(busiest, sent, machine, recipe, mesh, share) for share in EFFICIENCIES)
    hours = None if steps is None else steps * spent / 3600
    kv = 2 * spec.language.depth * spec.language.kv_heads * (spec.language.width // spec.language.heads) * width
    return Estimate(
        machine=name,
        gpus=gpus,
        nodes=nodes,
        parallel=describe_parallel(recipe, mesh),
        gb=gb,
        gb_activation_phases={k: v / GB for k, v in row.phases.items()},
        gb_host=optimizer * gpus / nodes / GB if on_host else 0.0,
        gb_kv_cache=kv * recipe.max_length / GB,
        gb_image_encoder=max(v for k, v in row.phases.items() if k.startswith("encoder")) / GB,
        flops_model=costs.work.model(*load_of),
        flops_run=run,
        gb_sent={k: v / GB for k, v in sent.items()},
        tokens_per_sample=mean,
        passes=each,
        seconds=spent,
        seconds_between=(fast, slow),
        limited_by_transfers=spent > step_seconds(busiest, dict.fromkeys(sent, 0.0), machine, recipe, mesh),
        hours=hours,
        hours_between=None if steps is None else (steps * fast / 3600, steps * slow / 3600),
        gpu_hours=None if hours is None else hours * gpus,
        memory_gb=machine.memory_gb,
        problems=problems,
        fix=None,
        notes=notes,
    )


def mesh_problems(recipe: Recipe, spec: ModelSpec, gpus: int) -> list[str]:
    """Say why the processes cannot share the work that way; empty if they can."""
    size, found = recipe.sequence_parallel.size, []
    if gpus % size:
        found.append(f"sequence_parallel.size {size} does not divide {gpus} GPUs")
    elif recipe.batch.samples < gpus // size:
        found.append(f"batch.samples {recipe.batch.samples} for {gpus // size} data-parallel groups: some would idle")
    if recipe.sequence_parallel.kind == "ulysses" and spec.language.heads % size:
        found.append(f"ulysses over {size} GPUs, but {spec.language.heads} attention heads")
    return found


def describe_parallel(recipe: Recipe, mesh: MeshShape) -> str:
    """Name the parallelism that is really active."""
    size, stage, n = recipe.sequence_parallel.size, recipe.zero_stage, mesh.gpus
    sequence = f"{recipe.sequence_parallel.kind} over {size} GPUs" if size > 1 else "no ring, each GPU holds whole rows"
    sliced = {0: "nothing", 1: "optimizer", 2: "optimizer and gradients", 3: "optimizer, gradients and weights"}[stage]
    zero = f"ZeRO-{stage}: {sliced} in slices over {n} GPUs" if stage and n > 1 else "nothing in slices"
    return f"data {mesh.groups} x sequence {size} ({sequence}); {zero}"


def possible_changes(recipe: Recipe, nodes: int, gpus_per_node: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield changes from the smallest on, as (dotted keys with values, nodes).

    In order: gradient checkpointing, ZeRO, offload, a sequence group, more nodes.
    """
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
    """Return the recipe with dotted keys replaced."""
    for key, value in way.items():
        first, _, rest = key.partition(".")
        part = getattr(recipe, first)
        recipe = recipe.model_copy(update={first: part.model_copy(update={rest: value}) if rest else value})
    return recipe


def smallest_change(
    recipe: Recipe, costs: ModelCosts, machine: Machine, name: str, nodes: int, gpus_per_node: int
) -> str | None:
    """Return the first of `possible_changes` that fits, as options to type; None if none does."""
    for way, count in possible_changes(recipe, nodes, gpus_per_node):
        changed = with_changes(recipe, way)
        if mesh_problems(changed, costs.model.spec, count * gpus_per_node):
            continue
        found = estimate_fit(changed, costs, machine, name, nodes=count, gpus_per_node=gpus_per_node, steps=None)
        if not found.problems:
            words = [f"--set {key}={str(value).lower()}" for key, value in way.items()]
            words += [f"--nodes {count}"] * (count != nodes)
            return f"{' '.join(words)}   ({found.gb_needed:.1f} GB a GPU)"
    return None


def misfit(recipe: str, found: Estimate) -> HardwareError | None:
    """Return the error of an estimate with problems, None where it has none."""
    if not found.problems:
        return None
    return HardwareError(
        f"{recipe} does not run on {found.gpus} x {found.machine}: {'; '.join(found.problems)}",
        fix=found.fix or "a smaller batch.max_tokens, or machines with more memory",
    )
