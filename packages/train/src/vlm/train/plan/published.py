"""Planned and published training times side by side; the planner is fitted to none of them."""

import math
from collections.abc import Sequence
from typing import TypedDict

from vlm.train.plan.machines import EFFICIENCY
from vlm.train.plan.points import Point, load_points
from vlm.train.plan.run_plan import RunPlan
from vlm.train.recipe.recipe import load_recipe


class ComparedHours(TypedDict):
    """Planned and published hours of one run.

    `predicted_hours` are at EFFICIENCY in the published shape, `ratio` is theirs to the published ones, `between` the
    estimate, `left_out` the estimate at an efficiency that the other runs and the literature give. `our_hours` and
    `our_between` are of our recipe as it is, `bound_hours` its bound: each sample at `max_length`, slowest efficiency.
    """

    recipe: str
    machine: str
    nodes: int
    gpus_per_node: int
    steps: int
    tokens_per_sample: float
    source: str
    length_source: str
    gpus: int
    published_hours: float
    predicted_hours: float
    ratio: float
    between: tuple[float, float]
    efficiency: float
    left_out: tuple[float, float]
    gb_needed: float
    limited_by_transfers: bool
    our_tokens: float
    our_hours: float
    our_between: tuple[float, float]
    our_passes: int
    bound_hours: float
    gap: str


def published_points() -> list[ComparedHours]:
    """Plan each published run of the table, in its own shape and as our recipe does it."""
    rows = [compared(point) for point in load_points()]
    for row in rows:
        low, high = row["between"]
        scale = EFFICIENCY / efficiency_without(row["recipe"], rows)
        row["left_out"] = (low * scale, high * scale)
    return rows


def compared(point: Point) -> ComparedHours:
    """Plan one published run; `left_out` is still `between`."""

    def plan(overrides: Sequence[str], tokens: float) -> RunPlan:
        return RunPlan.resolve(
            load_recipe(point.recipe, overrides=tuple(overrides)),
            machine=point.machine,
            nodes=point.nodes,
            gpus_per_node=point.gpus_per_node,
            tokens_per_sample=tokens,
        )

    ours, published = plan((), point.our_tokens), plan(point.set, point.tokens_per_sample).estimate
    each, hours = point.steps / 3600, point.steps * published.seconds / 3600
    between = published.seconds_between[0] * each, published.seconds_between[1] * each
    return {
        "recipe": point.recipe,
        "machine": point.machine,
        "nodes": point.nodes,
        "gpus_per_node": point.gpus_per_node,
        "steps": point.steps,
        "tokens_per_sample": point.tokens_per_sample,
        "source": point.source,
        "length_source": point.length_source,
        "gpus": point.gpus,
        "published_hours": point.hours,
        "predicted_hours": hours,
        "ratio": hours / point.hours,
        "between": between,
        "efficiency": EFFICIENCY * hours / point.hours,
        "left_out": between,
        "gb_needed": published.gb_needed,
        "limited_by_transfers": published.limited_by_transfers,
        "our_tokens": point.our_tokens,
        "our_hours": ours.estimate.seconds * each,
        "our_between": (ours.estimate.seconds_between[0] * each, ours.estimate.seconds_between[1] * each),
        "our_passes": ours.estimate.passes,
        "bound_hours": ours.bound.seconds_between[1] * each,
        "gap": point.gap,
    }


def efficiency_without(recipe: str, rows: Sequence[ComparedHours]) -> float:
    """Return the efficiency that all but one recipe's runs give: the geometric mean of theirs and of EFFICIENCY.

    Two figures of the same recipe count once, as their mean: the second is the first on twice the GPUs.
    """
    others = {row["recipe"] for row in rows} - {recipe}
    logs = [[math.log(row["efficiency"]) for row in rows if row["recipe"] == name] for name in sorted(others)]
    means = [sum(found) / len(found) for found in logs]
    return math.exp((math.log(EFFICIENCY) + sum(means)) / (1 + len(means)))
