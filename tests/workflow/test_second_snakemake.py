"""A second Snakemake in a folder where one works: a message with the holder, no traceback, nothing touched."""

import subprocess
import sys
from pathlib import Path

from vlm.cli.workflow.guards import exclusive


def test_a_second_snakemake_ends_with_a_message(checkout: Path) -> None:
    line = [sys.executable, "-m", "snakemake", "--profile", "profiles/local", "--cores", "1"]
    with exclusive(str(checkout / "runs/quickstart")):
        before = sorted(path for path in checkout.rglob("*") if ".snakemake" not in path.parts)
        done = subprocess.run(line, cwd=checkout, capture_output=True, text=True, timeout=300)
        after = sorted(path for path in checkout.rglob("*") if ".snakemake" not in path.parts)
    said = done.stdout + done.stderr
    assert done.returncode == 6
    assert 'is in use by {"purpose": "snakemake", "pid":' in said and "fix: wait for it" in said
    assert "Traceback" not in said and "File " not in said.replace("File(s)", "")
    assert [path for path in after if path not in before and "__pycache__" not in path.parts] == []
