"""`vlm data check` and `vlm data ledger` as a person types them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from vlm.cli.commands.data import app
from vlm.cli.options import TrainOptions
from vlm.core.errors import CheckpointError, ConfigError, DataError, VlmError
from vlm.models.checkpoint.assemble import with_tokenizer
from vlm.models.specs import load_preset

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"


def record(i: int, image: object, question: str = "<image>\nWhat is it?") -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A grey picture. " * (i + 1)}]
    return {"id": f"s{i}", "image": image, "conversations": turns}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Six good records, a model folder without weights, and a recipe."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    data, model = tmp_path / "dataset" / "tiny", tmp_path / "pretrained" / "tiny"
    data.mkdir(parents=True)
    shutil.copytree(TOKENIZER, model)
    spec = with_tokenizer(load_preset("tiny-internvl2"), TOKENIZER).model_dump(mode="json")
    (model / "config.json").write_text(json.dumps({"model_type": "vlm", "spec": spec}))
    for i in range(6):
        Image.new("RGB", (30 + 40 * i, 60)).save(data / f"{i}.png")
    write(data / "train.jsonl", [record(i, f"{i}.png") for i in range(6)])
    recipe = {
        "title": "tiny",
        "model": {"start": "pretrained/tiny", "preset": "tiny-internvl2"},
        "data": [{"name": "tiny", "file": "dataset/tiny/train.jsonl", "root": "dataset/tiny", "repeat": 2}],
        "trainable": ["*"],
        "optimizer": {"lr": 0.1},
        "batch": {"samples": 2, "max_tokens": 512},
        "steps": 1,
        "strides": "random",
        "stride_choices": [1, 2],
        "max_length": 512,
        "sources": {"": "test"},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    return tmp_path


def write(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def run(*words: object):
    return CliRunner().invoke(app, [str(w) for w in words], env={"COLUMNS": "200"})


def test_a_recipe_is_checked_and_reported_in_every_form(home):
    done = run("check", home / "mine.yaml", "--json", "out/check.json", "--png", "out/tokens.png", "--workers", 1)
    assert done.exit_code == 0, done.output
    assert "6 of 6 samples can be used" in done.output and "positions 2" in done.output
    facts = json.loads((home / "out/check.json").read_text())
    assert facts["usable"] == 6 and [len(row) for row in facts["rows"]["tiny"]] == [len(facts["columns"])] * 6
    assert facts["columns"][-3:] == ["positions_arange", "positions_1", "positions_2"]
    assert facts["sources"][0]["repeat"] == 2 and facts["max_length"] == 512
    with Image.open(home / "out/tokens.png") as png:
        assert png.format == "PNG" and png.width > 400


def test_faults_are_listed_and_the_exit_code_says_so(home):
    broken = [
        record(0, "0.png"),
        record(1, ["1.png", "2.png"]),
        record(2, "nothing.png"),
        record(3, "3.png", "<image><image>"),
    ]
    write(home / "dataset/tiny/train.jsonl", broken)
    done = run("check", "dataset/tiny/train.jsonl", "--model", "tiny", "--json", "out.json")
    assert isinstance(done.exception, DataError) and "3 of 4 samples cannot be used" in str(done.exception)
    for line in (
        "train:2 (s1): placeholders: 1 <image> placeholders but 2 files",
        "train:4 (s3): placeholders: 2 <image> placeholders but 1 files",
        "train:3 (s2): missing",
    ):
        assert line in done.output
    kinds = [(p["line"], p["kind"]) for p in json.loads((home / "out.json").read_text())["problems"]]
    assert kinds == [(2, "placeholders"), (3, "missing"), (4, "placeholders")]


def test_markup_and_escapes_in_ids_and_names_are_shown_as_text(home):
    ids = ["[/bold]", "[red]x[/red]", "\x1b]0;PWN\x07", "[link=http://e]k[/link]"]
    lines = [{**record(0, "0.png"), "id": id} for id in ids]
    lines += [{**record(0, "[/nope].png"), "id": "[/oops]"}, {**record(0, "\x1b[2J.png"), "id": "a", "[/key]": 1}]
    write(home / "dataset/tiny/train.jsonl", lines)
    done = run("check", "dataset/tiny/train.jsonl", "--model", "tiny", "--json", "out.json", "--workers", 1)
    assert isinstance(done.exception, DataError) and "2 of 6 samples" in str(done.exception), done.output
    assert "\x1b]0" not in done.output and "\x1b[2J" not in done.output
    for shown in ("[/bold]", "[red]x[/red]", "[/oops]", "[/key]", "\\x1b[2J.png"):
        assert shown in done.output
    assert json.loads((home / "out.json").read_text())["unread"] == {"train": {"[/key]": 1}}


def test_keys_that_nothing_reads_are_named_once_with_what_is_meant(home):
    lines = [{**record(i, f"{i}.png"), "weight": 2, "source": "web"} for i in range(6)]
    lines[0]["conversations"][1]["weight"] = 0
    write(home / "dataset/tiny/train.jsonl", lines)
    done = run("check", "dataset/tiny/train.jsonl", "--model", "tiny")
    assert done.exit_code == 0, done.output
    assert done.output.count("source") == 1 and "samples have no weight" in done.output
    assert "write `loss: 0` on an answer" in done.output


def test_what_a_file_may_hold_on_purpose_is_allowed_by_name(home):
    quoting = {"id": 1, "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "Yes."}]}
    write(home / "dataset/tiny/train.jsonl", [quoting])
    line = ("check", "dataset/tiny/train.jsonl", "--model", "tiny")
    assert isinstance(run(*line).exception, DataError)
    assert run(*line, "--allow", "quoted-placeholders").exit_code == 0
    assert isinstance(run("check", home / "mine.yaml", "--allow", "empty-answers").exception, ConfigError)


def test_damage_behind_a_good_header_needs_decode(home):
    path = home / "dataset/tiny/3.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(content)
    assert run("check", home / "mine.yaml", "--workers", 1).exit_code == 0
    done = run("check", home / "mine.yaml", "--workers", 1, "--decode")
    assert isinstance(done.exception, DataError) and "1 of 6 samples" in str(done.exception)


def test_max_length_shows_what_it_would_cut(home):
    def tokens(*more):
        done = run("check", "dataset/tiny/train.jsonl", "--model", "tiny", "--json", "out.json", *more)
        facts = json.loads((home / "out.json").read_text())
        return done, facts, [dict(zip(facts["columns"], row, strict=True)) for row in facts["rows"]["train"]]

    longest = max(row["tokens"] for row in tokens()[2])
    done, facts, rows = tokens("--max-length", longest - 1)
    cut = [row for row in rows if row["tokens_kept"] < row["tokens"]]
    assert done.exit_code == 0 and "max_length cuts the end of an answer" in done.output
    assert [(row["tokens"], row["tokens_kept"]) for row in cut] == [(longest, longest - 1)]
    assert facts["faults"] == {"cut": 1} and cut[0]["labels_kept"] == cut[0]["labels"] - 1
    done, facts, _ = tokens("--max-length", 5)
    assert isinstance(done.exception, DataError) and facts["faults"] == {"image cut": 6} and facts["usable"] == 0


def test_a_preset_needs_only_a_tokenizer(home):
    words = ("check", "dataset/tiny/train.jsonl", "--preset", "tiny-internvl2")
    assert run(*words, "--tokenizer", TOKENIZER).exit_code == 0
    refused = {
        words: "no tokenizer to count with",
        ("check", "dataset/tiny/train.jsonl"): "a file alone has no image rule",
        (*words, "--model", "tiny"): "both --model and --preset",
    }
    for line, why in refused.items():
        error = run(*line).exception
        assert isinstance(error, ConfigError) and why in str(error)
    assert isinstance(run("check", "nothing.jsonl", "--model", "tiny").exception, DataError)
    assert isinstance(run("check", "dataset/tiny/train.jsonl", "--model", "nowhere").exception, VlmError)


def test_a_recipe_whose_start_is_not_here_is_checked_with_its_preset(home):
    (home / "pretrained/tiny").rename(home / "pretrained/tiny-internvl2")
    assert run("check", home / "mine.yaml").exit_code == 0
    (home / "pretrained/tiny-internvl2").rename(home / "elsewhere")
    assert "no tokenizer" in str(run("check", home / "mine.yaml").exception)


def change_spec(home, change):
    path = home / "pretrained/tiny/config.json"
    config = json.loads(path.read_text())
    change(config["spec"])
    path.write_text(json.dumps(config))


def test_positions_beyond_the_trained_range_are_counted(home):
    change_spec(home, lambda spec: spec["language"].update(max_positions=60))
    done = run("check", home / "mine.yaml", "--json", home / "out.json")
    found = json.loads((home / "out.json").read_text())
    columns, rows = found["columns"], found["rows"]["tiny"]
    for name in ("positions_arange", "positions_1", "positions_2"):
        beyond = sum(row[columns.index(name)] > 60 for row in rows)
        assert found["beyond_positions"].get(name, 0) == beyond
        assert (f"{beyond} samples reach beyond the 60 positions of the model ({name})" in done.stderr) == bool(beyond)
    assert found["beyond_positions"]


def test_a_model_whose_tokenizer_does_not_fit_is_not_counted_with(home):
    change_spec(home, lambda spec: spec["language"].update(vocab=600))
    error = run("check", home / "mine.yaml").exception
    assert isinstance(error, CheckpointError) and "the tokenizer has 651 tokens, the embedding 600 rows" in error.found


def test_torch_is_never_imported(home):
    code = """
import sys
from vlm.cli.main import main
sys.argv = ["vlm", "data", "check", sys.argv[1], "--json", "out.json", "--png", "out.png", "--workers", "1"]
try:
    main()
finally:
    print(sorted({"torch", "transformers", "timm", "deepspeed"} & sys.modules.keys()))
"""
    command = [sys.executable, "-c", code, str(home / "mine.yaml")]
    done = subprocess.run(
        command, env=os.environ | {"VLM_HOME": str(home)}, capture_output=True, text=True, check=False, cwd=home
    )
    assert done.stdout.splitlines() == ["[]"], done.stderr


LOST = [
    {"step": 0, "id": "tiny:4", "what": "dropped", "stage": "media", "reason": "no such file: /a/b/1.png\n  fix: x"},
    {"step": 1, "id": "tiny:9", "what": "dropped", "stage": "media", "reason": "no such file: /a/c/2.png\n  fix: x"},
    {"step": 1, "id": "tiny:5", "what": "truncated", "stage": "encode", "reason": "cut to 9 tokens"},
]


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A run of two steps of four samples that lost three."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    folder = tmp_path / "runs/mine/train/tiny"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"recipe": {"name": "tiny", "batch": {"samples": 4}}}))
    write(folder / "metrics.jsonl", [{"step": 0, "samples": 3}, {"step": 1, "samples": 3}])
    write(folder / "ledger.jsonl", LOST)
    return folder


def test_a_ledger_shows_totals_by_reason_and_that_it_closes(stage):
    done = run("ledger", "runs/mine")
    assert done.exit_code == 0 and "closes" in done.output, done.output
    assert "in 8, used 5, dropped 2, truncated 1, replaced 0" in done.output
    (told,) = json.loads(run("ledger", "runs/mine/train/tiny", "--json").stdout)
    assert told["closes"] and told["counts"] == {"in": 8, "used": 5, "dropped": 2, "truncated": 1, "replaced": 0}
    assert [(r["what"], r["stage"], r["reason"], r["samples"]) for r in told["reasons"]] == [
        ("dropped", "media", "no such file: FILE", 2),
        ("truncated", "encode", "cut to 9 tokens", 1),
    ]
    assert [e["id"] for e in told["entries"]] == ["tiny:4", "tiny:9", "tiny:5"]


def test_a_ledger_that_does_not_close_fails(stage):
    write(stage / "ledger.jsonl", LOST[1:])
    done = run("ledger", stage)
    assert isinstance(done.exception, DataError) and "does not close" in done.output
    write(stage / "ledger.jsonl", LOST)
    counts = {"in": 8, "used": 5, "dropped": 3, "truncated": 1, "replaced": 0}
    (stage / "summary.json").write_text(json.dumps({"ledger": counts}))
    assert "summary.json says dropped 3, the logs say 2" in run("ledger", stage).output


def test_a_folder_without_a_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    assert "no training run" in str(run("ledger", "runs/none").exception)


def test_files_outside_are_faults_until_their_folder_is_allowed(home, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    Image.new("RGB", (60, 60)).save(outside / "a.png")
    write(home / "dataset/tiny/train.jsonl", [record(i, str(outside / "a.png")) for i in range(6)])
    words = ["check", str(home / "mine.yaml")]
    refused = run(*words)
    assert isinstance(refused.exception, DataError) and "6 of 6 samples cannot be used" in str(refused.exception)
    assert "leads out of" in refused.stderr and "--allow-outside" in refused.stderr
    assert run(*words, "--allow-outside", outside).exit_code == 0
    recipe = json.loads((home / "mine.yaml").read_text())
    (home / "mine.yaml").write_text(json.dumps({**recipe, "allow_outside": [str(outside)]}))
    assert run(*words).exit_code == 0


def test_train_and_launch_pass_allowed_folders_on():
    options = TrainOptions(recipe="r", set_=["steps=3"], allow_outside=[Path("/a b"), Path("c")])
    assert options.overrides == ("steps=3", 'allow_outside=["/a b", "c"]')
    assert options.words() == ["--recipe", "r", "--set", "steps=3", "--allow-outside", "/a b", "--allow-outside", "c"]
