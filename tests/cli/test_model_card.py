"""The model card: recipe and its differences, data and ledger, scores of these weights alone, licenses; no path."""

import json
from pathlib import Path

import pytest

from support.model_cards import card_faults, front_matter
from vlm.cli.share.card import write_card
from vlm.core.home import write_json
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.load import fingerprint, save_model
from vlm.models.specs import load_preset
from vlm.train.recipe.recipe import load_recipe

TOKENIZER = Path(__file__).parents[1] / "golden/data/tokenizers/internlm2"


def stage(home: Path, run: str, recipe_name: str, *overrides: str, lines: dict[str, int] | None = None) -> Path:
    """Write a finished training as `vlm train` leaves it, with a tiny model; return the model's folder."""
    recipe = load_recipe(recipe_name, overrides=overrides)
    out = home / "runs" / run / "train" / recipe.name
    spec = load_preset("tiny-internvl2").model_copy(update={"strides": 64.0, "stride_choices": (1.0, 64.0)})
    model = build(spec, tokenizer=TOKENIZER, seed=1)
    save_model(model, out / "model", tokenizer=TOKENIZER)
    record = {
        "digest": recipe.digest,
        "start": "0" * 64,
        "lines": lines or {entry.file: 100 for entry in recipe.data},
        "recipe": recipe.model_dump(mode="json"),
    }
    write_json(out / "recipe.json", record)
    ledger = {"in": 120, "used": 117, "dropped": 3, "truncated": 2, "replaced": 0}
    write_json(out / "summary.json", {"recipe": recipe.name, "ledger": ledger, "trained": {}, "unseen": 0})
    (out / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    entry = {"id": "a.jsonl:3", "what": "dropped", "reason": "a.jsonl:3: no such file: /home/ada/secret/x.png"}
    (out / "ledger.jsonl").write_text((json.dumps(entry) + "\n") * 3)
    return out / "model"


def evaluation(home: Path, name: str, weights: str, value: float) -> Path:
    """Write a finished evaluation as `vlm eval` leaves it."""
    folder = home / "runs" / name
    ok = {"benchmark": "POPE", "outcome": "ok", "score": 1.0, "strict_score": 1.0}
    rows = [ok | {"id": str(number)} for number in range(19)]
    rows.append({"benchmark": "POPE", "id": "19", "outcome": "error", "score": None, "strict_score": None})
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    numbers = {"value": value, "low": value - 5, "high": value + 5, "scored": 19, "total": 20}
    metrics = [{"name": "accuracy", "note": "", **numbers}]
    summary = {
        "benchmark": "POPE", "title": "POPE", "model": "m", "variant": {"stride": 64.0}, "metrics": metrics,
        "strict_metrics": metrics, "outcomes": {"ok": 19, "error": 1}, "data": {"items": 20, "available": 20},
        "published": [], "provenance": {"weights": weights, "scorers": "", "decode": {}},
    }  # fmt: skip
    write_json(folder / "summary.json", summary)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    return tmp_path


def test_a_published_recipe_is_shown_with_its_differences_and_what_was_changed(home: Path) -> None:
    model = stage(home, "v2pe", "v2pe-32k", "optimizer.lr=1e-4", "steps=7", "epochs=null")
    card = write_card(model, "ada/long")
    for one in load_recipe("v2pe-32k").differences:
        assert one.key in card and one.published.replace("`", "'").replace("|", "\\|") in card, one.key
    assert "changed here: `optimizer.lr: " in card and "-> 0.0001`" in card and "changed here: `steps: " in card
    about = front_matter(card)
    assert card_faults(card) == []
    assert about["license"] == "mit" and about["base_model"] == ["OpenGVLab/InternVL2-2B"]
    assert "v2pe" in about["tags"] and "base: InternVL2-2B: MIT" in card
    assert "V2PE, stride 64" in card and "strides in training | 1, 64" in card


def test_data_and_ledger_are_counted_with_reasons_and_without_paths(home: Path) -> None:
    own = "/home/ada/secret/mine.jsonl"
    data = json.dumps([{"name": "mine", "file": own, "root": "/home/ada/pictures", "repeat": 2.0}])
    model = stage(home, "own", "quickstart-v2pe-sft", f"data={data}", lines={own: 60})
    card = write_card(model, "ada/own")
    assert "| `mine.jsonl` | 60 | 2 times |" in card
    assert "Samples: 120 drawn: 117 used, 3 dropped, 2 truncated; 2 steps." in card
    assert "dropped: 3: " in card and "no such file" in card
    assert "/home/ada" not in card and "secret" not in card and str(home) not in card
    assert "data: `mine.jsonl`: license unknown" in card


def test_scores_are_those_of_these_weights_with_intervals_and_counts(home: Path) -> None:
    model = stage(home, "v2pe", "quickstart-v2pe-sft")
    evaluation(home, "v2pe/eval/pope", fingerprint(model), 81.25)
    evaluation(home, "other/eval/pope", "1" * 64, 12.5)
    damaged = evaluation(home, "other/eval/damaged", "1" * 64, 13.5)
    (damaged / "summary.json").write_text("{")
    card = write_card(model, "ada/scored")
    assert "| POPE | stride 64 | accuracy | 81.25 [76.25, 86.25] | 19 of 20 | 1 items unscored |" in card
    assert "12.5" not in card and "13.5" not in card


def test_a_model_of_several_trainings_tells_all_of_them_and_its_first_base(home: Path) -> None:
    first = stage(home, "a", "internvl2_5-2b-finetune")
    start = json.dumps(first.relative_to(home).as_posix())
    second = stage(home, "b", "v2pe-32k", f"model.start={start}")
    card = write_card(second, "ada/both")
    assert card.index("### internvl2_5-2b-finetune") < card.index("### v2pe-32k")
    assert "InternVL2_5-2B" in str(front_matter(card)["base_model"])


def test_a_lossy_layout_and_the_folders_own_words_stay_in_the_card(home: Path, tmp_path: Path) -> None:
    model = stage(home, "v2pe", "quickstart-v2pe-sft")
    (model / "README.md").write_text("---\nlicense: mit\n---\n# Mine\nbe kind\n")
    (tmp_path / "lost.md").write_text("# x in the hf layout\n- **strides**: lost\n")
    card = write_card(model, "ada/lossy", to="hf", lost=tmp_path / "lost.md")
    assert "### Mine\nbe kind" in card and "**strides**: lost" in card and card.count("license:") == 1
    assert front_matter(card)["library_name"] == "transformers"


def test_foreign_text_cannot_break_the_card(home: Path) -> None:
    title = json.dumps("a|b\n---\nlicense: mit\n<script>alert(1)</script> \x1b[31m")
    model = stage(home, "own", "quickstart-v2pe-sft", f"title={title}")
    card = write_card(model, "ada/own")
    head = card.partition("<details>")[0]
    assert "<script>" not in head and "\x1b" not in card and front_matter(card)["license"] == "unknown"
