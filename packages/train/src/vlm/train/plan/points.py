"""The published training times: the table `published_cost.yaml`."""

from functools import cache
from importlib.resources import files
from pathlib import Path

from vlm.core.config import Strict, load_yaml, parse


class Point(Strict):
    """One published run.

    Attributes:
        recipe: our recipe of it.
        machine: kind of device.
        nodes: machines.
        gpus_per_node: devices of each.
        steps: of the run.
        hours: as published.
        set: overrides that give our recipe the shape of the published run.
        tokens_per_sample: mean length in that shape.
        our_tokens: mean length of a sample of our recipe as it is.
        gap: what separates the plan of our recipe from the published hours.
        source: of the hours.
        length_source: of the lengths.
    """

    recipe: str
    machine: str
    nodes: int
    gpus_per_node: int
    steps: int
    hours: float
    set: tuple[str, ...]
    tokens_per_sample: float
    our_tokens: float
    gap: str
    source: str
    length_source: str

    @property
    def gpus(self) -> int:
        """Devices in all."""
        return self.nodes * self.gpus_per_node


class Points(Strict):
    """The table."""

    points: tuple[Point, ...]


@cache
def load_points() -> tuple[Point, ...]:
    """Return the published runs."""
    path = Path(str(files("vlm.train.plan") / "published_cost.yaml"))
    return parse({"points": load_yaml(path)}, Points, where=path.name).points


def nearest_point(recipe: str, gpus: int) -> Point | None:
    """Return the published run of a recipe, the one on as many devices where there are several; None without any."""
    found = [point for point in load_points() if point.recipe == recipe]
    return min(found, key=lambda point: abs(point.gpus - gpus), default=None)
