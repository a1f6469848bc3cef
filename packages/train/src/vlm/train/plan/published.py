"""Predicted and published training times side by side; the planner is fitted to none of them."""

from importlib.resources import files
from pathlib import Path
from typing import TypedDict

from vlm.core.config import Strict, load_yaml, parse
from vlm.train.plan.run_plan import RunPlan
from vlm.train.recipe.recipe import load_recipe


class Point(Strict):
    """One published run; `set` overrides keys of our recipe so that it has the published shape."""

    recipe: str
    machine: str
    nodes: int
    gpus_per_node: int
    steps: int
    hours: float
    set: tuple[str, ...]
    tokens_per_sample: float
    source: str
    length_source: str


class Points(Strict):
    """The table `published_cost.yaml`."""

    points: tuple[Point, ...]


class ComparedHours(TypedDict):
    """Predicted and published hours of one run, `ratio` of the first to the second, and GB of a GPU."""

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
    gb_needed: float
    limited_by_transfers: bool


def published_points() -> list[ComparedHours]:
    """Predict the hours of each published run in the table."""
    path = Path(str(files("vlm.train.plan") / "published_cost.yaml"))
    rows: list[ComparedHours] = []
    for point in parse({"points": load_yaml(path)}, Points, where=path.name).points:
        found = RunPlan.resolve(
            load_recipe(point.recipe, overrides=point.set),
            machine=point.machine,
            nodes=point.nodes,
            gpus_per_node=point.gpus_per_node,
            tokens_per_sample=point.tokens_per_sample,
        ).estimate
        hours = point.steps * found.seconds / 3600
        rows.append(
            {
                "recipe": point.recipe,
                "machine": point.machine,
                "nodes": point.nodes,
                "gpus_per_node": point.gpus_per_node,
                "steps": point.steps,
                "tokens_per_sample": point.tokens_per_sample,
                "source": point.source,
                "length_source": point.length_source,
                "gpus": found.gpus,
                "published_hours": point.hours,
                "predicted_hours": hours,
                "ratio": hours / point.hours,
                "gb_needed": found.gb_needed,
                "limited_by_transfers": found.limited_by_transfers,
            }
        )
    return rows
