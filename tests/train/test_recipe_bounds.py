"""Numbers of a recipe have bounds: a number outside is an error that says key, found and allowed, before anything."""

import pytest
import yaml

from vlm.core.errors import ConfigError
from vlm.train.recipe.recipe import Recipe, load_recipe, recipe_names

RECIPE = {
    "title": "t",
    "model": {"start": "pretrained/x", "preset": "tiny-internvl2"},
    "data": [{"name": "d", "file": "d.jsonl", "root": "d"}],
    "trainable": ["*"],
    "optimizer": {"lr": 0.003},
    "batch": {"samples": 6, "max_tokens": 512},
    "steps": 6,
    "max_length": 512,
    "sources": {"": "test"},
}
FAULTY = [
    ("save_every", "0", "greater than 0"),
    ("save_every", "null", "valid integer"),
    ("save_every", "1.5", "valid integer"),
    ("sample_seconds", "0", "greater than 0"),
    ("sample_seconds", ".inf", "finite"),
    ("keep", "null", "valid integer"),
    ("keep", "-1", "greater than 0"),
    ("keep", "0", "greater than 0"),
    ("steps", "0", "greater than 0"),
    ("steps", "-3", "greater than 0"),
    ("max_length", "-5", "greater than 0"),
    ("seed", "-1", "greater than or equal to 0"),
    ("seed", "4294967296", "less than 4294967296"),
    ("max_lost", "1.5", "less than or equal to 1"),
    ("max_lost", ".nan", ""),
    ("strides", "0", "greater than 0"),
    ("stride_choices", "[]", "at least 1 item"),
    ("jpeg_quality", "[0, 50]", "greater than or equal to 1"),
    ("jpeg_quality", "[90, 50]", "must not be above"),
    ("optimizer.lr", "-1", "greater than or equal to 0"),
    ("optimizer.lr", ".nan", "greater than or equal to 0|finite"),
    ("optimizer.lr", ".inf", "finite"),
    ("optimizer.betas", "[1, 2]", "less than 1"),
    ("optimizer.betas", "[0.9, .nan]", "greater than or equal to 0|less than 1|finite"),
    ("optimizer.betas", "[0.9, -0.1]", "greater than or equal to 0"),
    ("optimizer.lr", "1.0e+400", "finite"),
    ("optimizer.warmup", ".nan", "greater than or equal to 0|finite"),
    ("optimizer.warmup", ".inf", "finite"),
    ("optimizer.eps", "0", "greater than 0"),
    ("optimizer.clip", ".nan", "greater than or equal to 0|finite"),
    ("optimizer.weight_decay", "-0.1", "greater than or equal to 0"),
    ("optimizer.warmup", "-1", "greater than or equal to 0"),
    ("optimizer.groups", '{"encoder.*": -1}', "greater than or equal to 0"),
    ("batch.samples", "0", "greater than 0"),
    ("batch.max_tokens", "0", "greater than 0"),
    ("batch.max_tiles", "0", "greater than 0"),
    ("lora", "{rank: 0, alpha: 4, targets: [q]}", "greater than 0"),
    ("lora", "{rank: 2, alpha: 4, dropout: 1, targets: [q]}", "less than 1"),
    ("hardware", "{gpus: 0, memory_gb: 80}", "greater than 0"),
    *(("data", f"[{{name: d, file: d, root: d, repeat: {r}}}]", "") for r in ("-1", ".nan", ".inf")),
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


@pytest.mark.parametrize("key,value,allowed", FAULTY, ids=[f"{k}={v}" for k, v, _ in FAULTY])
def test_a_number_outside_its_bounds_is_an_error_with_key_allowed_and_found(path, key, value, allowed):
    with pytest.raises(ConfigError, match=rf"t\.yaml: {key}[\w.*-]*: .*({allowed}).*\(found .+\)"):
        load_recipe(path, overrides=(f"{key}={value}",))


@pytest.mark.parametrize("epochs", ["0", "-1", ".nan", ".inf"])
def test_epochs_too(tmp_path, epochs):
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in RECIPE.items() if k != "steps"}) + f"epochs: {epochs}\n")
    with pytest.raises(ConfigError, match=r"e\.yaml: epochs: .*\(found "):
        load_recipe(str(file))


def test_the_edges_are_allowed(path):
    sets = "save_every=1", "keep=1", "steps=1", "seed=4294967295", "max_lost=1", "optimizer.clip=0", "optimizer.lr=0"
    assert load_recipe(path, overrides=sets).seed == 2**32 - 1


def test_shipped_recipes_are_within_the_bounds():
    for name in recipe_names():
        for published in (False, True):
            load_recipe(name, published=published)


WRONG = ("5", "x", "[1]", "[null]", "[[x]]", "{a: 1}", "null", "true", "1.5", ".nan", "[{}]", "[{name: [1]}]")


@pytest.mark.parametrize("key", sorted(Recipe.model_fields))
def test_a_value_of_any_form_is_a_recipe_or_an_error_that_names_the_key(tmp_path, key):
    given = {k: v for k, v in RECIPE.items() if k != key}
    for value in WRONG:
        file = tmp_path / "t.yaml"
        file.write_text(yaml.safe_dump(given) + f"{key}: {value}\n")
        try:
            load_recipe(str(file))
        except ConfigError as error:
            assert key in str(error), (value, str(error))
