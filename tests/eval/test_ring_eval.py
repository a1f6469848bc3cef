"""Teacher forcing over a ring of two real processes: the same bytes as one process alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.load import save_model
from vlm.models.specs import load_preset

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "tiny"
    return (
        save_model(build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=0), folder, tokenizer=TOKENIZER)
        or folder
    )


def evaluate(tmp_path, weights, *words):
    line = ["-m", "vlm.cli.main", "eval", "MM-NIAH-long-128k", "--mini", "--limit", "6", "--stride", "1"]
    env = {"PATH": "/usr/bin:/bin", "VLM_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *line, "--model", str(weights), "--name", "m", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, cwd=tmp_path)


def test_a_ring_of_two_gives_the_results_of_one_and_other_benchmarks_are_refused(tmp_path, weights):
    written = []
    for name, words in (("one", ()), ("two", ("--processes", "2"))):
        done = evaluate(tmp_path, weights, "--out", name, *words)
        assert done.returncode == 0, done.stderr
        written.append((tmp_path / name / "m/MM-NIAH-long-128k/stride1/results.jsonl").read_bytes())
    assert written[0] == written[1]
    rows = [json.loads(line) for line in written[0].splitlines()]
    assert len(rows) == 6 and any(row["completion"] for row in rows)
    refused = evaluate(tmp_path, weights, "--processes", "2", "POPE")
    assert refused.returncode == 2 and "POPE, where a model answers by itself" in refused.stderr
