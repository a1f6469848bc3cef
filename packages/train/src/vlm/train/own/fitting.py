"""The smallest change that lets a recipe run in the memory of this machine."""

import os
from dataclasses import replace
from typing import Any

import torch

from vlm.train.plan.fit import Estimate, estimate_fit, mesh_problems, possible_changes, with_changes
from vlm.train.plan.machines import Machine
from vlm.train.plan.run_plan import RunPlan
from vlm.train.recipe.recipe import Recipe


def machine_here() -> Machine:
    """Return what a plan needs of this machine's devices: their memory, of one GPU or of the host."""
    cuda = torch.cuda.is_available()
    memory = (
        min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
        if cuda
        else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    why = "this machine; only its memory counts here"
    return Machine(memory_gb=memory / 1e9, bf16_tflops=1, fp32_tflops=1, link_gbs=1, net_gbs=1, source=why)


def fitted(recipe: Recipe, processes: int, machine: Machine | None = None) -> tuple[dict[str, Any], Estimate]:
    """Return the dotted keys to change so that a recipe fits, none where it does or where nothing helps; the estimate.

    Args:
        recipe: The recipe.
        processes: That share a step, on one machine.
        machine: By default this one.
    """
    machine, plan = machine or machine_here(), RunPlan.resolve(recipe, processes)
    name = "cuda" if torch.cuda.is_available() else "cpu"

    def estimate(changed: Recipe) -> Estimate:
        each = {"nodes": 1, "gpus_per_node": processes, "steps": None}
        return estimate_fit(changed, plan.costs, machine, name, **each)  # type: ignore[arg-type]

    found = estimate(recipe)
    if not found.problems:
        return {}, found
    for way, nodes in possible_changes(recipe, 1, processes):
        changed = with_changes(recipe, way)
        if (
            nodes == 1
            and not mesh_problems(changed, plan.spec, processes)
            and not (tried := estimate(changed)).problems
        ):
            return way, tried
    return {}, replace(found, fix="--lora, or a machine with more memory")
