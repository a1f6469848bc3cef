"""`vlm eval …`, `vlm eval score …`, `vlm eval all` and `vlm diff` as they are typed; sweeps and settings that count."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from vlm.cli.commands.diff import diff
from vlm.cli.commands.eval import app, evaluate
from vlm.cli.commands.eval_score import score
from vlm.core.errors import CheckpointError, ConfigError, DataError, UnknownName, VlmError
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.load import save_model
from vlm.models.specs import load_preset

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small V2PE checkpoint with weights from a seed."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    save_model(build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=0), folder, tokenizer=TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an OpenAI-compatible server that says no."""
    answer = {"choices": [{"message": {"content": "no"}, "finish_reason": "stop"}]}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({"data": [{"id": "model-1"}]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(answer)

        def reply(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    http.server_close()


def answers(home: Path, **changed: str) -> Path:
    """Right answers to POPE's miniature, as LLaVA writes them, apart from those `changed`."""
    table = load_benchmark("POPE")
    items = load_items(table, make_mini("POPE", home / "dataset" / "mini" / "POPE"))
    lines = [{"question_id": int(item.id), "text": changed.get(f"id{item.id}", item.gold)} for item in items]
    path = home / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def typed(*words: str) -> tuple[int, str]:
    """Exit code and output of `vlm eval WORDS`."""
    done = CliRunner().invoke(app, list(words), prog_name="vlm eval")
    if isinstance(done.exception, VlmError):
        raise done.exception
    return done.exit_code, done.output


# the words -----------------------------------------------------------------------------------------------------------


def test_both_helps_are_there() -> None:
    code, shown = typed("--help")
    assert code == 0 and "vlm eval score --help" in shown and "--base-url" in shown and "BENCH..." in shown
    code, shown = typed("score", "--help")
    assert code == 0 and "PREDICTIONS..." in shown and "lmms-eval" in shown and "--base-url" not in shown


def test_options_may_stand_before_the_benchmark_and_nothing_asks_for_one(home: Path) -> None:
    with pytest.raises(UnknownName, match=r"(?i)did you mean milebench"):
        typed("--mini", "mileBenk")
    code, shown = typed()
    assert code == 2 and "Missing argument 'BENCH...'" in shown


def test_the_installed_command_scores_a_file(home: Path) -> None:
    path = answers(home)
    env = {**os.environ, "VLM_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200"}
    words = [sys.executable, "-m", "vlm.cli.main", "eval", "score", "pope", str(path), "--mini"]
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=home)
    assert done.returncode == 0, done.stderr
    assert "recognized as: LLaVA answers" in done.stdout and "100.0" in done.stdout
    folder = home / "runs" / "eval" / "imported-answers" / "POPE" / "imported"
    assert {path.name for path in folder.iterdir()} >= {"results.jsonl", "summary.json", "run.json"}
    words = [*words[:5], "pope", str(home / "none.jsonl"), "--mini"]
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=home)
    assert done.returncode == 3 and "no such file" in done.stderr and "Traceback" not in done.stderr


# score and diff ------------------------------------------------------------------------------------------------------


def test_problems_are_shown_and_the_json_has_them(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = answers(home)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[1:], lines[1], json.dumps({"question_id": 999, "text": "yes"})]) + "\n")
    score("pope", [path], mini=True, name="theirs")
    shown = capsys.readouterr().out
    for kind in ("missing", "duplicate", "extra"):
        assert kind in shown
    assert "error 1, ok 35" in shown and "35 / 36" in shown
    score("pope", [path], mini=True, name="theirs", as_json=True)
    summary = json.loads(capsys.readouterr().out)
    assert summary["imported"]["problems"]["missing"]["n"] == 1 and summary["model"] == "theirs"


def test_two_imported_files_are_compared(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score("pope", [answers(home)], mini=True, name="one")
    score("pope", [answers(home, id1="no", id2="something")], mini=True, name="two")
    capsys.readouterr()
    diff(home / "runs/eval/one", home / "runs/eval/two", as_json=True)
    [found] = json.loads(capsys.readouterr().out)
    assert found["kinds"]["lost"] + found["kinds"].get("changed", 0) == 2 and found["causes"] == {"imported": 2}


def test_the_family_chooses_the_rule_and_an_unknown_one_is_refused(home: Path) -> None:
    table = load_benchmark("RefCOCO-val")
    items = load_items(table, make_mini("RefCOCO-val", home / "dataset" / "mini" / "RefCOCO-val"))
    boxes = []
    for item in items:
        (left, top, right, bottom), (height, width) = item.gold, item.meta["hw"]
        thousandths = [1000 * left / width, 1000 * top / height, 1000 * right / width, 1000 * bottom / height]
        boxes.append({"id": item.id, "prediction": f"[[{', '.join(f'{x:.0f}' for x in thousandths)}]]"})
    path = home / "boxes.jsonl"
    path.write_text("".join(json.dumps(box) + "\n" for box in boxes))
    values = {}
    for family in ("internvl2", "convllava"):
        score("refcoco-val", [path], mini=True, name=family, family=family)
        summary = json.loads((home / "runs/eval" / family / "RefCOCO-val" / "imported" / "summary.json").read_text())
        values[family] = summary["metrics"][0]["value"]
    assert values["internvl2"] == 100 > values["convllava"]
    with pytest.raises(UnknownName, match="did you mean convllava"):
        score("refcoco-val", [path], mini=True, family="convlava")


def test_without_data_the_lines_that_get_it_are_shown(home: Path) -> None:
    path = answers(home)
    with pytest.raises(DataError, match="vlm download POPE"):
        score("pope", [path])
    assert not (home / "runs").exists()


# all -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let `all` be these benchmarks."""
    from vlm.eval import benchmark

    every = benchmark.tables()

    def choose(*names: str) -> None:
        monkeypatch.setattr(benchmark, "tables", lambda home=None: {name: every[name] for name in names})

    return choose


def test_all_goes_on_after_a_failure_tells_it_and_exits_with_its_code(
    three: Callable, server: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three("realworldqa", "pope", "scienceqa")
    (home / "dataset" / "mini" / "RealWorldQA").mkdir(parents=True)
    (home / "dataset" / "mini" / "RealWorldQA" / "mine.txt").write_text("kept")
    with pytest.raises(typer.Exit) as stop:
        evaluate(["all"], backend="openai", base_url=server, limit=3, mini=True)
    assert stop.value.exit_code == DataError.exit_code
    shown = capsys.readouterr()
    assert "2 evaluations, 1 benchmarks failed" in shown.out and "failed: " in shown.out
    assert "3 / 3" in shown.out and "mini/RealWorldQA holds files that are no miniature" in shown.err
    assert {p.parent.parent.name for p in (home / "runs").rglob("summary.json")} == {"POPE", "ScienceQA"}


def test_all_exits_with_0_when_all_are_done_and_loads_one_model(
    three: Callable, tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlm.models.checkpoint import load as weights

    three("pope", "scienceqa")
    loaded: list[Any] = []
    load = weights.load_model
    monkeypatch.setattr(weights, "load_model", lambda *args, **how: loaded.append(how) or load(*args, **how))
    evaluate(["ALL"], model=str(tiny), mini=True, limit=1, device="cpu")
    assert len(loaded) == 1 and "2 evaluations, 0 benchmarks failed" in capsys.readouterr().out


# settings that count -------------------------------------------------------------------------------------------------


def keys(folder: Path) -> list[str]:
    return [json.loads(line)["key"] for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_sweep_of_strides_is_one_run_with_a_folder_and_keys_for_each(
    tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(["pope"], model=str(tiny), mini=True, limit=2, stride="1,16,64,256,none", device="cpu", name="m")
    folders = [home / "runs/eval/m/POPE" / name for name in ("stride1", "stride16", "stride64", "stride256", "default")]
    assert len({key for folder in folders for key in keys(folder)}) == 5 * 2
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert [s["provenance"]["decode"]["stride"] for s in summaries] == [1, 16, 64, 256, None]


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        ({"positions": "float32"}, "float32"),
        ({"tiles": 1}, "tiles1"),
        ({"attention": "sdpa"}, "default"),
        ({"dtype": "bfloat16"}, "default"),
    ],
)
def test_each_setting_changes_the_keys(settings: dict[str, Any], folder: str, tiny: Path, home: Path) -> None:
    usual = {"model": str(tiny), "mini": True, "limit": 2, "device": "cpu", "name": "m"}
    evaluate(["pope"], **usual)
    plain = keys(home / "runs/eval/m/POPE/default")
    evaluate(["pope"], **{**usual, **settings}, replace=True)
    assert not set(keys(home / "runs/eval/m/POPE" / folder)) & set(plain)


def test_the_seed_changes_which_images_are_exchanged_and_the_limit_how_many_are_asked(tiny: Path, home: Path) -> None:
    usual: dict[str, Any] = {"model": str(tiny), "mini": True, "device": "cpu", "name": "m"}
    found = []
    for seed, folder in ((0, "shuffled"), (1, "shuffled-seed1"), (0, "shuffled")):
        evaluate(["pope"], **usual, shuffle_images=True, seed=seed, limit=12)
        found.append(keys(home / "runs/eval/m/POPE" / folder))
    assert found[0] == found[2] != found[1] and len(found[0]) == 12
    evaluate(["pope"], **usual, limit=3)
    first = keys(home / "runs/eval/m/POPE/default")
    evaluate(["pope"], **usual, limit=5)
    assert keys(home / "runs/eval/m/POPE/default")[:3] == first
    summary = json.loads((home / "runs/eval/m/POPE/default/summary.json").read_text())
    assert (summary["data"]["items"], summary["data"]["available"]) == (5, 36)


def test_quantize_offload_and_attention_reach_the_model_and_a_wrong_one_is_refused(tiny: Path, home: Path) -> None:
    from vlm.eval.backends.native import Checkpoint

    checkpoint = Checkpoint(tiny, device="cpu", offload="disk", attention="sdpa")
    assert checkpoint.settings == {"dtype": "float32", "offload": "disk", "attention": "sdpa"}
    assert Checkpoint(tiny, device="cpu").settings == {"dtype": "float32"}
    for settings in ({"attention": "fast"}, {"quantize": "3bit"}, {"offload": "tape"}):
        with pytest.raises(ConfigError):
            evaluate(["pope"], model=str(tiny), mini=True, limit=1, device="cpu", **settings)
    assert not (home / "runs").exists()


def test_weights_that_cannot_be_loaded_stop_the_run_and_are_no_items_fault(tiny: Path, home: Path) -> None:
    from shutil import copytree

    broken = home / "pretrained" / "broken"
    copytree(tiny, broken)
    [weights] = broken.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(CheckpointError):
        evaluate(["pope"], model="broken", mini=True, limit=3, device="cpu")
    log = home / "runs/eval/broken/POPE/default/outcomes.jsonl"
    assert not log.exists() or not log.read_text()
