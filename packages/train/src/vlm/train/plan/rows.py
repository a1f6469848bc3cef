"""The length of rows with which a step needs the fewest passes that fit the memory of a machine."""

from dataclasses import replace

from vlm.train.plan.fit import Estimate
from vlm.train.plan.run_plan import RunPlan

LEFT = 1 / 8
"""Share of the memory that stays free (ours): the activations of a GPU are planned, not measured."""


def longest_rows(plan: RunPlan) -> tuple[RunPlan, Estimate] | None:
    """Return the plan with the shortest rows of the fewest passes that fit, and its bound; None where none fits.

    Rows hold whole samples of `max_length`, so that no step needs more passes than the plan says. Neither the samples
    of a step nor its loss change. `batch.max_tiles`, where it is a limit, grows as the rows do.
    """
    batch, each = plan.recipe.batch, plan.samples_per_group
    limited = batch.max_tiles < 1_000_000
    tiles = -(-batch.max_tiles * plan.recipe.max_length // batch.max_tokens)  # of a sample

    def tried(samples: int) -> tuple[RunPlan, Estimate]:
        limits = {"max_tokens": samples * plan.recipe.max_length}
        limits |= {"max_tiles": samples * tiles} if limited else {}
        made = replace(plan, recipe=plan.recipe.model_copy(update={"batch": batch.model_copy(update=limits)}))
        made.__dict__["costs"] = plan.costs  # of the same model: what is traced once serves all
        return made, made.bound

    def fits(samples: int) -> bool:
        found = tried(samples)[1]
        return not found.problems and found.gb_needed <= (1 - LEFT) * found.memory_gb

    if not fits(1):
        return None
    most, least = each, 1
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    passes = -(-each // least)
    return tried(-(-each // passes))
