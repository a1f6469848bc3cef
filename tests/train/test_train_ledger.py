"""No sample is lost in silence: k faulty of n give exactly k entries, the counts close, too many fail the run."""

import json

import numpy as np
import pytest

from vlm.core.errors import DataError
from vlm.models import load_processor
from vlm.train import checkpoint
from vlm.train.data import Row, Stream
from vlm.train.loop import train
from vlm.train.metrics import Log

FAULTS = {"s4": "truncated png", "s7": "not an image", "s10": "missing", "s15": "not JSON", "s18": "no answer"}


@pytest.fixture
def faulty(home, records, recipe):
    """A recipe over 24 samples of which five cannot be used."""
    folder = home / "dataset/faulty"
    if not folder.exists():
        (folder / "images").mkdir(parents=True)
        for record in records:
            for name in record["image"]:
                (folder / name).write_bytes((home / "dataset/tiny" / name).read_bytes())
        path = folder / "images/4_0.png"
        path.write_bytes(path.read_bytes()[:60])
        (folder / "images/7_0.png").write_text("hello")
        (folder / "images/10_0.png").unlink()
        lines = {r["id"]: json.dumps(r) for r in records}
        lines["s15"] = lines["s15"][:-20]
        lines["s18"] = json.dumps({**records[18], "conversations": records[18]["conversations"][:1]})
        (folder / "train.jsonl").write_text("\n".join(lines.values()) + "\n")
    entry = {"name": "faulty", "file": "dataset/faulty/train.jsonl", "root": "dataset/faulty"}
    return lambda *overrides: recipe("steps=4", *overrides, data=[entry])


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_faulty_sample_is_named_once_and_the_counts_close(faulty, tmp_path):
    train(faulty("max_lost=0.5"), tmp_path, quiet=True)
    ledger = read(tmp_path / "ledger.jsonl")
    assert {e["id"] for e in ledger} == {f"faulty:{int(i[1:]) + 1}" for i in FAULTS} and len(ledger) == len(FAULTS)
    assert {e["what"] for e in ledger} == {"dropped"} and all(e["reason"] for e in ledger)
    counts = json.loads((tmp_path / "summary.json").read_text())["ledger"]
    assert counts == {"in": 24, "used": 19, "dropped": 5, "truncated": 0}
    assert sum(line["samples"] for line in read(tmp_path / "metrics.jsonl")) == 19


def test_truncated_samples_are_used_and_named(recipe, processor, tmp_path):
    whole = Stream(recipe("batch.samples=24", "batch.packing=none"), processor).step(0).rows
    longest = max(len(row.input_ids) for row in whole)
    expected = {f"tiny:{int(row.ids[0][1:]) + 1}" for row in whole if len(row.input_ids) == longest}
    train(recipe("steps=4", f"max_length={longest - 1}", "max_lost=0"), tmp_path, quiet=True)
    ledger = read(tmp_path / "ledger.jsonl")
    assert {e["id"] for e in ledger} == expected and len(ledger) == len(expected)
    assert {(e["what"], e["reason"]) for e in ledger} == {("truncated", f"cut to {longest - 1} tokens")}
    counts = json.loads((tmp_path / "summary.json").read_text())["ledger"]
    assert counts == {"in": 24, "used": 24, "dropped": 0, "truncated": len(expected)}


def test_too_many_lost_fail_the_run_at_once_and_a_higher_limit_goes_on(faulty, tmp_path):
    with pytest.raises(DataError, match=r"of .* samples so far were dropped.*\n.*at most 10\.00%") as error:
        train(faulty("max_lost=0.1", "batch.samples=1", "steps=24"), tmp_path, quiet=True)
    assert "ledger.jsonl" in str(error.value)
    steps = len(read(tmp_path / "metrics.jsonl"))
    assert steps < 23 and len(read(tmp_path / "ledger.jsonl")) == 3, "the third of 24 is the one too many"
    assert not (tmp_path / "model").exists()
    with pytest.raises(DataError, match="so far were dropped"):
        train(faulty("max_lost=0.1", "batch.samples=1", "steps=24"), tmp_path, quiet=True)
    train(faulty("max_lost=0.25", "batch.samples=1", "steps=24"), tmp_path, quiet=True)
    assert len(read(tmp_path / "ledger.jsonl")) == 5
    assert json.loads((tmp_path / "summary.json").read_text())["ledger"]["in"] == 24


def test_a_step_without_a_usable_sample_changes_nothing_and_the_run_goes_on(faulty, tmp_path):
    train(faulty("max_lost=0.25", "batch.samples=1", "steps=24", "save_every=1"), tmp_path, quiet=True)
    steps = {line["step"] for line in read(tmp_path / "metrics.jsonl")}
    lost = {entry["step"] for entry in read(tmp_path / "ledger.jsonl")}
    assert len(lost) == 5 and steps | lost == set(range(24)) and not steps & lost
    assert checkpoint.complete(tmp_path / "checkpoints")


def test_a_loss_that_is_not_finite_names_the_samples(home, recipe, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = home / "pretrained/tiny-nan"
    if not folder.exists():
        folder.mkdir()
        for file in (home / "pretrained/tiny-internvl2").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        state = load_file(folder / "model.safetensors")
        state["language_model.model.norm.weight"][0] = float("nan")
        save_file(state, folder / "model.safetensors")
    broken = recipe("model.start=pretrained/tiny-nan", "batch.samples=2")
    with pytest.raises(DataError, match="loss is nan at step 0") as error:
        train(broken, tmp_path, quiet=True)
    data = Stream(broken, load_processor(folder)).step(0)
    assert all(repr(i) in str(error.value) for row in data.rows for i in row.ids)
    assert not (tmp_path / "model").exists() and not checkpoint.complete(tmp_path / "checkpoints")


def test_a_log_is_cut_back_to_a_step_and_a_torn_last_line_goes(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    for step in range(5):
        log.write(step=step, loss=0.5)
    with log.path.open("a") as f:
        f.write('{"step": 2, "lo')
    log.cut(3)
    assert log.read() == [{"step": step, "loss": 0.5} for step in range(3)]


def test_the_first_label_of_a_document_has_no_predecessor_and_no_weight():
    ids = np.arange(6)
    row = Row(ids, ids, np.full(6, 0.5, np.float32), ids, np.array([0, 2, 6], np.int32), None, ["a", "b"])
    assert row.weight == 0.5 * 4
