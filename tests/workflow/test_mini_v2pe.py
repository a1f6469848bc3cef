"""The V2PE study: its tables say what the replies say, and nothing when an evaluation is missing."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mini_v2pe", ROOT / "workflows/scripts/mini_v2pe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(study, tmp_path, monkeypatch) -> Path:
    """Replies of every arm, stride and length: seven is always the first digit, nine the second; the random arm is
    always right, the fixed one says the second digit, the plain one finds nothing beyond 1x."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    digits = {"train": [], "test": [("7.png", "seven"), ("9.png", "nine")]}
    for split, pictures in digits.items():
        turns = [{"image": p, "conversations": [{"value": "?"}, {"value": word}]} for p, word in pictures]
        write(tmp_path / f"dataset/digits/{split}.jsonl", turns)
    for n in study.LENGTHS:
        documents = [{"id": i, "meta": {"needles": ["digits/7.png", "digits/9.png"]}} for i in range(4)]
        write(tmp_path / f"dataset/mini-v2pe/{n}x/annotations/digit-haystack.jsonl", documents)
    for arm in study.ARMS:
        for stride in study.STRIDES:
            rows = []
            for n in study.LENGTHS:
                said = {"random": "seven", "fixed": "nine", "arange": "seven" if n == 1 else "two"}[arm]
                about = {"extracted": said, "score": float(said == "seven"), "group": f"{n}x"}
                lengths = {"tokens": 128 * n, "max_position": 128 * n * stride / 16}
                rows += [{"id": f"{n}x/{i}", **about, **lengths} for i in range(4)]
            for seed in range(2):
                write(tmp_path / f"run/eval/{arm}-s{seed}/mini-v2pe/stride{stride:g}/results.jsonl", rows)
    return tmp_path / "run"


def write(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_tables_and_plots_are_made_of_the_replies(study, run, tmp_path):
    study.main(run, tmp_path / "out")
    text = (tmp_path / "out/tables.md").read_text()
    right = text.split("## The first digit")[1].split("## One of")[0]
    found = text.split("## One of the two digits")[1].split("##")[0]

    def numbers(part: str, arm: str) -> list[str]:
        row = next(line for line in part.splitlines() if line.startswith(f"| {study.ARMS[arm]}"))
        return [cell.split()[0] for cell in row.strip("|").split("|")[1:]]

    assert numbers(right, "random") == ["100"] * 5
    assert numbers(right, "arange") == ["100", "0", "0", "0", "0"]
    assert (numbers(right, "fixed"), numbers(found, "fixed")) == (["0"] * 5, ["100"] * 5)
    assert "100 [8]" in text.split("random strides: every stride")[1].splitlines()[4]  # 128 tokens at stride 1
    for name in ("by-tokens.svg", "by-position.svg"):
        assert (tmp_path / "out" / name).read_text().count("<svg") == 1


def test_a_missing_evaluation_is_named(study, run, tmp_path):
    (run / "eval/fixed-s1/mini-v2pe/stride2/results.jsonl").write_text("")
    with pytest.raises(SystemExit, match="fixed"):
        study.main(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
