"""Writers of a step's numbers beside metrics.jsonl (TensorBoard, Weights & Biases, MLflow), and loss spikes."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vlm.core.errors import UnknownName
from vlm.core.extras import require

BOARDS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Name in a recipe -> the extra it needs."""


class Boards:
    """Writers of scalars by step.

    TensorBoard files go to `folder`/tensorboard. Weights & Biases writes to `folder`/wandb, and sends nothing unless
    WANDB_MODE or WANDB_API_KEY is set: `wandb sync` sends it later. MLflow writes to $MLFLOW_TRACKING_URI, by default
    to `folder`/mlflow; a resumed run continues the one in the store.

    Raises:
        UnknownName: no such board.
        HardwareError: its package is not installed.
    """

    def __init__(self, folder: Path, names: Sequence[str], first: int = 0, title: str = "vlm"):
        self.tensorboard: Any = None
        self.wandb: Any = None
        self.mlflow: Any = None
        for name in names:
            if name not in BOARDS:
                raise UnknownName("board", name, BOARDS)
            require(BOARDS[name], f"`log: [{name}]`")
        if "tensorboard" in names:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=first)
        if "wandb" in names:
            import wandb

            signed_in = {"WANDB_MODE", "WANDB_API_KEY"} & os.environ.keys()
            self.wandb = wandb.init(
                project="vlm",
                name=title,
                dir=str(folder),
                id=folder.name,
                resume="allow",
                mode=None if signed_in else "offline",
            )
        if "mlflow" in names:
            self.mlflow = MlflowRun(folder, title)

    def write(self, line: Mapping[str, Any]) -> None:
        """Write the numbers of one line of metrics.jsonl."""
        numbers = {k: v for k, v in line.items() if k != "step" and isinstance(v, (int, float))}
        if self.tensorboard is not None:
            for key, value in numbers.items():
                self.tensorboard.add_scalar(key, value, line["step"])
        if self.wandb is not None:
            self.wandb.log(numbers, step=line["step"])
        if self.mlflow is not None:
            self.mlflow.write(numbers, line["step"])

    def close(self) -> None:
        """Flush and close the writers."""
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()
        if self.mlflow is not None:
            self.mlflow.close()


class MlflowRun:
    """One run of MLflow, found again by its folder's tag: a stage that is resumed continues it."""

    TAG = "vlm.folder"

    def __init__(self, folder: Path, title: str):
        from mlflow import MlflowClient

        where = os.environ.get("MLFLOW_TRACKING_URI")
        if not where:
            where = (folder / "mlflow").absolute().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its switch for a store without a server
        self.client = MlflowClient(tracking_uri=where)
        found = self.client.get_experiment_by_name("vlm")
        experiment = found.experiment_id if found is not None else self.client.create_experiment("vlm")
        tag = str(folder.absolute())
        before = [r for r in self.client.search_runs([experiment]) if r.data.tags.get(self.TAG) == tag]
        run = before[0] if before else self.client.create_run(experiment, run_name=title, tags={self.TAG: tag})
        self.id = run.info.run_id

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Write the numbers of a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(k, float(v), now, step) for k, v in numbers.items()])

    def close(self) -> None:
        """Say that the run is over."""
        self.client.set_terminated(self.id)


START, WINDOW = 20, 50  # steps whose median is the untrained loss, and the present one
TIMES_START, TIMES_NOW = 2.0, 5.0


def is_spike(losses: Sequence[float], loss: float) -> bool:
    """Return whether a loss is far above both the first and the latest losses; never in the first steps.

    Both, so that noise around a loss that is nearly zero is no spike. The factors are ours.
    """
    if len(losses) < START + WINDOW:
        return False
    return loss > TIMES_START * median(losses[:START]) and loss > TIMES_NOW * median(losses[-WINDOW:])
