"""What the published ConvLLaVA stages train, and with which rate and decay, against our recipes and rules."""

import shlex
from pathlib import Path

import pytest
import torch
from golden.decisions import TRAINED_BY_SLIP
from golden.fixtures import Entry, Fixtures

from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.renaming import rename
from vlm.models.vlm import VisionLanguageModel, make_model
from vlm.train.parameters.lora import prepare
from vlm.train.parameters.optim import freeze, parameter_groups
from vlm.train.recipe.recipe import Optimizer, load_recipe, recipe_names
from vlm.train.verify.arguments import parts
from vlm.train.verify.shell import options

TOWER = "model.vision_tower.vision_tower."


@pytest.fixture
def folder(entry: Entry, found: Fixtures) -> Path:
    return found.model(entry)


@pytest.fixture
def model(folder: Path) -> VisionLanguageModel:
    with torch.device("meta"):
        return make_model(read_layout(folder).spec)


def ours(folder: Path, names: list[str]) -> set[str]:
    """Published parameter names under ours; each is known, or dropped on purpose (the unused final norm)."""
    layout = read_layout(folder)
    assert layout.patterns is not None
    tower = rename([n.removeprefix(TOWER) for n in names if n.startswith(TOWER)], layout.towers[0][1])
    rest = rename([n for n in names if not n.startswith(TOWER)], layout.patterns)
    assert not tower.unknown and not rest.unknown
    return {*tower.renamed.values(), *rest.renamed.values()}


def trained(model: VisionLanguageModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def recipe_of(stage: str, model: VisionLanguageModel, want: set[str]) -> str:
    """The recipe of a published stage: by its name, else the one whose published run trains the same parameters.

    The test is skipped, with the reason, where we have none: a variant of the flags, which the first test covers.
    """
    stages = [name for name in recipe_names() if name.startswith("convllava-stage")]
    if (named := f"convllava-{stage}") in stages:
        return named
    for name in stages:
        prepare(model, load_recipe(name, published=True))
        if trained(model) == want:
            return name
    pytest.skip(f"{stage}: no recipe trains these parameters; the flags are checked by themselves")


@pytest.mark.cases("trainable/stages")
def test_the_flags_of_a_script_train_what_upstream_trained(
    entry: Entry, folder: Path, model: VisionLanguageModel
) -> None:
    flags, _ = options(shlex.split(entry.value["flags"]))
    patterns, _ = parts(flags, internvl=False)["trainable"]
    freeze(model, tuple(patterns))
    assert trained(model) == ours(folder, entry.value["trainable"])
    assert not trained(model) & ours(folder, entry.value["frozen"])


@pytest.mark.cases("trainable/stages")
def test_recipes_train_the_same_with_the_published_option_and_otherwise_as_documented(
    entry: Entry, folder: Path, model: VisionLanguageModel
) -> None:
    want = ours(folder, entry.value["trainable"])
    name = recipe_of(entry.case["id"], model, want)
    prepare(model, load_recipe(name, published=True))
    assert trained(model) == want
    recipe = load_recipe(name)
    prepare(model, recipe)
    slip: set[str] = set().union(*(more for flag, more in TRAINED_BY_SLIP.items() if flag in entry.value["flags"]))
    assert want - trained(model) == slip and trained(model) <= want
    assert any(d.key == "trainable" for d in recipe.differences) == bool(slip)


@pytest.mark.cases("trainable/optimizer_groups")
def test_the_trainers_rule_gives_each_parameter_the_published_rate_and_decay(
    entry: Entry, folder: Path, model: VisionLanguageModel
) -> None:
    value = entry.value
    want = {n: (g["lr"], g["weight_decay"]) for g in value["groups"] for n in ours(folder, g["params"])}
    prepare(model, load_recipe(recipe_of(entry.key.removeprefix("optimizer_groups_"), model, set(want))))
    # upstream honors the tower's own rate only beside one for the projector; ours says what it means
    rates = {"projector.*": value["mm_projector_lr"], "encoder.*": value["vision_tower_lr"]}
    groups = {p: rate for p, rate in rates.items() if rate is not None and value["mm_projector_lr"] is not None}
    spec = Optimizer(lr=value["learning_rate"], weight_decay=value["weight_decay"], decay="trainer", groups=groups)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    got = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in parameter_groups(model, spec) for p in g["params"]}
    assert got == want


@pytest.mark.cases("trainable/stages", per="file")
def test_intended_decay_differs_from_the_trainers_in_scales_norms_and_embeddings_alone(
    entry: Entry, model: VisionLanguageModel
) -> None:
    prepare(model, load_recipe("convllava-stage2"))

    def decayed(rule: str) -> set[str]:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = parameter_groups(model, Optimizer(lr=1, weight_decay=0.1, decay=rule))  # type: ignore[arg-type]
        return {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}

    more = decayed("trainer") - decayed("intended")
    assert decayed("intended") < decayed("trainer")
    assert more and all(
        name.endswith(".gamma") or ".norm." in name or ".downsample.0." in name or "embed_tokens" in name
        for name in more
    )
