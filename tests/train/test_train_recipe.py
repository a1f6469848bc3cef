"""Recipes: every shipped one is valid, and all faults of a wrong one are reported at once."""

import pytest
import yaml

from vlm.core.config import parse
from vlm.core.errors import ConfigError, UnknownName
from vlm.train.recipe.recipe import Recipe, load_recipe, recipe_names

GOOD = {
    "title": "t",
    "model": {"start": "{run}/train/before/model", "preset": "tiny-internvl2"},
    "data": [{"name": "d", "file": "d.jsonl", "root": "d"}],
    "trainable": ["*"],
    "optimizer": {"lr": 0.1},
    "batch": {"samples": 2, "max_tokens": 64},
    "steps": 3,
    "max_length": 64,
    "sources": {"": "test"},
}


@pytest.fixture
def write(tmp_path):
    def write(name="mine", **changes):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in {**GOOD, **changes}.items() if v is not None}))
        return str(path)

    return write


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid_and_names_the_source_of_its_numbers(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.sources


def test_all_faults_are_reported_at_once(write):
    path = write(
        unknown_key=1,
        epochs=1,
        max_length="long",
        batch={"samples": "many", "max_tokens": 64, "colour": "red"},
        sources={"batch": "test"},
    )
    with pytest.raises(ConfigError) as error:
        load_recipe(path)
    message = str(error.value)
    for fault in (
        "unknown_key: unknown key",
        "batch.colour: unknown key",
        "batch.samples: Input should be a valid integer",
        "max_length: Input should be a valid integer",
        "epochs: give exactly one of `epochs` and `steps`",
    ):
        assert fault in message, (fault, message)
    assert all(line.startswith(("mine.yaml: ", "  fix")) for line in message.splitlines())


@pytest.mark.parametrize("changes", [{"steps": None}, {"epochs": 1}], ids=["neither", "both"])
def test_exactly_one_of_epochs_and_steps(write, changes):
    with pytest.raises(ConfigError, match="exactly one of `epochs` and `steps`"):
        load_recipe(write(**changes))


def test_a_shipped_number_needs_a_source_and_a_prefix_covers_it():
    named = {**GOOD, "name": "mine"}
    with pytest.raises(ConfigError, match=r"numbers without a source: optimizer\.lr, steps"):
        parse(
            {**named, "sources": {"batch": "x", "max_length": "x", "optim": "a prefix of letters"}}, Recipe, where="r"
        )
    parse({**named, "sources": {"batch": "x", "max_length": "x", "steps": "x", "optimizer": "x"}}, Recipe, where="r")


def test_a_recipe_of_a_user_needs_no_source_and_its_numbers_are_its_own(write):
    assert load_recipe(write(sources=None)).sources[""] == "mine.yaml"
    path = write(**{**dict.fromkeys(GOOD), "base": "convllava-stage3", "optimizer": {"lr": 0.5}})
    sources = load_recipe(path).sources
    assert sources["optimizer.lr"] == "mine.yaml" and "conv-llava" in sources[""]
    with pytest.raises(ConfigError, match="sources: Input should be a valid dictionary"):
        load_recipe(write(sources=["x"]))


@pytest.mark.parametrize(
    ("changes", "nearest"),
    [
        ({"optimiser": {}}, "optimizer"),
        ({"optimizer": {"lr": 0.1, "weight_deacy": 0.1}}, "weight_decay"),
        ({"data": [{"name": "d", "file": "d", "root": "d", "repeats": 2}]}, "repeat"),
        ({"lora": {"rank": 1, "alpha": 1, "target": ["*"], "targets": ["*"]}}, "targets"),
        ({"model": {"start": "x", "preset": "tiny-internvl2", "spec": {"image_rule": {"max_tile": 2}}}}, "max_tiles"),
    ],
)
def test_a_misspelt_key_names_the_nearest_at_any_depth(write, changes, nearest):
    with pytest.raises(ConfigError, match=rf"unknown key; did you mean .*{nearest}"):
        load_recipe(write(**changes))


def test_a_sample_must_fit_in_a_row(write):
    with pytest.raises(ConfigError, match=r"max_length: .*batch\.max_tokens = 64"):
        load_recipe(write(max_length=65))
    load_recipe(write(max_length=65, batch={"samples": 2, "max_tokens": 64, "packing": "none"}))


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UnknownName, match=r"did you mean .*convllava-stage3"):
        load_recipe("convlava-stage3")


def test_a_base_is_merged_key_by_key_and_lists_are_replaced(write):
    write("below", optimizer={"lr": 0.1, "clip": 2.0}, trainable=["a", "b"])
    path = write("above", **{**dict.fromkeys(GOOD), "base": "below", "optimizer": {"lr": 0.5}, "trainable": ["c"]})
    recipe = load_recipe(path)
    assert (recipe.optimizer.lr, recipe.optimizer.clip, recipe.trainable) == (0.5, 2.0, ("c",))
    assert recipe.name == "above"


def test_a_base_may_have_a_base_but_not_lead_in_a_circle(write, tmp_path):
    only = dict.fromkeys(GOOD)
    write("lowest", steps=7, optimizer={"lr": 0.25, "clip": 2.0})
    write("below", **{**only, "base": "lowest", "optimizer": {"lr": 0.5}})
    recipe = load_recipe(write("above", **{**only, "base": "below", "seed": 3}))
    assert (recipe.steps, recipe.optimizer.lr, recipe.optimizer.clip, recipe.seed) == (7, 0.5, 2.0, 3)
    write("lowest", base="above")
    with pytest.raises(ConfigError, match="leads in a circle: above -> below -> lowest -> above"):
        load_recipe(str(tmp_path / "above.yaml"))


def test_any_shipped_recipe_is_a_base_also_under_its_own_name(write):
    only = dict.fromkeys(GOOD)
    name = "internvl2_5-2b-finetune-lora"  # it has a base itself
    assert load_recipe(write(name, **{**only, "base": name})).lora == load_recipe(name).lora


def test_a_shipped_recipe_is_a_base_too_and_an_unknown_one_names_the_nearest(write):
    path = write(**{**dict.fromkeys(GOOD), "base": "convllava-stage3", "title": "mine"})
    shipped = load_recipe("convllava-stage3")
    assert load_recipe(path).optimizer == shipped.optimizer
    with pytest.raises(UnknownName, match="convllava-stage3"):
        load_recipe(write(base="convllava-stage4"))


def test_overrides_reach_nested_keys_and_are_their_own_source(write):
    path = write(sources={"batch": "x", "max_length": "x", "steps": "x", "optimizer.lr": "x"})
    recipe = load_recipe(path, overrides=("optimizer.clip=0.5", "optimizer.lr=1e-3", "trainable=[projector.*]"))
    assert (recipe.optimizer.clip, recipe.optimizer.lr, recipe.trainable) == (0.5, 0.001, ("projector.*",))
    assert recipe.sources["optimizer.clip"] == "override on the command line"


@pytest.mark.parametrize("override", ["optimizer.lr", "=3", "optimizer.lr=", "trainable=[a"])
def test_a_malformed_override_is_named(write, override):
    with pytest.raises(ConfigError, match="override"):
        load_recipe(write(), overrides=(override,))


def test_an_override_of_an_unknown_key_is_an_error(write):
    with pytest.raises(ConfigError, match=r"optimizer\.rate: unknown key"):
        load_recipe(write(), overrides=("optimizer.rate=1",))


@pytest.mark.parametrize("text", ["", "- a", "a: [", "just words"])
def test_a_file_that_is_no_mapping_is_a_config_error(tmp_path, text):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"odd\.yaml"):
        load_recipe(str(path))


def test_run_stands_for_the_folder_of_the_run(write):
    assert load_recipe(write(), run="runs/here").model.start == "runs/here/train/before/model"
    assert load_recipe(write("fam-stage1")).model.start == "runs/fam/train/before/model"


def test_the_digest_ignores_words_and_habits_and_nothing_else(write):
    def digest(**changes):
        return load_recipe(write(**changes)).digest

    assert digest(title="other", save_every=7, keep=9, max_lost=0.5, sources={"": "other"}) == digest()
    changes = [{"seed": 1}, {"max_length": 32}, {"loss": "square"}, {"trainable": ["projector.*"]}, {"steps": 4}]
    assert len({digest(), *(digest(**c) for c in changes)}) == 1 + len(changes)
