"""A ledger without losses, in an environment of its own: `datasets` loads it, as others that read JSONL by lines."""

from pathlib import Path
from typing import Any

import pytest

from support.environments import call, environment
from vlm.core.ledger import DroppedRecord, write_ledger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LOAD = """
import sys
from datasets import load_dataset
print(load_dataset("json", data_files=sys.argv[1], split="train")["reason"][:])
"""


@pytest.mark.parametrize("losses", [[], [DroppedRecord("a:1", "read", "no picture")]], ids=["empty", "one"])
def test_a_ledger_loads_in_datasets(losses: list[DroppedRecord], tmp_path: Path, request: Any) -> None:
    python = environment(request.config.cache, "datasets==5.2.0")
    write_ledger(tmp_path / "ledger.jsonl", losses)
    done = call(python, tmp_path, "-c", LOAD, tmp_path / "ledger.jsonl")
    reasons = [loss.reason for loss in losses] or ["no record was dropped"]
    assert done.stdout.splitlines()[-1] == str(reasons)
