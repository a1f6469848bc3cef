"""Weights & Biases and MLflow, offline: each number of each step once, in one run also after a resume."""

import sys
from pathlib import Path

import pytest

from vlm.train.recipe.recipe import load_recipe
from vlm.train.run.boards import BOARDS, Boards


def write(folder: Path, name: str) -> None:
    """Two processes' worth of a stage: steps 0 to 3, a checkpoint at 2, then 2 to 4 again."""
    for first, end in ((0, 4), (2, 5)):
        board = Boards(folder, [name], first=first, title="a [red] stage")
        for step in range(first, end):
            board.write({"step": step, "loss": 10.0 * first + step, "lr": 0.1, "note": "text"})
        board.close()


@pytest.mark.slow
def test_mlflow_keeps_one_run_in_a_folder_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny (pip install mlflow-skinny)")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "train/stage"
    write(folder, "mlflow")
    assert [path.name for path in tmp_path.iterdir()] == ["train"], "nothing is left where one stands"
    client = mlflow.MlflowClient(tracking_uri=(folder / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("vlm").experiment_id])
    assert (run.info.run_name, run.info.status) == ("a [red] stage", "FINISHED")
    last = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert last == {0: 0, 1: 1, 2: 22, 3: 23, 4: 24}
    assert set(run.data.metrics) == {"loss", "lr"}


@pytest.mark.slow
def test_wandb_is_offline_unless_asked_and_needs_no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb (pip install wandb)")
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "train/stage"
    folder.mkdir(parents=True)
    write(folder, "wandb")
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    assert runs and all(list(run.glob("*.wandb")) for run in runs)
    assert "wandb" in sys.modules


def test_a_recipe_may_name_each_board() -> None:
    names = list(BOARDS)
    assert names == ["tensorboard", "wandb", "mlflow"]
    assert load_recipe("quickstart-v2pe-sft", overrides=(f"log={names}",)).log == tuple(names)
