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
    """Run `vlm` in a home of its own, with a catalogue of one file entry, one without a revision, and one by hand."""
    content = b"some weights\n" * 100
    (tmp_path / "w.bin").write_bytes(content)
    source = {"kind": "url", "url": (tmp_path / "w.bin").as_uri(), "sha256": hashlib.sha256(content).hexdigest()}
    known = {"kind": "weights", "title": "t", "licence": "CC0"}
    entries = [
        known | {"name": "tiny", "folder": "pretrained/tiny", "source": source, "size": len(content), "groups": ["g"]},
        known | {"name": "hubby", "folder": "pretrained/h", "source": {"kind": "hub", "repo": "o/r", "revision": None}},
        known | {"name": "hand", "folder": "pretrained/m", "source": {"kind": "manual", "instructions": "ask Ada"}},
    ]
    (tmp_path / "mine.yaml").write_text(json.dumps({"entries": entries}))

    def run(*words: str) -> subprocess.CompletedProcess:
        env = os.environ | {"VLM_HOME": str(tmp_path / "home"), "COLUMNS": "160"}
        command = [sys.executable, "-m", "vlm.cli.main", *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

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
        (["hubby"], 2, "--revision COMMIT"),
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


@pytest.mark.parametrize("what", ["weights", "data", "benchmarks", "recipes"])
def test_lists_have_names_and_states(vlm, what):
    done = vlm("list", what, "--json")
    rows = json.loads(done.stdout)
    assert all(row["name"] for row in rows)
    shown = vlm("list", what).stdout
    assert all(row["name"] in shown for row in rows)
    if what in ("weights", "data"):
        assert {row["state"] for row in rows} == {"absent"}


def test_data_says_what_is_missing_and_makes_a_tokenizer_and_a_page(vlm, tmp_path):
    missing = vlm("data", "organize", "digits")
    assert missing.returncode == 3
    assert "vlm download scikit-learn" in missing.stderr
    record = {"id": 1, "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]}
    (tmp_path / "t.jsonl").write_text(json.dumps(record) + "\n")
    made = vlm("data", "tokenizer", str(tmp_path / "t.jsonl"), "--out", "pretrained/tok", "--vocab-size", "300")
    assert made.returncode == 0, made.stderr
    assert (vlm.home / "pretrained/tok/tokenizer.json").is_file()
    page = vlm("data", "preview", str(tmp_path / "t.jsonl"), "-o", str(tmp_path / "p.html"))
    assert "with 1 records" in page.stdout
    assert "Hello." in (tmp_path / "p.html").read_text()
    words = ["--out", "h", "--tokens", "512", "--tokens-per-image", "4", "--count", "1"]
    haystack = vlm("data", "build", "haystack", *words)
    assert haystack.returncode == 3
    assert "vlm data organize digits" in haystack.stderr
