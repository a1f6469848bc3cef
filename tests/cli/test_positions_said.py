"""Each command that runs or writes a model says in a line which positions it uses, and why."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlm.cli.show.positions import positions_line
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.load import save_model
from vlm.models.specs import load_preset

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"
TRAINED = {
    "plain": {},
    "fixed": {"strides": 2.0},
    "random": {"strides": 1.0, "stride_choices": (0.25, 0.5, 1.0, 2.0, 4.0)},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models that differ in how their positions were trained."""
    home = tmp_path_factory.mktemp("home")
    for name, changes in TRAINED.items():
        model = build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=0)
        model.spec = model.spec.model_copy(update=changes)
        save_model(model, home / "pretrained" / name, tokenizer=TOKENIZER)
    return home


def vlm(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "VLM_HOME": str(home), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "vlm.cli.main", *words], capture_output=True, text=True, env=env, cwd=home, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    ("name", "asked", "line"),
    [
        ("plain", "model", "0, 1, 2, ... (the checkpoint says nothing of V2PE; --stride turns it on)"),
        ("plain", 64.0, "V2PE, stride 64 (--stride; the checkpoint says nothing of V2PE)"),
        ("fixed", "model", "V2PE, stride 2 (the checkpoint's)"),
        ("fixed", None, "0, 1, 2, ... (--stride; its own stride is 2)"),
        ("random", "model", "V2PE, stride 1 (default; trained with random strides from 0.25 to 4)"),
        ("random", 0.5, "V2PE, stride 0.5 (--stride; trained with random strides from 0.25 to 4)"),
        ("random", None, "0, 1, 2, ... (--stride; trained with random strides from 0.25 to 4)"),
    ],
)
def test_the_line_names_positions_and_reason(name: str, asked: float | str | None, line: str) -> None:
    spec = load_preset("tiny-internvl2").model_copy(update=TRAINED[name])
    assert positions_line(spec, asked) == f"positions: {line}"


def test_chat_says_it_once_beside_the_answer(home: Path) -> None:
    done = vlm(home, "chat", "-m", "random", "Why?", "--max-new-tokens", "2")
    assert done.stderr.count("positions: V2PE, stride 1 (default; trained with random") == 1
    assert "positions" not in done.stdout
    assert (
        "positions: 0, 1, 2, ... (--stride"
        in vlm(home, "chat", "-m", "random", "Why?", "--max-new-tokens", "2", "--stride", "none").stderr
    )


def test_eval_says_it_for_each_stride_and_uses_the_default(home: Path) -> None:
    words = ("eval", "pope", "--mini", "--limit", "1", "-m", "random", "--json")
    done = vlm(home, *words)
    assert "positions: V2PE, stride 1 (default; trained with random" in done.stderr
    assert [summary["variant"]["stride"] for summary in json.loads(done.stdout)] == [1.0]
    swept = vlm(home, *words, "--stride", "2,none")
    said = [line for line in swept.stderr.splitlines() if line.startswith("positions:")]
    assert [line.split(" (")[0] for line in said] == ["positions: V2PE, stride 2", "positions: 0, 1, 2, ..."]


def test_inspect_and_convert_say_it(home: Path, tmp_path: Path) -> None:
    facts = json.loads(vlm(home, "weights", "inspect", "random", "--json").stdout)
    assert facts["positions"].startswith("V2PE, stride 1 (default; trained with random")
    assert facts["spec"]["stride_choices"] == [0.25, 0.5, 1.0, 2.0, 4.0]
    done = vlm(home, "weights", "convert", "random", "--to", "internvl", "-o", str(tmp_path / "out"))
    assert "positions: V2PE, stride 1 (default; trained with random" in done.stderr
    assert done.stdout.strip() == str(tmp_path / "out")
