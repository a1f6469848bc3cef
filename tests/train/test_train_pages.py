"""What a training writes is what the page of runs reads: its numbers, curves and ledger, with nothing left over."""

from pathlib import Path

from vlm.cli.server.views.charts import CHARTS, stage_charts
from vlm.cli.server.views.runs import Runs
from vlm.train.run.loop import train


def test_the_page_of_runs_shows_every_number_of_a_real_training(recipe, tmp_path: Path) -> None:
    train(recipe("steps=4"), tmp_path / "runs/mine/train/tiny", quiet=True)
    runs = Runs(tmp_path / "runs")
    (head,) = runs.overview()["stages"]
    assert (head["id"], head["state"], head["step"], head["steps"]) == ("mine/train/tiny", "finished", 4, 4)
    assert head["loss"] > 0 and head["tokens_per_s"] > 0 and head["memory_gb"] > 0 and not head["damaged"]
    log = runs.stage("mine/train/tiny")
    assert log is not None
    charts = stage_charts(log)
    assert [chart["title"] for chart in charts] == [title for title, _, _ in CHARTS]
    assert all(len(line["points"]) == 4 for chart in charts for line in chart["lines"])
    ledger = log.ledger()
    assert ledger["closes"] and ledger["counts"]["in"] == ledger["counts"]["used"] == 24
