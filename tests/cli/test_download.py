"""`vlm download`, `vlm list` and `vlm data` as a person types them."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def vlm(tmp_path: Path):
    """Run `vlm` in a separate home, with a catalogue of one file entry, one without a revision, and one by hand."""
    content = b"some weights\n" * 100
    (tmp_path / "w.bin").write_bytes(content)
    source = {"kind": "url", "url": (tmp_path / "w.bin").as_uri(), "sha256": hashlib.sha256(content).hexdigest()}
    known = {"kind": "weights", "title": "t", "license": "CC0"}
    entries = [
        known | {"name": "tiny", "folder": "pretrained/tiny", "source": source, "size": len(content), "groups": ["g"]},
        known | {"name": "hubby", "folder": "pretrained/h", "source": {"kind": "hub", "repo": "o/r", "revision": None}},
        known | {"name": "hand", "folder": "pretrained/m", "source": {"kind": "manual", "instructions": "ask Ada"}},
        {
            "name": "mixed", "kind": "data", "title": "t", "license": "MIT", "terms": "be kind", "groups": ["m"],
            "folder": "dataset/mixed",
            "source": [source | {"path": "w.zip"}, {"kind": "manual", "instructions": "ask Bob", "paths": ["x/*"]}],
            "organise": [{"jpeg": {"folder": "x"}}],
        },
        known | {"name": "gone", "folder": "pretrained/gone", "groups": ["m"],
                 "source": {"kind": "url", "url": (tmp_path / "gone").as_uri(), "mirror": "the other one"}},
    ]  # fmt: skip
    (tmp_path / "mine.yaml").write_text(json.dumps({"entries": entries}))

    def run(*words: str) -> subprocess.CompletedProcess:
        env = os.environ | {"VLM_HOME": str(tmp_path / "home"), "COLUMNS": "160"}
        command = [sys.executable, "-m", "vlm.cli.main", *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)

    run.catalogue = ("--catalogue", str(tmp_path / "mine.yaml"))
    run.home = tmp_path / "home"
    return run


def test_a_dry_run_writes_nothing_then_a_download_is_complete_and_the_next_a_no_op(vlm):
    planned = vlm("download", "tiny", "--dry-run", *vlm.catalogue)
    assert planned.stdout == "tiny: fetch 1.3 kB to pretrained/tiny (CC0)\n", planned.stderr
    assert not vlm.home.exists()
    done = vlm("download", "--all", "g", "--json", *vlm.catalogue)
    row = json.loads(done.stdout)[0]
    assert (row["name"], row["state"], row["folder"]) == ("tiny", "fetched", str(vlm.home / "pretrained/tiny"))
    assert (vlm.home / "pretrained/tiny/w.bin").stat().st_size == row["size"]
    again = vlm("download", "tiny", *vlm.catalogue)
    assert again.stdout == "tiny: already complete in pretrained/tiny\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["hubby", "--locked"], 2, "--revision COMMIT"),
        (["hand"], 4, "ask Ada"),
        (["tinny"], 2, "did you mean tiny"),
        ([], 2, "vlm download --all quickstart"),
        (["tiny", "hubby", "--revision", "a"], 2, "one at a time"),
        (["photographs"], 2, "vlm data organize photographs"),
    ],
)
def test_what_cannot_be_downloaded_ends_with_the_documented_code_and_a_fix(vlm, words, code, message):
    done = vlm("download", *words, *vlm.catalogue)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_quickstart_plan_names_six_packages(vlm):
    done = vlm("download", "--all", "quickstart", "--dry-run", "--json")
    rows = json.loads(done.stdout)
    assert len(rows) == 6
    assert {row["sources"][0]["kind"] for row in rows} == {"package"}
    assert all(row["state"] == "absent" and row["action"].startswith("fetch ") for row in rows)


def test_what_a_person_must_fetch_is_said_after_the_rest_is_here_and_the_next_step_too(vlm):
    first = vlm("download", "mixed", *vlm.catalogue)
    assert first.returncode == 4
    assert "ask Bob" in first.stderr
    assert "x/*" in first.stderr
    assert (vlm.home / "dataset/mixed/w.zip").exists()
    (vlm.home / "dataset/mixed/x").mkdir()
    (vlm.home / "dataset/mixed/x/a.txt").write_text("by hand")
    second = vlm("download", "mixed", *vlm.catalogue)
    assert second.stdout == "mixed: already complete in dataset/mixed; next: vlm data organize mixed\n"
    assert vlm("data", "organize", "--all", "m", *vlm.catalogue).returncode == 0
    third = vlm("download", "mixed", "--dry-run", *vlm.catalogue)
    assert third.stdout == "mixed: nothing to do\n"


def test_of_several_downloads_the_others_go_on_and_the_failed_are_named_at_the_end(vlm):
    plan = vlm("download", "gone", "hand", "hubby", "tiny", "--dry-run", *vlm.catalogue)
    assert plan.stdout.splitlines()[-5:] == [
        "total: 1.3 kB for 3 downloads",
        "and of unknown size: gone, hubby",
        "license CC0: gone, hand, hubby, tiny",
        "by hand: hand",
        "not pinned, the newest commit is taken and noted: hubby",
    ]
    done = vlm("download", "gone", "tiny", "hubby", "--locked", *vlm.catalogue)
    assert done.returncode == 4, done.stderr
    assert "2 of 3 were not fetched" in done.stderr
    assert "no such file" in done.stderr
    assert "or: the other one" in done.stderr
    assert "hubby: the catalogue has no revision" in done.stderr
    assert "tiny: fetched in pretrained/tiny" in done.stdout


def test_a_recipe_and_a_benchmark_bring_their_data_and_what_it_needs(vlm):
    names = [
        row["name"]
        for row in json.loads(vlm("download", "--recipe", "quickstart-v2pe-sft", "--dry-run", "--json").stdout)
    ]
    assert {"scikit-image", "scikit-learn", "photographs", "digits"} <= set(names)
    rows = json.loads(vlm("download", "--recipe", "convllava-stage3", "--dry-run", "--json").stdout)
    names = [row["name"] for row in rows]
    assert {"ConvLLaVA-pretrain-768", "llava-instruct", "coco-train2017", "GQA", "ocr-vqa", "convllava-stage3"} <= set(
        names
    )
    assert names.index("llava-instruct") < names.index("convllava-stage3")
    assert next(row for row in rows if row["name"] == "ocr-vqa")["by_hand"]
    rows = json.loads(vlm("download", "--recipe", "internvl-chat-v1-2-sft", "--dry-run", "--json").stdout)
    parts = {"InternViT-6B-448px-V1-2", "Nous-Hermes-2-Yi-34B", "InternVL-Chat-V1-2-tokenizer"}
    assert parts <= {row["name"] for row in rows}  # encoder and projector, language model, tokenizer
    assert "InternVL-Chat-V1-2" not in {row["name"] for row in rows}  # 80 GB
    summed = vlm("download", "--recipe", "convllava-stage1", "--dry-run").stdout
    assert "vicuna-7b-v1.5: fetch" in summed and "LAION-CLIP-ConvNeXt-Large-512: fetch" in summed
    assert "the newest commit of lmsys/vicuna-7b-v1.5" in summed and "\ntotal: about " in summed
    long = json.loads(vlm("download", "--benchmark", "MM-NIAH-long-1m", "--dry-run", "--json").stdout)
    assert [row["name"] for row in long] == ["V2PE-Data", "MM-NIAH", "MM-NIAH-long"]
    assert len(json.loads(vlm("download", "--benchmark", "all", "--dry-run", "--json").stdout)) >= 25


@pytest.mark.parametrize("what", ["weights", "data", "benchmarks", "recipes"])
def test_lists_have_names_and_states(vlm, what):
    done = vlm("list", what, "--json")
    rows = json.loads(done.stdout)
    assert all(row["name"] for row in rows)
    shown = vlm("list", what).stdout
    assert all(row["name"] in shown for row in rows)
    if what in ("weights", "data"):
        assert {row["state"] for row in rows} == {"absent"}
    if what == "weights":
        assert next(row for row in rows if row["name"] == "vicuna-7b-v1.5")["from"] == "hub, not pinned"
        assert "not pinned" in shown
        assert "about 4.4 GB" in shown
    if what == "benchmarks":
        row = next(row for row in rows if row["name"] == "Long-VQA-40k")
        assert (row["entry"], row["licence"], row["bytes"]) == ("V2PE-Data", "MIT", "at least 981.0 GB")


def test_data_says_what_is_missing_and_makes_a_tokenizer_and_a_page(vlm, tmp_path):
    missing = vlm("data", "organize", "digits")
    assert missing.returncode == 3
    assert "vlm download scikit-learn" in missing.stderr
    record = {"id": 1, "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]}
    (tmp_path / "t.jsonl").write_text(json.dumps(record) + "\n")
    tokenizer = vlm.home / "pretrained/tok"
    made = vlm("data", "tokenizer", str(tmp_path / "t.jsonl"), "--out", str(tokenizer), "--vocab-size", "300")
    assert made.returncode == 0, made.stderr
    assert (tokenizer / "tokenizer.json").is_file()
    page = vlm("data", "preview", str(tmp_path / "t.jsonl"), "-o", str(tmp_path / "p.html"))
    assert "with 1 records" in page.stdout
    assert "Hello." in (tmp_path / "p.html").read_text()
    words = ["--out", "h", "--tokens", "512", "--tokens-per-image", "4", "--count", "1"]
    haystack = vlm("data", "build", "haystack", *words)
    assert haystack.returncode == 3
    assert "vlm data organize digits" in haystack.stderr
