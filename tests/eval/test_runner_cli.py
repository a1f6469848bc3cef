"""`vlm eval` and `vlm report` as a person meets them: names in any case, and an error that says what to type next."""

import json
from pathlib import Path

import pytest

from vlm.cli.commands.eval import _shard, evaluate
from vlm.cli.commands.report import report
from vlm.cli.find import model_name
from vlm.core.errors import ConfigError, DataError, UnknownName


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    return tmp_path


def checkpoint(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_without_data_the_lines_that_get_it_are_shown():
    with pytest.raises(DataError) as error:
        evaluate(["mileBench"])
    for line in ("vlm download MileBench", "vlm data organize MileBench", "vlm eval MileBench --mini"):
        assert line in str(error.value)


def test_an_unknown_benchmark_names_the_nearest():
    with pytest.raises(UnknownName, match=r"(?i)did you mean milebench"):
        evaluate(["mileBenk"])


def test_model_names_leave_generic_folders_out():
    assert model_name(Path("/h/runs/demo/train/2-sft/export")) == "demo-2-sft"
    assert model_name(Path("/h/pretrained/V2PE-32K")) == "V2PE-32K"
    assert model_name(Path("tiny")) == "tiny"


def test_shards_are_parsed_or_refused():
    assert _shard("3/4") == (3, 4)
    for bad in ("4/4", "1", "a/b", "-1/2"):
        with pytest.raises(ConfigError, match="I/N"):
            _shard(bad)


def test_faults_of_options_are_reported_before_a_model_is_loaded(home):
    checkpoint(home / "pretrained" / "tiny")
    with pytest.raises(ConfigError, match=r"(?s)positions.*batch_size"):
        evaluate(["pope"], model="tiny", positions="wrong", batch_size=0, mini=True)


def test_report_writes_page_and_tables(home, capsys):
    stage = home / "runs" / "demo" / "train" / "1"
    stage.mkdir(parents=True)
    (stage / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    report([Path("runs/demo")], out=Path("runs/demo/report/index.html"), formats=["md", "csv"], samples=60, seed=0)
    written = {"index.html", "report.json", "report.md", "report.csv"}
    assert {p.name for p in (home / "runs/demo/report").iterdir()} == written
    assert "0 evaluations, 1 training stages" in capsys.readouterr().out
