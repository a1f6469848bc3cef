"""The V2PE study: its tables say what the replies say, and nothing when an evaluation is missing."""

import importlib.util
import json
from itertools import product
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
    """Replies of every arm, stride and length: seven is always right, nine is the second digit of the order task. The
    random arm is always right at stride 1; else it names the second digit, but for one document of each length beyond
    1x. The plain arm finds nothing beyond 1x."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    digits = {"train": [], "test": [("7.png", "seven"), ("9.png", "nine")]}
    for split, pictures in digits.items():
        turns = [{"image": p, "conversations": [{"value": "?"}, {"value": word}]} for p, word in pictures]
        write(tmp_path / f"dataset/digits/{split}.jsonl", turns)
    needles = {"": ["digits/7.png", "digits/9.png"], "text-": ["The number is seven."]}
    for n, prefix in product(study.LENGTHS, needles):
        documents = [{"id": i, "answer": "seven", "meta": {"needles": needles[prefix]}} for i in range(4)]
        write(tmp_path / f"dataset/mini-v2pe/{prefix}{n}x/annotations/digit-haystack.jsonl", documents)
    for arm, stride in product(study.ARMS, study.STRIDES):
        rows = []
        for n, prefix in product(study.LENGTHS, needles):
            plain = "seven" if n == 1 else "two"
            lengths = {"tokens": 128 * n, "max_position": 128 * n * stride / 16, "group": f"{prefix}{n}x"}
            for i in range(4):
                said = {"random": "seven" if stride == 1 or (i == 0 and n > 1) else "nine", "arange": plain}[arm]
                about = {"extracted": said, "score": float(said == "seven")}
                rows.append({"id": f"{prefix}{n}x/{i}", **about, **lengths})
        for seed in range(2):
            write(tmp_path / f"run/eval/{arm}-s{seed}/mini-v2pe/stride{stride:g}/results.jsonl", rows)
    return tmp_path / "run"


def write(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_tables_and_the_plot_are_made_of_the_replies(study, run, tmp_path):
    study.main(run, tmp_path / "out")
    text = (tmp_path / "out/tables.md").read_text()
    order = text.split("Which digit comes first? Replies that are right")[1].split("##")[0]
    found = text.split("Which digit comes first? Replies that are one")[1].split("##")[0]
    written = text.split("Which number is written? Replies that are right")[1]

    def cells(part: str, row: str) -> list[str]:
        line = next(line for line in part.splitlines() if line.startswith(f"| {row}"))
        return [cell.strip() for cell in line.strip("|").split("|")[1:]]

    def numbers(part: str, row: str) -> list[str]:
        return [cell.split()[0] for cell in cells(part, row)]

    assert numbers(order, "random strides, tested at 1") == ["100"] * 4
    assert numbers(order, "random strides, tested at plain") == ["0", "25", "25", "25"]
    assert numbers(found, "random strides, tested at plain") == ["100"] * 4
    assert numbers(written, "random strides, tested at plain") == ["0", "25", "25", "25"]
    assert numbers(order, "plain positions, tested at 1") == ["100", "0", "0", "0"]
    assert cells(order, "random strides, tested at 1")[0].endswith("[8]")  # 128 tokens at stride 1
    assert (tmp_path / "out/by-tokens.svg").read_text().count("<svg") == 1


def test_a_difference_is_decided_when_its_interval_excludes_zero(study, run, tmp_path):
    rows = study.decided(study.read(run))
    assert len(rows) == 2 * 2 * 3  # tasks, lengths, decisions
    by_name = {row[2]: row[3:] for row in rows}
    points, each, decided = by_name["trained on random strides: stride 1 against plain"]
    assert (points.split()[0], each, decided) == ("+75", "+75, +75", "yes")
    assert by_name["trained on plain positions: stride 1 against plain"] == ["+0", "+0, +0", "no"]


def test_a_missing_evaluation_is_named(study, run, tmp_path):
    (run / "eval/random-s1/mini-v2pe/stride4/results.jsonl").write_text("")
    with pytest.raises(SystemExit, match="random"):
        study.main(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
