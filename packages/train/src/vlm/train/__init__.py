"""Training: recipes, the resolved run, the loop, launchers, and the comparison with published scripts.

>>> from vlm.train import RunPlan, load_recipe
>>> plan = RunPlan.resolve(load_recipe("v2pe-32k"), processes=32, machine="h100")
>>> plan.nodes, plan.recipe.batch.samples
(4, 48)

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.train.parameters.lora import load_adapters
    from vlm.train.plan.faults import Fault
    from vlm.train.plan.run_plan import RunPlan
    from vlm.train.recipe.recipe import Recipe, load_recipe, recipe_names
    from vlm.train.run.loop import train
    from vlm.train.run.metrics import read_account
    from vlm.train.run.stream import Stream

_WHERE = {
    "vlm.train.parameters.lora": ("load_adapters",),
    "vlm.train.plan.faults": ("Fault",),
    "vlm.train.plan.run_plan": ("RunPlan",),
    "vlm.train.recipe.recipe": ("Recipe", "load_recipe", "recipe_names"),
    "vlm.train.run.loop": ("train",),
    "vlm.train.run.metrics": ("read_account",),
    "vlm.train.run.stream": ("Stream",),
}

__all__ = [
    "Fault",
    "Recipe",
    "RunPlan",
    "Stream",
    "load_adapters",
    "load_recipe",
    "read_account",
    "recipe_names",
    "train",
]


def __getattr__(name: str) -> Any:
    module = next((module for module, names in _WHERE.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module), name)
