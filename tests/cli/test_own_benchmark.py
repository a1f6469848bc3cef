"""`vlm eval FILE`, own tables in benchmarks/, and `vlm infer` as a person types them."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from support import openai_server as fake
from vlm.cli import main as command
from vlm.cli.own_file import read_columns
from vlm.core.errors import ConfigError

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"
server, Server = fake.server, fake.Server

ROWS = [{"image": f"img/{name}.png", "q": "What color?", "a": name} for name in ("red", "blue")]
COLUMNS = ("--columns", "question=q,answer=a")
SHORT = ("--max-new-tokens", "4")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vlm.models.checkpoint.assemble import build
    from vlm.models.checkpoint.load import save_model
    from vlm.models.specs import load_preset

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=1), folder, tokenizer=TOKENIZER)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "img").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (64, 64), name).save(tmp_path / "img" / f"{name}.png")
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


@pytest.fixture
def vlm(home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`vlm("eval", ...)`: exit code, standard output, standard error; with `-m` the tiny model where no server is."""

    def run(*words: str):
        model = ["-m", str(checkpoint), "--device", "cpu"] if words[0] in ("eval", "infer") else []
        monkeypatch.setattr(sys, "argv", ["vlm", *words, *([] if "openai" in words or "score" in words else model)])
        with pytest.raises(SystemExit) as stop:
            command.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


def replies(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_is_evaluated_compared_and_reported_like_a_benchmark(vlm, home: Path) -> None:
    code, out, err = vlm("eval", "my.jsonl", *COLUMNS, *SHORT, "--name", "a")
    assert code == 0 and "2 / 2" in out and "question = q, answer = a; scorer exact" in err
    (first,) = (home / "runs/eval/a/my").iterdir()
    summary = json.loads((first / "summary.json").read_text())
    assert summary["metrics"][0]["name"] == "exact" and first.name == f"tokens4-file-{summary['variant']['edition']}"
    before = (first / "results.jsonl").read_bytes()
    assert vlm("eval", "my.jsonl", *COLUMNS, *SHORT, "--name", "a")[0] == 0
    timing = json.loads((first / "timing.json").read_text())["runs"]
    assert (timing[-1]["computed"], timing[-1]["reused"]) == (0, 2)
    assert (first / "results.jsonl").read_bytes() == before

    assert vlm("eval", "my.jsonl", *COLUMNS, *SHORT, "--name", "b")[0] == 0
    code, out, _ = vlm("diff", "runs/eval/a", "runs/eval/b")
    assert code == 0 and "my" in out
    assert vlm("report", "runs/eval")[0] == 0
    page = json.loads(next(home.rglob("report.json")).read_text())
    assert "file " + summary["variant"]["edition"] in json.dumps(page)

    (home / "my.jsonl").write_text((home / "my.jsonl").read_text().replace('"red"', '"Red"'))
    assert vlm("eval", "my.jsonl", *COLUMNS, *SHORT, "--name", "a")[0] == 0
    assert len(list((home / "runs/eval/a/my").iterdir())) == 2 and (first / "results.jsonl").read_bytes() == before


def test_a_table_in_benchmarks_is_listed_found_in_any_case_and_suggested(vlm, home: Path) -> None:
    (home / "benchmarks").mkdir()
    columns = "columns: {question: q, answer: a}"
    (home / "benchmarks" / "colors.yaml").write_text(
        f"file: my.jsonl\ntitle: Colors\nscorer: contains\noptions: {{{columns}}}\n"
        "generation: {max_new_tokens: 4, source: ours}\n"
    )
    code, out, _ = vlm("list", "benchmarks", "--json")
    (row,) = [row for row in json.loads(out) if row["name"] == "colors"]
    assert code == 0 and (row["state"], row["title"], row["folder"]) == ("present", "Colors", "my.jsonl")
    assert vlm("eval", "Colors")[0] == 0 and len(list(home.glob("runs/eval/*/colors/file-*"))) == 1
    assert "did you mean colors" in vlm("eval", "colrs")[2]
    for words, found in {("--scorer", "exact"): "--scorer with colors", ("--mini",): "--mini with colors"}.items():
        code, _, err = vlm("eval", "colors", *words)
        assert code == 2 and found in err
    (home / "my.jsonl").rename(home / "other.jsonl")
    code, _, err = vlm("eval", "colors")
    assert code == 2 and "the file of colors is not there" in err
    assert '"absent"' in vlm("list", "benchmarks", "--json")[1]


def test_a_name_of_a_benchmark_stays_that_benchmark(vlm, home: Path) -> None:
    (home / "pope.jsonl").write_text((home / "my.jsonl").read_text())
    assert vlm("eval", "pope.jsonl", *COLUMNS, *SHORT)[0] == 0
    assert len(list(home.glob("runs/eval/*/own-pope"))) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("my.jsnol",), 3, "did you mean my.jsonl?"),
        (("my.jsonl",), 3, "--columns question=COLUMN names it"),
        (("my.jsonl", "--columns", "question=q,answer=b"), 2, "one of: a, image, q"),
        (("my.jsonl", "--columns", "question"), 2, "FIELD=COLUMN"),
        (("my.jsonl", "--columns", "question=q,question=a"), 2, "each once"),
        (("my.jsonl", *COLUMNS, "--scorer", "exakt"), 2, "did you mean exact"),
        (("my.jsonl", *COLUMNS, "--scorer", "number"), 3, "expected a number (--scorer number)"),
        (("my.jsonl", *COLUMNS, "--data", "img"), 2, "--data with my"),
        (("pope", "--suffix", "Now."), 2, "--suffix with pope"),
        (("my.xlsx",), 3, "no such file"),
    ],
)
def test_what_is_wrong_with_the_line_is_said(words: tuple, code: int, message: str, vlm, home: Path) -> None:
    got, _, err = vlm("eval", *words)
    assert got == code and message in err and "Traceback" not in err


def test_bad_rows_are_errors_by_default_and_count_with_leave(vlm, home: Path) -> None:
    with (home / "my.jsonl").open("a") as file:
        file.write('{"image": "img/gone.png", "q": "What?", "a": "x"}\n')
    code, _, err = vlm("eval", "my.jsonl", *COLUMNS, *SHORT)
    assert code == 3 and "my.jsonl:3" in err and "img/gone.png" in err and "--allow-missing 1" in err
    code, out, _ = vlm("eval", "my.jsonl", *COLUMNS, *SHORT, "--allow-missing", "1")
    assert code == 0 and "2 / 3" in out and "error 1" in out


def test_another_scorer_scores_the_known_answers_again(vlm, home: Path) -> None:
    for scorer in ("exact", "contains"):
        assert vlm("eval", "my.jsonl", *COLUMNS, *SHORT, "--scorer", scorer)[0] == 0
    (folder,) = home.glob("runs/eval/*/my/*")
    assert json.loads((folder / "summary.json").read_text())["metrics"][0]["name"] == "contains"
    assert [run["computed"] for run in json.loads((folder / "timing.json").read_text())["runs"]] == [2, 0]


def test_infer_asks_pictures_of_folders_and_globs_and_its_replies_can_be_scored(vlm, home: Path) -> None:
    code, out, _ = vlm("infer", "img", "--prompt", "What is it?", "-o", "out.jsonl", *SHORT)
    assert code == 0 and "2 of 2 questions" in out
    found = replies(home / "out.jsonl")
    assert [row["id"] for row in found] == ["img/blue.png", "img/red.png"]
    assert all(row["prompt"] == "<image>\nWhat is it?" and row["outcome"] in ("ok", "length") for row in found)
    code, _, _ = vlm("infer", "img/r*.png", "img", "--prompt", "What is it?", "-o", "glob.jsonl", *SHORT)
    assert [row["id"] for row in replies(home / "glob.jsonl")] == ["img/red.png", "img/blue.png"]

    assert vlm("infer", "my.jsonl", "--columns", "question=q", "-o", "my.out.jsonl", *SHORT)[0] == 0
    code, out, _ = vlm("eval", "score", "my.jsonl", "my.out.jsonl", *COLUMNS)
    assert code == 0 and "replies of vlm infer" in out and "2 / 2" in out


def test_infer_says_what_became_of_each_row(vlm, home: Path) -> None:
    lines = [
        '{"id": "a", "question": "Why?"}',
        "broken",
        '{"id": "b", "messages": [{"role": "user", "content": "Hi"}]}',
    ]
    (home / "p.jsonl").write_text("\n".join([*lines, '{"id": "c", "question": "' + "long " * 60 + '"}']) + "\n")
    code, out, _ = vlm("infer", "p.jsonl", "-o", "out.jsonl", "--max-length", "150", *SHORT)
    found = replies(home / "out.jsonl")
    assert code == 0 and "4 of 4 questions: error 1" in out and [row["id"] for row in found] == ["a", "row 2", "b", "c"]
    assert "p.jsonl:2: not JSON" in found[1]["why"] and found[3]["outcome"] == "refused"
    assert "tokens" in found[3]["why"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("img", "-o", "out.jsonl"), 2, "img without --prompt"),
        (("gone.png", "-o", "out.jsonl", "--prompt", "?"), 2, "no such file: gone.png"),
        (("*.gif", "-o", "out.jsonl", "--prompt", "?"), 2, "no picture or video in *.gif"),
        (("http://x.invalid/a.png", "-o", "out.jsonl", "--prompt", "?"), 2, "add --allow-urls"),
        (("my.jsonl", "-o", "my.jsonl", "--prompt", "?"), 2, "is both read and written"),
        (("my.jsonl", "-o", "out.jsonl"), 3, "--columns question=COLUMN names it"),
        (("my.jsonl", "-o", "img", "--prompt", "?"), 2, "no file to write"),
        (("img", "-o", "out.jsonl", "--prompt", "?", "--seed", "1"), 2, "--seed without --temperature"),
        (("img", "-o", "out.jsonl", "--prompt", "?", "--stride", "many"), 2, "--stride many"),
        (("img", "-o", "out.jsonl", "--prompt", "?", "--positions", "odd"), 2, "positions"),
        (("img", "-o", "out.jsonl", "--prompt", "?", "--max-length", "3"), 3, "none of 2 questions was answered"),
    ],
)
def test_infer_says_what_is_wrong_with_the_line(words: tuple, code: int, message: str, vlm, home: Path) -> None:
    got, _, err = vlm("infer", *words)
    assert got == code and message in err and "Traceback" not in err
    assert not list(home.glob(".*.vlm"))


def test_infer_on_a_server_sends_the_settings_and_resumes(vlm, home: Path, server: Server) -> None:
    words = ("infer", "my.jsonl", "--columns", "question=q", "-o", "out.jsonl", "--backend", "openai")
    words += ("--base-url", server.url, "--temperature", "0.5", "--top-p", "0.9", "--seed", "7", *SHORT)
    code, out, _ = vlm(*words)
    assert code == 0 and "2 of 2 questions: ok 2" in out
    assert {row["reply"] for row in replies(home / "out.jsonl")} == {"yes"} and len(server.asked) == 2
    body = server.asked[0]
    assert (body["temperature"], body["top_p"], body["seed"], body["max_tokens"]) == (0.5, 0.9, 7, 4)
    assert vlm(*words)[0] == 0 and len(server.asked) == 2
    code, _, err = vlm(*words, "--stride", "64")
    assert code == 2 and "--stride with --backend openai" in err


def test_columns_are_read() -> None:
    assert read_columns("question=Q, answer = A") == {"question": "Q", "answer": "A"}
    assert read_columns(None) == {}
    for bad in ("question", "=Q", "a=b,,", "question="):
        with pytest.raises(ConfigError, match="FIELD=COLUMN"):
            read_columns(bad)
