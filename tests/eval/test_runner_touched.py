"""What changed is done again, and nothing else: a pixel, a tensor, a word of a prompt, a line of a scorer."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.eval import keys
from vlm.eval.backends.native import Checkpoint, NativeBackend
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini
from vlm.eval.run import results
from vlm.eval.run.runner import Options, run_evaluation

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Checkpoint, data and results of an evaluation of a tiny model; tests change copies."""
    from vlm.models.checkpoint.assemble import build
    from vlm.models.checkpoint.load import save_model
    from vlm.models.specs import load_preset

    home = tmp_path_factory.mktemp("home")
    save_model(build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=0), home / "weights", tokenizer=TOKENIZER)
    make_mini("POPE", home / "data", n=4)
    evaluate(home)
    return home


@pytest.fixture
def home(original, tmp_path):
    shutil.copytree(original, tmp_path / "home")
    return tmp_path / "home"


def evaluate(home, table=None):
    """Ids that were asked, in the same order as the rows."""
    keys.file_hash.cache_clear()  # another process would find it empty
    asked = []

    class Watched(NativeBackend):
        def encode(self, item_id, messages):
            asked.append(item_id)
            return super().encode(item_id, messages)

    backend = Watched(Checkpoint(home / "weights", device="cpu"))
    run_evaluation(table or load_benchmark("pope"), backend, home / "out", Options(replace=True), data=home / "data")
    return sorted(asked)


def rows(home):
    return {row["id"]: row for row in map(json.loads, (home / "out" / "results.jsonl").read_text().splitlines())}


def test_an_unchanged_evaluation_asks_nothing_wherever_it_lies(home):
    assert evaluate(home) == []


def test_one_pixel_asks_the_questions_about_that_picture(home):
    before, items = rows(home), load_items(load_benchmark("pope"), home / "data")
    path = items[0].messages[0]["content"][0]["path"]
    pixels = np.array(Image.open(path).convert("RGB"))
    pixels[3, 5, 1] ^= 1
    Image.fromarray(pixels).save(path, format="PNG" if path.endswith(".png") else "BMP")
    touched = sorted(i.id for i in items if i.messages[0]["content"][0]["path"] == path)
    assert evaluate(home) == touched and 0 < len(touched) < len(items)
    after = rows(home)
    assert [id_ for id_ in before if before[id_]["key"] != after[id_]["key"]] == [i for i in before if i in touched]


def test_one_word_of_one_question_asks_that_question(home):
    first, *others = (home / "data" / "llava_pope_test.jsonl").read_text().splitlines()
    record = json.loads(first)
    record["text"] = record["text"].replace("single word", "one word", 1)
    assert record != json.loads(first)
    edited = [json.dumps(record), *others]
    (home / "data" / "llava_pope_test.jsonl").write_text("\n".join(edited) + "\n")
    asked = evaluate(home)
    assert len(asked) == 1 and "one word" in rows(home)[asked[0]]["prompt"]


def test_one_word_of_the_table_asks_every_question(home):
    table = load_benchmark("pope")
    changed = table.model_copy(update={"prompt": {**table.prompt, "suffix": "please"}, "families": {}})
    assert len(evaluate(home, changed)) == len(load_items(table, home / "data"))


def test_one_number_in_one_tensor_asks_every_question(home):
    from safetensors.numpy import load_file, save_file

    (path,) = (home / "weights").glob("*.safetensors")
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].copy()
    tensors[name].flat[0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    assert len(evaluate(home)) == len(rows(home))


def test_one_line_of_a_scorer_scores_every_row_again_and_asks_nothing(home, monkeypatch, tmp_path):
    before = rows(home)
    package = Path(results.__file__).parents[1]
    copy = tmp_path / "eval"
    for room in ("scorers", "measures", "run"):
        shutil.copytree(package / room, copy / room)
    with (copy / "scorers" / "yesno.py").open("a") as source:
        source.write("# one line more\n")
    monkeypatch.setattr(results, "__file__", str(copy / "run" / "results.py"))
    scored = []
    monkeypatch.setattr(
        results, "score_item", lambda *args, f=results.score_item: scored.append(args[1].id) or f(*args)
    )
    results.scorer_hash.cache_clear()
    try:
        assert evaluate(home) == []
        after = rows(home)
    finally:
        results.scorer_hash.cache_clear()
    assert set(scored) == set(before)
    assert all(before[id_]["key"] != after[id_]["key"] for id_ in before)
    for id_, row in before.items():
        assert {**row, "key": after[id_]["key"], "images": after[id_]["images"]} == after[id_]
