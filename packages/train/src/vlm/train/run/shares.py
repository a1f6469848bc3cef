"""The rows of a step that this process runs: the same number everywhere, so that collectives stay in step.

for batch in batches(data.rows, processor, me):
    loss += engine.measure(batch)
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from vlm.core.sample.packing import deal
from vlm.models.processor import Processor
from vlm.models.vision.whole import encoder_calls
from vlm.train.run.processes import World
from vlm.train.run.stream import PackedRow, StepData, Stream, to_tensors


def same_for_all(stream: Stream, step: int, data: StepData, me: World) -> StepData:
    """Return the data of a step without any sample that was late for any process: rows must be the same for all."""
    while me.size > 1 and me.agree(bool(data.late)):
        late = me.union(data.late)
        if not me.agree(late != data.late):
            break
        data = stream.step(step, skip=late)
    return data


def most_rows(rows: Sequence[PackedRow], me: World) -> int:
    """Return the number of rows that the busiest process runs."""
    return -(-len(rows) // me.data_size)  # `deal` gives no group more


def batches(rows: Sequence[PackedRow], processor: Processor, me: World) -> Iterator[dict[str, Any]]:
    """Yield the rows of this process as arguments of the model's forward.

    A process with fewer rows than the busiest repeats one with weight 0.
    """
    dealt = [[rows[i] for i in mine] for mine in deal([len(row.input_ids) for row in rows], me.data_size)]
    mine = dealt[me.data_rank]
    pixels_on = torch.device("cpu") if me.sequence else me.device  # of a shared row, a share of the tiles is moved
    for i in range(most_rows(rows, me)):
        batch: dict[str, Any] = to_tensors(mine[i] if i < len(mine) else rows[0], processor, me.device, pixels_on)
        if i >= len(mine):
            batch["loss_weights"] = torch.zeros_like(batch["loss_weights"])
        if me.size > 1 and rows[0].grids is not None:
            # whole images of several shapes take several calls; sliced weights are gathered in each, by all processes
            beside = [given[i] if i < len(given) else rows[0] for given in dealt]
            batch["encoder_calls"] = max(encoder_calls(row.grids or (), me.sequence_size) for row in beside)
        yield batch
