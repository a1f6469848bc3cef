"""`vlm train -m MODEL --data FILE`: the recipe that is made, the run that follows, and what stops it before."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm.cli.options import TrainOptions
from vlm.cli.own_data import recipe_of
from vlm.core.errors import ConfigError, DataError
from vlm.core.home import write_json
from vlm.core.rows.source import find_source
from vlm.core.rows.write import ImportOptions, write_normal
from vlm.models.checkpoint.formats.ours import write_spec
from vlm.models.specs import load_preset
from vlm.train.own.data import OwnSet, faults_of_first, own_set
from vlm.train.own.defaults import FINE_TUNING, nearest_preset, own_recipe, scaled
from vlm.train.own.fitting import fitted
from vlm.train.plan.machines import Machine
from vlm.train.recipe.recipe import Recipe, load_recipe
from vlm.train.recipe.sections import DataEntry


def messages(question: str, answer: str, image: str | None = None) -> dict[str, Any]:
    content: Any = question
    if image:
        content = [{"type": "image", "path": image}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def pets(home: Path, tmp_path: Path) -> Path:
    """Ten records in another form than the normal one, and four that are held back."""
    image = str(home / "dataset/tiny/images/1_0.png")
    rows = [messages(f"What is {i}?", f"It is {i}.", image if i % 2 else None) for i in range(10)]
    held = [{"conversations": [{"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": "x"}]} for i in range(4)]
    for name, records in (("pets", rows), ("held", held)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    return tmp_path / "pets.jsonl"


def given(pets: Path, **more: Any) -> TrainOptions:
    return TrainOptions(
        model="tiny-internvl2",
        data=[str(pets)],
        allow_outside=[Path("dataset/tiny")],
        run=pets.parent / "run",
        quiet=True,
        **more,
    )


def test_a_run_is_made_measured_resumed_and_left_alone_by_the_same_line(vlm, pets: Path) -> None:
    held = pets.parent / "held.jsonl"
    words = ("train", "-m", "tiny-internvl2", "--data", pets, "--eval-data", held, "--run", pets.parent / "run")
    line = (*words, "--allow-outside", "dataset/tiny", "--set", "steps=6", "--set", "save_every=2", "--quiet")
    child = vlm(*line)
    assert child.wait(120) == 0, child.said
    out = pets.parent / "run/train/tiny-internvl2-pets"
    assert str(out / "model") in child.said
    steps = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps if "eval_loss" in step] == [1, 3, 5]
    assert all(step["eval_samples"] == 4 for step in steps if "eval_loss" in step)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["eval_loss"] == steps[-1]["eval_loss"] and summary["eval_dropped"] == {}
    before = (out / "metrics.jsonl").read_bytes()
    again = vlm(*line)
    assert again.wait(120) == 0, again.said
    assert (out / "metrics.jsonl").read_bytes() == before
    file = next((pets.parent / "run").glob("*.yaml"))
    assert load_recipe(str(file)).eval_data[0].name == "held"  # a complete recipe, which can be copied and changed
    other = vlm("train", "--recipe", file, "--run", pets.parent / "run", *line[-5:])
    assert other.wait(120) == 0, other.said


def test_held_back_data_changes_no_step(alone, recipe, tmp_path: Path, home: Path) -> None:
    from vlm.train.run.loop import train

    entry = [{"name": "held", "file": "dataset/tiny/train.jsonl", "root": "dataset/tiny"}]
    plain = alone("steps=3")
    train(recipe("steps=3", "save_every=2", eval_data=entry), tmp_path / "measured", quiet=True)
    lines = [
        [json.loads(text)["loss"] for text in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (plain, tmp_path / "measured")
    ]
    assert lines[0] == lines[1]
    assert recipe("steps=3").digest == recipe("steps=3", eval_data=entry).digest


def test_the_held_back_loss_is_that_of_the_start_without_a_rate(recipe, tmp_path: Path, home: Path) -> None:
    """At rate 0 the loss of one step over all records is the loss of the same records held back."""
    from vlm.train.run.loop import train

    entry = [{"name": "held", "file": "dataset/tiny/train.jsonl", "root": "dataset/tiny"}]
    sets = ("steps=1", "batch.samples=24", "optimizer.lr=0", "strides=null")
    train(recipe(*sets, eval_data=entry), tmp_path / "out", quiet=True)
    [line] = [json.loads(text) for text in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert line["eval_samples"] == 24 and line["eval_loss"] == pytest.approx(line["loss"], rel=1e-5)


def test_held_back_records_that_cannot_be_used_stop_the_run(recipe, tmp_path: Path, home: Path) -> None:
    from vlm.train.run.loop import train

    bad = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}]}
    (tmp_path / "held.jsonl").write_text(json.dumps(bad) + "\n")
    entry = [{"name": "held", "file": str(tmp_path / "held.jsonl"), "root": str(tmp_path)}]
    with pytest.raises(DataError, match=r"1 of 1 records of eval_data cannot be used: held:1: .*has no text"):
        train(recipe("steps=1", eval_data=entry), tmp_path / "out", quiet=True)


def test_two_processes_measure_the_same(ranks, numbers, pets: Path) -> None:
    losses = []
    for n in (1, 2):
        run = pets.parent / f"run{n}"
        words = ("train", "-m", "tiny-internvl2", "--data", pets, "--eval-data", pets.parent / "held.jsonl", "--quiet")
        more = ("--allow-outside", "dataset/tiny", "--run", run, "--set", "steps=2", "--set", f"zero.stage={n - 1}")
        ranks(n, *words, *more, "--set", "batch.samples=2")
        summary = json.loads((run / "train/tiny-internvl2-pets/summary.json").read_text())
        losses.append((summary["eval_loss"], *numbers(run / "train/tiny-internvl2-pets")))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_dry_run_names_every_fault_of_every_set_and_writes_nothing(vlm, pets: Path) -> None:
    bad = messages("What?", "")
    with pets.open("a") as file:
        file.write(json.dumps(bad) + "\n")
    (pets.parent / "held.jsonl").write_text('{"conversations": []}\n{"a": 1\n')
    words = ("train", "-m", "tiny-internvl2", "--data", pets, "--eval-data", pets.parent / "held.jsonl", "--dry-run")
    child = vlm(*words, "--allow-outside", "dataset/tiny", "--run", pets.parent / "run")
    assert child.wait(120) == 3
    for part in ("3 of the first rows", "pets.jsonl:11: empty answer", "held.jsonl:1: ", "held.jsonl:2: unreadable"):
        assert part in child.said, child.said
    assert not (pets.parent / "run").exists()


def test_a_dry_run_of_good_data_shows_the_steps_and_writes_nothing(vlm, pets: Path, home: Path) -> None:
    child = vlm("train", "-m", "tiny-internvl2", "--data", pets, "--dry-run", "--allow-outside", "dataset/tiny")
    assert child.wait(120) == 0, child.said
    assert "1,200 steps" in child.said and "not here yet" not in child.said
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (TrainOptions(), "neither --recipe nor --data"),
        (TrainOptions(model="tiny-internvl2"), "neither --recipe nor --data"),
        (TrainOptions(recipe="v2pe-32k", data=["x"], lora=True), "--recipe beside --data, --lora"),
        (TrainOptions(data=["x"], published=True), "--published with --data"),
    ],
)
def test_a_recipe_or_data_is_needed_and_not_both(options: TrainOptions, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        recipe_of(options)


def test_other_data_under_the_same_name_is_another_run(pets: Path) -> None:
    first, out = recipe_of(given(pets))
    assert recipe_of(given(pets))[0] == first
    with pets.open("a") as file:
        file.write(json.dumps(messages("More?", "Yes.")) + "\n")
    second, same = recipe_of(given(pets))
    assert out == same and second.data[0].file != first.data[0].file


def test_a_rerun_keeps_what_the_run_was_begun_with(pets: Path) -> None:
    """Another machine, or another version, would choose another recipe; the run goes on with its own."""
    recipe_of(given(pets))
    [file] = (pets.parent / "run").glob("*.yaml")
    file.write_text(file.read_text().replace("samples: 2", "samples: 1"))
    assert recipe_of(given(pets))[0].batch.samples == 1
    assert recipe_of(given(pets, lora=True))[0].lora is not None  # asked for something else: made again


def test_normal_records_are_used_where_they_lie_and_others_are_imported(home: Path, pets: Path) -> None:
    plain = own_set(find_source("dataset/tiny/train.jsonl"), ImportOptions(), name="tiny")
    assert (plain.entry.file, plain.entry.root, plain.records) == ("dataset/tiny/train.jsonl", "dataset/tiny", 24)
    options = ImportOptions(outside=(home / "dataset/tiny",))
    made = own_set(find_source(str(pets)), options, name="pets")
    assert made.entry.file.startswith("dataset/own/pets-") and made.records == 10
    assert own_set(find_source(str(pets)), options, name="pets") == made


def test_what_an_import_was_allowed_to_hold_training_may_read(home: Path, tmp_path: Path) -> None:
    quoted = {"conversations": [{"from": "human", "value": "Write <image>."}, {"from": "gpt", "value": "<image>"}]}
    (tmp_path / "q.jsonl").write_text(json.dumps(quoted) + "\n")
    assert faults_of_first(find_source(str(tmp_path / "q.jsonl")), ImportOptions())
    options = ImportOptions(allow=("quoted-placeholders",))
    write_normal(find_source(str(tmp_path / "q.jsonl")).table, tmp_path / "made", options)
    source = find_source(str(tmp_path / "made"))
    assert own_set(source, ImportOptions(), name="q").entry.allow == ("quoted-placeholders",)
    assert not faults_of_first(source, ImportOptions())


def own(records: int) -> OwnSet:
    return OwnSet(DataEntry(name="a", file="a.jsonl", root="a"), records, "", "")


@pytest.mark.parametrize("preset", FINE_TUNING)
def test_every_published_shape_finds_its_recipe_and_all_are_valid(preset: str) -> None:
    assert nearest_preset(load_preset(preset)) == preset
    recipe = load_recipe(FINE_TUNING[preset])
    families = [load_preset(name).family.removesuffix("_5") for name in (preset, recipe.model.preset)]
    assert families[0] == families[1]  # InternVL2 was fine-tuned as 2.5


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("model", ["tiny-internvl2", "tiny-convllava", "tiny-internvl3"])
def test_the_recipe_is_complete_and_says_where_its_numbers_come_from(home: Path, model: str, lora: bool) -> None:
    keys = own_recipe(home / "pretrained" / model, name="mine", sets=[own(20)], held_back=[own(5)], lora=lora)
    recipe = Recipe.model_validate(yaml.safe_load(yaml.safe_dump(keys)))
    assert recipe.model.start == f"pretrained/{model}" and bool(recipe.lora) == lora
    assert recipe.sources["batch.samples"].startswith("ours: ") and not recipe.differences
    assert recipe.precision == "float32" and recipe.hardware is None


def test_adapters_leave_out_the_rates_of_parts_that_they_freeze(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", write_spec(load_preset("smol-v2pe")))  # its recipe gives the projector a rate
    every, adapters = (own_recipe(tmp_path, name="mine", sets=[own(20)], lora=lora) for lora in (False, True))
    assert every["optimizer"]["groups"] and "groups" not in adapters["optimizer"]
    assert adapters["optimizer"]["lr"] == every["optimizer"]["lr"]
    assert Recipe.model_validate(adapters).trainable == ()


@pytest.mark.parametrize(
    ("records", "processes", "samples", "epochs"),
    [(1, 1, 1, 10), (20, 1, 4, 10), (20, 8, 8, 10), (400, 1, 64, 5), (665_298, 8, 128, 1)],
)
def test_steps_are_scaled_to_the_data(records: int, processes: int, samples: int, epochs: int) -> None:
    base = {"batch": {"samples": 128}, "epochs": 1}
    assert scaled(base, records, lora=False, processes=processes) == (samples, epochs)


def test_a_recipe_that_does_not_fit_is_changed_by_the_smallest_step(home: Path) -> None:
    keys = own_recipe(home / "pretrained/tiny-internvl2", name="mine", sets=[own(20)])
    recipe = Recipe.model_validate(keys)
    nothing, estimate = fitted(recipe, 1)
    assert nothing == {} and not estimate.problems
    small = {"bf16_tflops": 1, "fp32_tflops": 1, "link_gbs": 1, "net_gbs": 1, "source": "test"}
    checkpointed = recipe.model_copy(update={"gradient_checkpointing": True})
    between = (estimate.gb_needed + fitted(checkpointed, 1)[1].gb_needed) / 2
    way, tried = fitted(recipe, 1, Machine(memory_gb=between, **small))
    assert way["gradient_checkpointing"] is True and not tried.problems
    way, tried = fitted(recipe, 1, Machine(memory_gb=1e-6, **small))
    assert way == {} and tried.problems and "--lora" in (tried.fix or "")
