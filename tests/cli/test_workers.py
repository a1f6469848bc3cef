"""`vlm eval --workers N`: real processes that share items and GPUs; the results are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlm.cli.options import PlacementOptions
from vlm.cli.workers import over_gpus, share_gpus
from vlm.core.errors import ConfigError

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"


def vlm(home, *words, **variables):
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    env |= {"VLM_HOME": str(home), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "vlm.cli.main", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=home)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("workers")
    made = vlm(home, "weights", "make", "tiny-internvl2", "--tokenizer", TOKENIZER, "--out", "pretrained/tiny")
    assert made.returncode == 0, made.stderr
    return home


def results(home, out):
    (path,) = (home / out).rglob("results.jsonl")
    summary = json.loads(path.with_name("summary.json").read_text())
    return path.read_bytes(), {k: summary[k] for k in ("metrics", "counts") if k in summary}


def test_two_workers_write_what_one_process_writes_and_one_of_them_reports(home):
    words = ("eval", "ai2d", "--model", "tiny", "--mini", "--device", "cpu")
    alone = vlm(home, *words, "--out", "alone")
    shared = vlm(home, *words, "--out", "shared", "--workers", "2")
    assert alone.returncode == shared.returncode == 0, shared.stderr
    assert results(home, "shared") == results(home, "alone")
    assert len([line for line in shared.stdout.splitlines() if "AI2D (test)" in line]) == 1
    folders = sorted(path.name for path in (home / "shared").rglob("shards/*"))
    assert folders == ["0-of-2", "1-of-2"]


def test_the_error_of_a_worker_is_the_error_of_the_command(home):
    failed = vlm(
        home, "eval", "ai2d", "--model", "tiny", "--mini", "--out", "x", "--workers", "2", "--device", "cuda:9"
    )
    assert failed.returncode == 7 and failed.stderr.count("error:") == 1, failed.stderr
    assert "Traceback" not in failed.stderr


def test_gpus_are_shared_equally_or_not_at_all():
    assert share_gpus(list("0123"), 2) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    assert share_gpus([], 3) == [{}, {}, {}]
    for workers in (3, 8):
        with pytest.raises(ConfigError, match=f"--workers {workers} with 4 GPUs.*(\n.*)*1, 2, 4"):
            share_gpus(list("0123"), workers)


def test_a_worker_with_several_gpus_lays_the_model_over_them(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert over_gpus(PlacementOptions()).device == "map"
    assert over_gpus(PlacementOptions(device="cpu")).device == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert over_gpus(PlacementOptions()).device == "auto"


@pytest.mark.parametrize("other", [("--shard", "0/2"), ("--processes", "2")])
def test_one_way_to_share_is_enough(home, other):
    found = vlm(home, "eval", "mm-niah-long-128k", "--model", "tiny", "--mini", "--workers", "2", *other)
    assert found.returncode == 2 and "one way to share the items" in found.stderr
