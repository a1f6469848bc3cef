"""Predicted against published training times; the planner is fitted to none of them."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from vlm.core.config import Strict, load_yaml, parse
from vlm.train.plan.plan import estimate_on
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
    """The table."""

    points: tuple[Point, ...]


def published_points() -> list[dict[str, Any]]:
    """For each published run: predicted and published hours, their ratio, GB of a GPU, and sources."""
    path = Path(str(files("vlm.train.plan") / "published_cost.yaml"))
    rows = []
    for point in parse({"points": load_yaml(path)}, Points, where=path.name).points:
        found = estimate_on(
            load_recipe(point.recipe, overrides=point.set),
            point.machine,
            nodes=point.nodes,
            gpus_per_node=point.gpus_per_node,
            steps=point.steps,
            tokens_per_sample=point.tokens_per_sample,
        )
        assert found.hours is not None  # steps are given
        rows.append(
            {
                **point.model_dump(mode="json", exclude={"hours", "set"}),
                "gpus": found.gpus,
                "published_hours": point.hours,
                "predicted_hours": found.hours,
                "ratio": found.hours / point.hours,
                "gb_needed": found.gb_needed,
                "limited_by_transfers": found.limited_by_transfers,
            }
        )
    return rows
