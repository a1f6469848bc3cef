"""The loss on records that are not trained on, at each checkpoint and at the end.

held = HeldBack(recipe, processor, engine, me)
held.at(500)            # {"eval_loss": 0.71, "eval_samples": 200}
"""

from typing import TypedDict

import torch

from vlm.core.errors import DataError
from vlm.models.processor import Processor
from vlm.train.recipe.recipe import Recipe
from vlm.train.run.engine import Engine
from vlm.train.run.processes import World
from vlm.train.run.shares import batches, same_for_all
from vlm.train.run.stream import Stream


class HeldLine(TypedDict):
    """What is measured: the loss, weighted as that of training, and the samples that it is of."""

    eval_loss: float
    eval_samples: int


class HeldBack:
    """The held-back records of a recipe (`eval_data`). `dropped` names those that cannot be used, with the reason."""

    def __init__(self, recipe: Recipe, processor: Processor, engine: Engine, me: World):
        self.recipe, self.engine, self.me = recipe, engine, me
        self.dropped: dict[str, str] = {}
        self._last: tuple[int, HeldLine] | None = None
        self._stream = Stream(whole_pass(recipe), processor)
        count, most = len(self._stream.index), recipe.batch.samples
        self._samples = max(n for n in range(1, min(count, most) + 1) if count % n == 0)
        self._stream.recipe = whole_pass(recipe, self._samples)

    def at(self, step: int) -> HeldLine:
        """Return the loss after so many steps; each record counts once. All processes call this.

        Raises:
            DataError: More than `max_lost` of the records cannot be used.
        """
        if self._last is not None and self._last[0] == step:
            return self._last[1]
        loss, weight = torch.zeros((), dtype=torch.float64, device=self.me.device), 0.0
        used = 0
        for number in range(self._stream.total_steps):
            data = same_for_all(self._stream, number, self._stream.step(number), self.me)
            self.dropped |= {lost.id: lost.reason for lost in data.lost if lost.what == "dropped"}
            if data.rows:
                used += data.n_samples - data.n_dropped
                weight += sum(row.weight for row in data.rows)
                loss = loss + sum(map(self.engine.measure, batches(data.rows, self._stream.processor, self.me)))
        total = self.me.total(loss)
        if not weight or len(self.dropped) > self.recipe.max_lost * (used + len(self.dropped)):
            first = "; ".join(f"{id}: {why}" for id, why in list(self.dropped.items())[:3])
            raise DataError(
                f"{len(self.dropped)} of {used + len(self.dropped)} records of eval_data cannot be used: {first}",
                expected=f"at most {self.recipe.max_lost:.2%} of them (max_lost)",
                fix="repair or remove these records",
            )
        self._last = (step, {"eval_loss": total / weight, "eval_samples": used})
        return self._last[1]


def whole_pass(recipe: Recipe, samples: int = 1) -> Recipe:
    """Return the recipe of one pass over the held-back records as they are."""
    once = {"data": recipe.eval_data, "epochs": 1.0, "steps": None, "jpeg_quality": None}
    return recipe.model_copy(update={**once, "batch": recipe.batch.model_copy(update={"samples": samples})})
