"""`vlm data build long-mr | long-vqa | haystack` as a person runs them: what they print, and how they refuse."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import long_world as world_module
from support.haystack_sources import write_haystack_sources
from vlm.core.synth.haystack import HaystackOptions, build_haystack


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return world_module.make_world(tmp_path_factory.mktemp("world"))


def vlm(home: Path, *words: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "VLM_HOME": str(home)}
    command = [sys.executable, "-m", "vlm.cli.main", "data", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, cwd=home)


def long_mr(home: Path, world: Path, *words: object) -> subprocess.CompletedProcess[str]:
    fixed = ("--model", "tiny-internvl2", "--tokenizer", world / "tokenizer", "--val-share", 0.4)
    sources = ("--images", world / "images", "--text", world / "text")
    return vlm(home, "build", "long-mr", *fixed, *sources, *words)


def test_a_set_is_built_previewed_and_found_again(world, tmp_path):
    words = ("--out", "mr", "--tokens", "1K", "--task", "retrieval-text", "--train", 2, "--val", 1)
    done = long_mr(tmp_path, world, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("built: ")
    assert f"vlm eval MM-NIAH --data {tmp_path / 'dataset' / 'mr'}" in done.stdout
    assert long_mr(tmp_path, world, *words).stdout.startswith("present: ")
    page = vlm(tmp_path, "preview", "dataset/mr/mm_niah_test/annotations/retrieval-text.jsonl")
    assert page.returncode == 0, page.stderr
    assert 'class="needle"' in (tmp_path / "preview.html").read_text()


def test_long_vqa_names_its_set_after_the_folder(world, tmp_path):
    words = (
        "--model",
        "tiny-internvl2",
        "--tokenizer",
        world / "tokenizer",
        "--val-share",
        0,
        "--train",
        2,
        "--val",
        0,
    )
    line = ("build", "long-vqa", world / "set" / "vqa.jsonl", "--out", "v", "--tokens", "700", *words)
    refused = vlm(tmp_path, *line)
    assert refused.returncode == 3 and "--allow-outside DIR" in refused.stderr
    done = vlm(tmp_path, *line, "--allow-outside", world)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "dataset" / "v" / "annotation" / "long_vqa_700k" / "train_long_vqa_set_700_700.jsonl"
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--task", "retrieval-txt"), 2, "did you mean retrieval-text"),
        (("--tokens", "100"), 2, "the budget is 100"),
        (("--tokens", "4Q"), 2, "16K-32K"),
        (("--model", "tiny-internvl"), 2, "did you mean tiny-internvl3 or tiny-internvl2"),
        (("--out", "/proc/none"), 3, "cannot make /proc/none"),
        (("--images", "nowhere"), 3, "no such file or folder"),
    ],
)
def test_bad_input_is_one_message_without_a_traceback_and_leaves_nothing(world, tmp_path, words, code, said):
    fixed = {"--out": "mr", "--tokens": "1K", "--train": 1, "--val": 0}
    fixed |= dict([words])
    done = long_mr(tmp_path, world, *(word for pair in fixed.items() for word in pair))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_preset_needs_a_tokenizer_with_its_image_tokens(world, tmp_path):
    done = vlm(tmp_path, "build", "long-mr", "--out", "mr", "--model", "tiny-internvl2", "--tokens", "1K")
    assert done.returncode == 2
    assert "--tokenizer" in done.stderr
    tokenizer = json.loads((world / "tokenizer" / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "</img>"]
    tokenizer["model"]["vocab"] = {k: v for k, v in tokenizer["model"]["vocab"].items() if k != "</img>"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    words = ("--model", "tiny-internvl2", "--tokenizer", "other", "--tokens", "1K")
    done = vlm(tmp_path, "build", "long-mr", "--out", "mr", *words)
    assert done.returncode == 2
    assert "has no </img>" in done.stderr


def test_the_digit_haystack_keeps_its_bytes(tmp_path, monkeypatch):
    """Trained models and published figures of the quickstart rest on them."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    write_haystack_sources(first_test_digit=0)
    digests = {}
    for split in ("train", "test"):
        path = build_haystack("h", HaystackOptions(2048, 16, 20, split=split, seed=3))
        digests[split] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digests == {
        "train": "3e5a1f1b2f0e0ee6ff378449766cf65078b4e39cdf8310c0db583316014e0c34",
        "test": "04017c0fd3b37a396346897bc6bf562edf2375b4f3fc7212219810c7ec733f34",
    }
