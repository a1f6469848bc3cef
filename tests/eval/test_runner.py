"""The runner: typed outcomes, resume after kill -9, shards, blind control, the same bytes in every case."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import fake_backend as fake
from vlm.core.errors import ConfigError, DataError, LockedError
from vlm.core.home import locked
from vlm.eval.run.blind import shuffle_media
from vlm.eval.run.runner import Options, run_evaluation

SCRIPT = Path(fake.__file__)


FIELDS = {"benchmark", "id", "group", "outcome", "prompt", "images", "completion", "extracted"}
FIELDS |= {"score", "strict_score", "why", "gold", "meta", "key", "tokens", "max_position"}


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    fake.install(monkeypatch.setattr)


def evaluate(tmp_path, out="out", backend=None, **options):
    backend = backend or fake.FakeBackend()
    options = Options(**{"batch_size": 4, **options})
    summary = run_evaluation(fake.benchmark(), backend, tmp_path / out, options, data=tmp_path / "data")
    return summary, backend


def rows(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def asked_ids(backend):
    return [id_ for batch in backend.asked for id_ in batch]


def test_results_are_in_data_order_with_both_scores_and_the_whole_record(tmp_path):
    summary, _ = evaluate(tmp_path)
    result = rows(tmp_path / "out")
    assert [r["id"] for r in result] == [f"id{i}" for i in range(fake.N)]
    assert set(result[0]) == FIELDS
    assert {r["outcome"] for r in result} == {"ok", "truncated"}
    assert [r["id"] for r in result if r["score"] != r["strict_score"]] in (["id1"], [])
    assert summary["metrics"][0]["scored"] == summary["metrics"][0]["total"] == fake.N
    assert summary["published"][0]["value"] == 50.0
    assert sum(summary["outcomes"].values()) == fake.N
    for name in ("results.jsonl", "summary.json", "run.json", "timing.json"):
        assert (tmp_path / "out" / name).exists()


def test_a_second_run_computes_nothing_and_changes_no_byte(tmp_path):
    evaluate(tmp_path)
    before = [(tmp_path / "out" / name).read_bytes() for name in ("results.jsonl", "summary.json")]
    summary, backend = evaluate(tmp_path, batch_size=1)
    assert backend.asked == []
    assert summary["metrics"][0]["total"] == fake.N
    assert [(tmp_path / "out" / name).read_bytes() for name in ("results.jsonl", "summary.json")] == before


@pytest.mark.parametrize("change", [{"fingerprint": "weights-2"}, {"settings": {"stride": 64}}])
def test_other_weights_or_settings_are_asked_again(tmp_path, change):
    evaluate(tmp_path)
    _, backend = evaluate(tmp_path, backend=fake.FakeBackend(**change), replace=True)
    assert len(asked_ids(backend)) == fake.N


def test_changed_media_are_asked_again(tmp_path):
    evaluate(tmp_path)
    fake.Image.new("RGB", (9, 9)).save(tmp_path / "data" / "3.png")
    from vlm.eval.keys import file_hash

    file_hash.cache_clear()
    _, backend = evaluate(tmp_path, replace=True)
    assert sorted(asked_ids(backend)) == ["id6", "id7"]


def test_each_failure_is_typed_at_its_own_item_and_costs_no_neighbor_its_answer(tmp_path):
    faults = {
        "oom_alone": frozenset({"id3"}),
        "broken": frozenset({"id11"}),
        "unreadable": frozenset({"id20"}),
        "too_long": frozenset({"id30"}),
    }
    summary, backend = evaluate(tmp_path, backend=fake.FakeBackend(**faults))
    evaluate(tmp_path, "clean")
    result, clean = rows(tmp_path / "out"), rows(tmp_path / "clean")
    failed = {r["id"]: r["outcome"] for r in result if r["outcome"] not in ("ok", "truncated")}
    assert failed == {"id3": "oom", "id11": "error", "id20": "error", "id30": "refused"}
    for row, other in zip(result, clean, strict=True):
        if row["id"] in failed:
            assert row["score"] is row["strict_score"] is row["completion"] is None
        else:
            assert row == other
    why = {r["id"]: r["why"] for r in result if r["id"] in failed}
    assert why["id11"] == "ValueError: bad input id11" and "cannot be read" in why["id20"]
    assert backend.recovered > 0
    assert summary["metrics"][0]["scored"] == fake.N - 4 and summary["metrics"][0]["total"] == fake.N


def test_running_out_of_memory_in_a_batch_asks_smaller_ones_and_answers_all(tmp_path):
    summary, _ = evaluate(tmp_path, backend=fake.FakeBackend(oom_above=1), batch_size=8)
    evaluate(tmp_path, "clean")
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == (tmp_path / "clean" / "results.jsonl").read_bytes()
    assert "oom" not in summary["outcomes"]


def test_failures_are_kept_until_asked_for_again(tmp_path):
    evaluate(tmp_path, backend=fake.FakeBackend(oom_alone=frozenset({"id3"})))
    _, backend = evaluate(tmp_path)
    assert backend.asked == []
    summary, backend = evaluate(tmp_path, retry_failed=True)
    assert backend.asked == [["id3"]] and "oom" not in summary["outcomes"]


def test_a_run_without_any_answer_is_an_error_that_names_the_reason(tmp_path):
    backend = fake.FakeBackend(unreadable=frozenset(f"id{i}" for i in range(fake.N)))
    with pytest.raises(DataError, match=r"none of 40 items was answered.*cannot be read"):
        evaluate(tmp_path, backend=backend)


def test_ctrl_c_passes_through_after_the_state_is_safe(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, backend=fake.FakeBackend(interrupt_after=3))
    _, backend = evaluate(tmp_path)
    assert 0 < len(asked_ids(backend)) < fake.N
    evaluate(tmp_path, "clean")
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == (tmp_path / "clean" / "results.jsonl").read_bytes()


def test_three_shards_and_one_run_give_the_same_bytes_and_the_last_shard_merges(tmp_path):
    evaluate(tmp_path, "one")
    asked = []
    for number in (2, 0, 1):
        assert not (tmp_path / "three" / "results.jsonl").exists()
        summary, backend = evaluate(tmp_path, "three", shard=(number, 3))
        asked += asked_ids(backend)
    assert summary is not None and sorted(asked) == sorted(f"id{i}" for i in range(fake.N))
    for name in ("results.jsonl", "summary.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()


def test_another_number_of_workers_takes_over_what_is_done(tmp_path):
    _, first = evaluate(tmp_path, shard=(0, 3))
    _, rest = evaluate(tmp_path)
    assert sorted(asked_ids(first) + asked_ids(rest)) == sorted(f"id{i}" for i in range(fake.N))


def test_a_shard_outside_the_count_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="shard 3/3"):
        evaluate(tmp_path, shard=(3, 3))


def test_a_directory_in_use_is_refused(tmp_path):
    with locked(tmp_path / "out", "a test"), pytest.raises(LockedError, match="a test"):
        evaluate(tmp_path)


def test_one_batch_has_one_token_budget(tmp_path):
    _, backend = evaluate(tmp_path, batch_size=40)
    long = {f"id{i}" for i in range(0, fake.N, 7)}
    assert all(set(batch) <= long or not long & set(batch) for batch in backend.asked)


def test_limit_takes_the_first_items_and_says_so(tmp_path):
    summary, _ = evaluate(tmp_path, limit=5)
    assert len(rows(tmp_path / "out")) == 5
    assert summary["data"] == {"items": 5, "available": fake.N, "limit": 5, "mini": False}


def test_the_blind_control_gives_every_item_only_foreign_images(tmp_path):
    items = fake.make_items(tmp_path)
    blind = shuffle_media(items, seed=1)

    def paths(item):
        return [p["path"] for m in item.messages for p in m["content"] if p["type"] == "image"]

    for item, other in zip(items, blind, strict=True):
        assert len(paths(item)) == len(paths(other)) and not set(paths(item)) & set(paths(other))
    assert sorted(p for i in items for p in paths(i)) == sorted(p for i in blind for p in paths(i))
    assert blind == shuffle_media(items, seed=1) != shuffle_media(items, seed=2)
    assert [i.gold for i in items] == [i.gold for i in blind]


def test_the_blind_control_refuses_a_benchmark_with_one_image(tmp_path):
    with pytest.raises(DataError, match="no medium of another item"):
        shuffle_media(fake.make_items(tmp_path)[:2])


def start(tmp_path, out, batch_size, shard="0/1", seconds=0.03):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "data"), str(tmp_path / out), str(batch_size), shard]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout.readline().strip() == b"started", process.stderr.read().decode()
    return process


def finish(process):
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error.decode()


def test_kill_9_at_random_moments_then_resume_gives_the_same_bytes(tmp_path):
    evaluate(tmp_path, "clean", batch_size=2)
    rng = random.Random(5)
    log = tmp_path / "killed" / "outcomes.jsonl"
    kept = []
    for _ in range(4):
        process = start(tmp_path, "killed", 2, seconds=0.1)
        before = log.stat().st_size if log.exists() else 0
        while not log.exists() or log.stat().st_size <= before:  # at least one batch of this process is on the disk
            time.sleep(0.005)
        time.sleep(rng.random() * 0.25)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        kept.append(log.stat().st_size)
    assert kept == sorted(set(kept)) and not (tmp_path / "killed" / "results.jsonl").exists()
    finish(start(tmp_path, "killed", 3, seconds=0))
    for name in ("results.jsonl", "summary.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes()


def test_three_processes_at_once_give_the_same_bytes_as_one(tmp_path):
    evaluate(tmp_path, "clean")
    processes = [start(tmp_path, "three", 4, f"{number}/3", seconds=0.01) for number in range(3)]
    for process in processes:
        finish(process)
    assert (tmp_path / "three" / "results.jsonl").read_bytes() == (tmp_path / "clean" / "results.jsonl").read_bytes()
