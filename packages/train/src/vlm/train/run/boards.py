"""Writers of a step's numbers beside metrics.jsonl (TensorBoard, Weights & Biases), and the rule for a loss spike."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vlm.core.errors import UnknownName
from vlm.core.extras import require

BOARDS = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""Name in a recipe -> the extra it needs."""


class Boards:
    """Writers of scalars by step. TensorBoard files go to `folder`/tensorboard; wandb runs offline without a login.

    Raises:
        UnknownName: no such board.
        HardwareError: its package is not installed.
    """

    def __init__(self, folder: Path, names: Sequence[str], first: int = 0, title: str = "vlm"):
        self.tensorboard: Any = None
        self.wandb: Any = None
        for name in names:
            if name not in BOARDS:
                raise UnknownName("board", name, BOARDS)
            require(BOARDS[name], f"`log: [{name}]`")
        if "tensorboard" in names:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=first)
        if "wandb" in names:
            import wandb

            self.wandb = wandb.init(project="vlm", name=title, dir=str(folder), id=folder.name, resume="allow")

    def write(self, line: Mapping[str, Any]) -> None:
        """Write the numbers of one line of metrics.jsonl."""
        numbers = {k: v for k, v in line.items() if k != "step" and isinstance(v, (int, float))}
        if self.tensorboard is not None:
            for key, value in numbers.items():
                self.tensorboard.add_scalar(key, value, line["step"])
        if self.wandb is not None:
            self.wandb.log(numbers, step=line["step"])

    def close(self) -> None:
        """Flush and close the writers."""
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()


START, WINDOW = 20, 50  # steps whose median is the untrained loss, and the present one
TIMES_START, TIMES_NOW = 2.0, 5.0


def is_spike(losses: Sequence[float], loss: float) -> bool:
    """Return whether a loss is far above both the first and the latest losses; never in the first steps.

    Both, so that noise around a loss that is nearly zero is no spike. The factors are ours.
    """
    if len(losses) < START + WINDOW:
        return False
    return loss > TIMES_START * median(losses[:START]) and loss > TIMES_NOW * median(losses[-WINDOW:])
