"""Long commands whose output goes to a file write plain lines there: evaluation, download, organizing, checks."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from support.openai_server import Server
from support.organize_world import picture, record, zip_bytes

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"


def logged(*words: str, home: Path, seconds: str = "0") -> list[str]:
    """Run `vlm WORDS > log 2>&1`; the lines of the log."""
    home.mkdir(parents=True, exist_ok=True)
    log = home.parent / "log.txt"
    env = {**os.environ, "VLM_HOME": str(home), "VLM_PROGRESS_SECONDS": seconds, "NO_COLOR": "1", "COLUMNS": "200"}
    with log.open("wb") as file:
        line = [sys.executable, "-m", "vlm.cli.main", *words]
        code = subprocess.run(line, stdout=file, stderr=file, env=env, timeout=300, cwd=home).returncode
    said = log.read_text()
    assert code == 0 and "\r" not in said, said
    return said.splitlines()


def test_an_evaluation_says_items_score_and_time_left_and_is_watched(tmp_path: Path) -> None:
    server = Server()
    try:
        asked = ("eval", "pope", "--mini", "--backend", "openai", "--base-url", server.url, "--concurrency", "1")
        lines = [line for line in logged(*asked, home=tmp_path / "home") if " items (" in line]
    finally:
        server.stop()
    total = len(server.asked)
    assert len(lines) == total + 1 and f": 0 of {total} items (0 %)" in lines[0]
    assert f"POPE · default: 2 of {total} items (" in lines[2].replace(" (popular)", "")
    assert ", score " in lines[2] and "items/s" in lines[2] and lines[2].endswith(" left")
    assert f"{total} of {total} items (100 %), score " in lines[-1] and not lines[-1].endswith(" left")
    seen = logged("watch", "--once", home=tmp_path / "home")
    assert seen[0] == f"evaluation eval/model-1/POPE/default: finished, {total} items"
    assert f"  outcomes: ok {total}" in seen


def test_a_download_and_its_organizing_say_bytes_files_and_records(tmp_path: Path) -> None:
    pictures = {f"images/{i}.jpg": picture(i) for i in range(5)}
    rows = "".join(json.dumps(record(i, f"images/{i}.jpg")) + "\n" for i in range(5))
    content = zip_bytes({**pictures, "raw.jsonl": rows.encode()})
    (tmp_path / "w.zip").write_bytes(content)
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{http.server_port}/w.zip"
    source = {"kind": "url", "url": url, "sha256": hashlib.sha256(content).hexdigest()}
    steps = [{"unpack": {"archives": "*.zip"}}, {"records": {"from": "raw.jsonl", "to": "train.jsonl"}}]
    entry = {
        "name": "mine",
        "kind": "data",
        "title": "t",
        "license": "MIT",
        "folder": "dataset/mine",
        "organise": steps,
    }
    catalogue = tmp_path / "mine.yaml"
    catalogue.write_text(json.dumps({"entries": [{**entry, "source": {**source, "path": "w.zip"}}]}))
    home = tmp_path / "home"
    got = logged("download", "mine", "--catalogue", str(catalogue), home=home)
    http.shutdown()
    http.server_close()
    size = f"{len(content) / 1000:.1f} kB"
    assert any(f" mine: {size} of {size} (100 %)" in line for line in got), got
    made = logged("data", "organize", "mine", "--catalogue", str(catalogue), home=home)
    assert any(" mine: step 1 of 2, unpack: 3 files" in line for line in made), made
    assert any(" mine: step 2 of 2, records: 5 records" in line for line in made)
    assert made[-1].startswith("mine: organized in ")


def test_a_check_says_records_and_nothing_when_it_is_done_at_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "images").mkdir(parents=True)
    (home / "images/0.jpg").write_bytes(picture(0))
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A picture."}]
    rows = [{"id": f"r{i}", "image": "images/0.jpg", "conversations": turns} for i in range(3)]
    (home / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("data", "check", "r.jsonl", "--preset", "tiny-internvl2", "--tokenizer", str(TOKENIZER), "--workers", "1")
    assert any(" r.jsonl: 3 of 3 records (100 %)" in line for line in logged(*asked, home=home))
    assert not any(" of 3 records (" in line for line in logged(*asked, home=home, seconds="30"))
