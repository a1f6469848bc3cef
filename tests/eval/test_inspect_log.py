"""The log of inspect_ai: its files, and (slow) inspect's own reader and viewer on it."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from support import report_run
from vlm.core.errors import DataError
from vlm.eval.report.write import write_report

HOSTILE = "../../<script>window.hit=1</script>"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "media").mkdir()
    report_run.draw(tmp_path / "media/a.jpg", "red", "page 1")
    image = str(tmp_path / "media/a.jpg")
    rows = [
        report_run.row("DocVQA", "doc/0", [image], "<image>\nWhich colour?", ["red"], "red", 1.0, strict=0.0),
        report_run.row("DocVQA", "doc/1", [image, "gone.jpg"], "<image><image>\nWhich?", ["gold"], "red", 0.0),
        report_run.row("DocVQA", "doc/2", [image] * 12, "<image>" * 12, ["red"], "", 0.0, outcome="oom"),
        report_run.row("DocVQA", HOSTILE, [], HOSTILE, 5, HOSTILE, 0.5, outcome="truncated"),
    ]
    report_run.evaluation(tmp_path / "run/eval/m/DocVQA/default", rows, "DocVQA (validation)", "m", metric="ANLS")
    return tmp_path / "run"


def files(path):
    with zipfile.ZipFile(path) as log:
        assert log.testzip() is None
        return {name: json.loads(log.read(name)) for name in log.namelist()}


def test_a_log_holds_every_sample_with_both_scores_and_thumbnails(run, tmp_path):
    write_report([run], tmp_path / "doc.eval")
    log = files(tmp_path / "doc.eval")
    head = log["header.json"]
    assert (head["status"], head["eval"]["task"], head["eval"]["model"]) == ("success", "DocVQA", "vlm/m")
    published, strict = head["results"]["scores"]
    assert published["metrics"]["ANLS"]["value"] == pytest.approx(50) and strict["name"] == "strict"
    first = log["samples/doc/0_epoch_1.json"]
    image, text = first["input"][0]["content"]
    assert first["attachments"][image["image"].removeprefix("attachment://")].startswith("data:image/jpeg;base64,")
    assert text["text"] == "<image>\nWhich colour?" and first["output"]["completion"] == "red"
    assert [first["scores"][name]["value"] for name in ("published", "strict")] == [1.0, 0.0]
    assert log["samples/doc/1_epoch_1.json"]["input"][0]["content"][1]["text"] == "[gone.jpg cannot be read]"
    failed = log["samples/doc/2_epoch_1.json"]
    assert failed["scores"] == {} and failed["error"]["message"].startswith("oom: ") and len(failed["messages"]) == 1
    assert "[and 4 more images]" in [part.get("text") for part in failed["input"][0]["content"]]
    assert [row["id"] for row in log["summaries.json"]] == head["eval"]["dataset"]["sample_ids"]
    assert not any(".." in name.split("/") for name in log)  # whoever unpacks it stays in the folder


def test_the_same_evaluation_gives_the_same_bytes(run, tmp_path):
    for name in ("a.eval", "b.eval"):
        write_report([run], tmp_path / name)
        time.sleep(0.01)
    assert (tmp_path / "a.eval").read_bytes() == (tmp_path / "b.eval").read_bytes()


def test_a_folder_has_a_log_for_each_evaluation_on_request_alone(run, tmp_path):
    shutil.copytree(run / "eval/m", run / "eval/again")
    _, made = write_report([run], tmp_path / "with", formats=["eval", "md"])
    assert [path.name for path in made] == [
        "DocVQA-m-plain-positions.eval",
        "DocVQA-m-plain-positions-run2.eval",
        "report.md",
    ]
    write_report([run], tmp_path / "all")
    assert not (tmp_path / "all/inspect").exists()
    with pytest.raises(DataError, match="2 evaluations for one"):
        write_report([run], tmp_path / "one.eval")
    assert not (tmp_path / "one.eval").exists()


@pytest.fixture(scope="session")
def inspect(tmp_path_factory):
    """Python with inspect_ai: $VLM_INSPECT_PYTHON, or an environment made for the test."""
    if given := os.environ.get("VLM_INSPECT_PYTHON"):
        return given
    folder = tmp_path_factory.mktemp("inspect")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    python = folder / "env/bin/python"
    done = subprocess.run([python, "-m", "pip", "install", "-q", "inspect_ai"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"inspect_ai cannot be installed: {done.stderr.splitlines()[-1:]}")
    return str(python)


READ = """
import sys
from inspect_ai.log import read_eval_log, read_eval_log_sample_summaries
log = read_eval_log(sys.argv[1])
print(log.status, log.eval.task, log.results.scores[0].metrics["ANLS"].value, len(log.samples))
print(sorted(sample.scores["published"].value for sample in log.samples if sample.scores))
errors = [sample.error.message for sample in log.samples if sample.error]
print(errors, len(read_eval_log_sample_summaries(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(900)
def test_inspect_reads_and_shows_it(run, tmp_path, inspect, driver):
    from selenium.webdriver.support.ui import WebDriverWait

    write_report([run], tmp_path / "logs/doc.eval")
    command = [inspect, "-c", READ, str(tmp_path / "logs/doc.eval")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "success DocVQA 50.0 4",
        "[0.0, 0.5, 1.0]",
        "['oom: out of memory when run alone'] 4",
    ]
    viewer = Path(inspect).with_name("inspect")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [viewer, "view", "start", "--log-dir", tmp_path / "logs", "--port", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        address = next(m[0] for line in process.stdout if (m := re.search(r"http://[\d.]+:\d+", line)))
        driver.get(f"{address}/#/logs/doc.eval")
        body = "return document.body.innerText"
        WebDriverWait(driver, 60).until(lambda d: "doc/0" in d.execute_script(body))
        shown = driver.execute_script(body)
        assert "DocVQA (validation)" in shown and "1 of 4 samples" in shown and "50" in shown
        driver.get(f"{address}/#/logs/doc.eval/samples/sample/doc%2F0/1")
        WebDriverWait(driver, 60).until(lambda d: "Which colour?" in d.execute_script(body))
        images = """return [...document.querySelectorAll('img')].filter(
            i => i.src.startsWith('data:image/jpeg') && i.naturalWidth)"""
        WebDriverWait(driver, 60).until(lambda d: d.execute_script(images))
        assert driver.execute_script("return window.hit") is None
    finally:
        process.kill()
        process.communicate()
        driver.get("about:blank")
        driver.get_log("browser")
