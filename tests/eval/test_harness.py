"""Our models in lmms-eval and VLMEvalKit, each in its own virtual environment: the same answers as our own runner."""

import csv
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from support.environments import call, environment
from support.harnesses import LMMS_CODE, LMMS_TASK
from vlm.core.errors import ConfigError, DataError
from vlm.core.sample.records import image, text
from vlm.eval.harness.model import HarnessModel, media_in_front, new_token_limit

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "tests" / "golden" / "data" / "tokenizers" / "internlm2"
BUDGET = 10


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from vlm.models.checkpoint.assemble import build
    from vlm.models.checkpoint.load import save_model
    from vlm.models.specs import load_preset

    folder = tmp_path_factory.mktemp("weights") / "tiny"
    save_model(build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=0), folder, tokenizer=TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def ours(checkpoint, tmp_path_factory):
    """Items of a miniature POPE, and what our runner answers to each."""
    from vlm.eval.backends.native import Checkpoint, NativeBackend
    from vlm.eval.benchmark import load_benchmark
    from vlm.eval.loaders import load_items
    from vlm.eval.mini import make_mini
    from vlm.eval.run.runner import Options, run_evaluation

    folder = tmp_path_factory.mktemp("pope")
    data, table = make_mini("POPE", folder / "data", n=4), load_benchmark("pope")
    generation = table.generation.model_copy(update={"max_new_tokens": BUDGET})
    table = table.model_copy(update={"generation": generation, "families": {}})
    run_evaluation(table, NativeBackend(Checkpoint(checkpoint, device="cpu")), folder / "out", Options(), data=data)
    rows = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    answers = {row["id"]: row["completion"] for row in rows}
    assert len(set(answers.values())) > 1, "equal answers to all questions would prove nothing"
    return load_items(table, data), answers


def parts_of(item):
    """Image path and words of a question, as a harness has them: apart."""
    picture, words = item.messages[0]["content"]
    return picture["path"], words["text"].removeprefix("\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_lmms_eval_gets_the_answers_of_our_runner(tmp_path, checkpoint, ours, request):
    python = environment(request.config.cache, "lmms-eval==0.7.3")
    items, expected = ours
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = tmp_path / "rows.jsonl"
    lines = [dict(zip(("path", "question"), parts_of(i), strict=True), id=i.id, gold=i.gold) for i in items]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tasks / "mini_pope.yaml").write_text(LMMS_TASK.replace("ROWS", str(rows)))
    (tasks / "mini_pope.py").write_text(LMMS_CODE)
    model = f"pretrained={checkpoint},device=cpu"
    arguments = ["--model", "vlm", "--model_args", model, "--tasks", "mini_pope", "--include_path", tasks]
    call(python, tmp_path, "-m", "lmms_eval", *arguments, "--output_path", tmp_path / "out", "--log_samples")
    (samples,) = (tmp_path / "out").rglob("*samples_mini_pope.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    answers = {items[sample["doc_id"]].id: sample["filtered_resps"] for sample in found}
    assert answers == expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_vlmevalkit_gets_the_answers_of_our_runner(tmp_path, checkpoint, ours, request):
    python = environment(request.config.cache, "ms-vlmeval==0.0.20")
    items, expected = ours
    with (tmp_path / "MiniPope.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "image_path", "question", "answer"])
        table.writerows([number, *parts_of(item), item.gold] for number, item in enumerate(items))
    arguments = ["--weights", checkpoint, "--name", "tiny", "--device", "cpu", "--max-new-tokens", BUDGET]
    arguments += ["--data", "MiniPope", "--mode", "infer", "--work-dir", tmp_path / "out"]
    variables = {"LMUData": str(tmp_path), "PRED_FORMAT": "json"}
    call(python, tmp_path, "-m", "vlm.eval.harness.vlmevalkit", *arguments, **variables)
    (predictions,) = (p for p in (tmp_path / "out").rglob("tiny_MiniPope.json") if p.is_file())
    found = json.loads(predictions.read_text())
    assert {items[row["index"]].id: row["prediction"] for row in found} == expected


def test_the_entry_point_that_lmms_eval_reads_is_declared():
    import tomllib

    declared = tomllib.loads((ROOT / "packages" / "eval" / "pyproject.toml").read_text())
    (target,) = declared["project"]["entry-points"]["lmms_eval.models"].values()
    module, function = target.split(":")
    source = ROOT / "packages/eval/src" / (module.replace(".", "/") + ".py")
    assert f"def {function}()" in source.read_text()


def test_pictures_in_memory_get_the_answers_of_the_files_they_came_from(checkpoint, ours):
    items, expected = ours
    model = HarnessModel(checkpoint, device="cpu")
    questions = []
    for item in items:
        path, words = parts_of(item)
        with Image.open(path) as picture:
            content = media_in_front([image(model.store_picture(picture)), text(words)])
        questions.append(([{"role": "user", "content": content}], BUDGET))
    assert model.answer(questions) == list(expected.values())


def test_an_answer_that_failed_is_an_error_and_no_text_for_a_harness_to_score(checkpoint, tmp_path):
    model = HarnessModel(checkpoint, device="cpu")
    content = [image(tmp_path / "lost.png"), text("\nWhat?")]
    with pytest.raises(DataError, match=r"question 0: error: .*lost\.png"):
        model.answer([([{"role": "user", "content": content}], 4)])


def test_media_stand_in_front_of_the_words_or_where_the_words_say():
    a, b = image("/a"), image("/b")
    assert media_in_front([a, b, text("Which?")]) == [a, text("\n"), b, text("\nWhich?")]
    assert media_in_front([a, b, text("In <image> and <image>?")]) == [text("In "), a, text(" and "), b, text("?")]
    assert media_in_front([text("See"), a, text("?")]) == [text("See"), a, text("?")]
    assert media_in_front([text("Why?")]) == [text("Why?")]
    with pytest.raises(DataError, match="without words"):
        media_in_front([a])


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"temperature": 1, "do_sample": True}, {"num_beams": 5}])
def test_anything_but_greedy_decoding_is_refused(settings):
    with pytest.raises(ConfigError, match="greedy"):
        new_token_limit(settings, 16)


def test_the_budget_is_that_of_the_task():
    assert new_token_limit({"max_new_tokens": 7, "temperature": 0, "do_sample": False}, 16) == 7
    assert new_token_limit({"temperature": 0.7, "do_sample": False}, 16) == 16
    assert sys.modules.get("lmms_eval") is None  # our own process never imports a harness
