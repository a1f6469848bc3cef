"""What a command pays before it works: a wrong name costs no torch, and an evaluation no encoder that it has not."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "timm")


def run(home: Path, *line: str) -> tuple[str, set[str]]:
    """Run a command in a process of its own; return what it says on stderr, and which heavy modules it imported."""
    code = (
        f"import sys; sys.argv = {['vlm', *line]!r}\n"
        "from vlm.cli.main import main\n"
        "try: main()\n"
        "finally: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"VLM_HOME": str(home)})
    return done.stderr, set(HEAVY) & set(done.stdout.split())


@pytest.mark.parametrize(
    "line",
    [
        ("eval", "pope", "--mini", "--model"),
        ("eval", "mmmu", "--mini", "--model"),
        ("chat", "--model"),
        ("weights", "inspect"),
        ("weights", "extract", "--part", "projector", "-o", "out"),
    ],
    ids=" ".join,
)
def test_a_wrong_model_name_is_refused_before_torch_is_imported(tmp_path: Path, line: tuple[str, ...]) -> None:
    said, heavy = run(tmp_path, *line, "V2PE-23K")
    assert "V2PE-23K" in said
    assert not heavy
