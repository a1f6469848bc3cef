"""Finished results are never replaced by those of another model, other settings or fewer items."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import fake_backend as fake
from vlm.cli.find import model_name
from vlm.core.errors import ConfigError
from vlm.eval.benchmark import load_benchmark
from vlm.eval.keys import file_hash
from vlm.eval.mini import make_mini
from vlm.eval.run import results
from vlm.eval.run.runner import Options, run_evaluation
from vlm.eval.saved.score import score_predictions

WRITTEN = ("results.jsonl", "summary.json", "run.json", "timing.json")


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    fake.install(monkeypatch.setattr)


def evaluate(tmp_path: Path, backend=None, data="data", **options):
    backend = backend or fake.FakeBackend()
    options = Options(**{"batch_size": 8, **options})
    run_evaluation(fake.benchmark(), backend, tmp_path / "out", options, data=tmp_path / data)
    return [id_ for batch in backend.asked for id_ in batch]


def content(tmp_path: Path, names=WRITTEN) -> dict[str, bytes]:
    return {name: (tmp_path / "out" / name).read_bytes() for name in names}


def ids(tmp_path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("backend", "options", "why"),
    [
        (fake.FakeBackend(fingerprint="weights-2"), {}, r"of other weights \(weights-1, now weights-2\)"),
        (fake.FakeBackend(settings={"stride": None, "dtype": "bfloat16"}), {}, "dtype None, now bfloat16"),
        (fake.FakeBackend(settings={"stride": 64}), {}, "other settings .*stride None, now 64"),
        (None, {"limit": 4}, r"36 of them would be lost: 36 items are not asked now \(of 4\)"),
        (None, {"data": "elsewhere"}, "40 of them would be lost: the questions, pictures or limits are others now"),
        (None, {"shuffle_images": True}, "questions, pictures or limits are others now"),
    ],
)
def test_another_model_setting_or_part_is_refused_before_anything_is_asked(tmp_path, backend, options, why) -> None:
    evaluate(tmp_path)
    before = content(tmp_path)
    if "data" in options:  # as `--mini` after the real data: the same ids, other pictures
        fake.make_items(tmp_path / "elsewhere")
        for picture in (tmp_path / "elsewhere").glob("*.png"):
            fake.Image.new("RGB", (9, 9), (int(picture.stem), 1, 2)).save(picture)
    file_hash.cache_clear()
    backend = backend or fake.FakeBackend()
    with pytest.raises(ConfigError, match=why) as error:
        evaluate(tmp_path, backend, **options)
    assert "--name NAME or --out DIR" in error.value.fix and "--replace" in error.value.fix
    assert backend.asked == [] and content(tmp_path) == before
    evaluate(tmp_path, backend, replace=True, **options)  # on purpose
    assert content(tmp_path) != before


def test_more_items_of_the_same_evaluation_are_added_and_fewer_are_refused(tmp_path) -> None:
    evaluate(tmp_path, limit=4)
    assert sorted(evaluate(tmp_path, limit=10)) == [f"id{i}" for i in range(4, 10)]
    assert ids(tmp_path) == [f"id{i}" for i in range(10)]
    assert len(evaluate(tmp_path)) == fake.N - 10
    with pytest.raises(ConfigError, match="30 of them would be lost"):
        evaluate(tmp_path, limit=10)
    assert len(ids(tmp_path)) == fake.N


def test_items_without_an_answer_are_asked_again_whatever_changed_about_them(tmp_path) -> None:
    evaluate(tmp_path, fake.FakeBackend(unreadable=frozenset({"id6"})))
    fake.Image.new("RGB", (9, 9)).save(tmp_path / "data" / "3.png")  # the picture of id6 and id7
    file_hash.cache_clear()
    with pytest.raises(ConfigError, match=r"39 answers, and 1 of them"):  # id7 was answered
        evaluate(tmp_path)
    assert sorted(evaluate(tmp_path, replace=True)) == ["id6", "id7"]


def test_a_corrected_scorer_scores_again_in_place(tmp_path, monkeypatch) -> None:
    evaluate(tmp_path)
    monkeypatch.setattr(results, "scorer_hash", lambda: "another")
    assert evaluate(tmp_path) == []
    assert json.loads(content(tmp_path)["summary.json"])["provenance"]["scorers"] == "another"
    with pytest.raises(ConfigError, match="other weights"):
        evaluate(tmp_path, fake.FakeBackend(fingerprint="weights-2"))


@pytest.mark.parametrize("name", ["results.jsonl", "summary.json"])
def test_what_a_kill_or_a_disk_damaged_is_completed_by_the_same_command(tmp_path, name) -> None:
    evaluate(tmp_path)
    before = content(tmp_path, WRITTEN[:2])
    (tmp_path / "out" / name).write_bytes(before[name][:100])
    assert evaluate(tmp_path) == []
    assert content(tmp_path, WRITTEN[:2]) == before


def test_the_last_shard_of_another_model_does_not_replace_what_was_finished_meanwhile(tmp_path) -> None:
    other = fake.FakeBackend(fingerprint="weights-2")
    evaluate(tmp_path, other, shard=(0, 2))
    evaluate(tmp_path)
    before = content(tmp_path)
    for backend, options in ((other, {"shard": (1, 2)}), (other, {})):
        with pytest.raises(ConfigError, match="other weights"):
            evaluate(tmp_path, backend, **options)
    assert content(tmp_path) == before


def test_saved_predictions_do_not_replace_others_of_the_same_name(tmp_path, monkeypatch) -> None:
    monkeypatch.undo()
    data = make_mini("POPE", tmp_path / "pope", n=2)
    table = load_benchmark("POPE")
    questions = [json.loads(line) for line in (data / "llava_pope_test.jsonl").read_text().splitlines()]
    for folder, reply in (("a", "yes"), ("b", "no")):
        (tmp_path / folder).mkdir()
        lines = [json.dumps({"question_id": q["question_id"], "text": reply}) for q in questions]
        (tmp_path / folder / "answers.jsonl").write_text("\n".join(lines) + "\n")

    def score(folder: str, **options):
        files = [tmp_path / folder / "answers.jsonl"]
        return score_predictions(table, files, tmp_path / "out", data=data, name="imported-answers", **options)

    score("a")
    before = content(tmp_path, WRITTEN[:2])
    score("a")
    with pytest.raises(ConfigError, match="other weights"):
        score("b")
    assert content(tmp_path, WRITTEN[:2]) == before
    score("b", replace=True)
    assert content(tmp_path, WRITTEN[:2]) != before


def test_a_step_of_a_run_is_named_with_its_run() -> None:
    assert model_name(Path("/h/exp1/checkpoint-500")) == "exp1-checkpoint-500"
    assert model_name(Path("/h/runs/demo/checkpoints/step-00000020")) == "checkpoints-step-00000020"
    assert model_name(Path("/h/pretrained/V2PE-32K")) == "V2PE-32K"
    assert model_name(Path("checkpoint-500")) == "checkpoint-500"
    assert len(os.fsencode(model_name(Path("/h") / ("x" * 250)))) <= 200


def test_two_checkpoints_of_one_name_keep_their_results_in_the_real_command(tmp_path) -> None:
    from vlm.models.checkpoint.assemble import build
    from vlm.models.checkpoint.load import save_model
    from vlm.models.specs import load_preset

    tokenizer = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"
    for seed, folder in enumerate(("exp1/checkpoint-500", "exp2/checkpoint-500", "orgA/tiny", "orgB/tiny")):
        model = build(load_preset("tiny-internvl2"), tokenizer=tokenizer, seed=seed % 2)
        save_model(model, tmp_path / folder, tokenizer=tokenizer)

    def vlm(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "vlm.cli.main", "eval", "pope", "--mini", "--out", "out", *words]
        env = {**os.environ, "VLM_HOME": str(tmp_path), "COLUMNS": "300"}
        return subprocess.run(line, env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path)

    for name in ("exp1", "exp2"):
        done = vlm("--limit", "4", "--model", f"{tmp_path}/{name}/checkpoint-500")
        assert done.returncode == 0, done.stderr
        assert "the first 4 of 36 items" in " ".join(done.stdout.split())
    kept = [tmp_path / "out" / f"{name}-checkpoint-500" / "POPE" / "default" for name in ("exp1", "exp2")]
    weights = [json.loads((folder / "summary.json").read_text())["provenance"]["weights"] for folder in kept]
    assert weights[0] != weights[1]

    assert vlm("--limit", "4", "--model", f"{tmp_path}/orgA/tiny").returncode == 0
    refused = vlm("--limit", "4", "--model", f"{tmp_path}/orgB/tiny")
    assert refused.returncode == 2 and "other weights" in refused.stderr and "Traceback" not in refused.stderr
    assert vlm("--limit", "4", "--model", f"{tmp_path}/orgB/tiny", "--name", "orgB").returncode == 0
