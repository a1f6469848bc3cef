"""What the published ConvLLaVA stages train, and with which rate and decay, against our recipes and rules."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from vlm.models.checkpoint.patterns import rename
from vlm.models.checkpoint.read_config import read_layout
from vlm.models.vlm import make_model
from vlm.train.parameters.lora import prepare
from vlm.train.parameters.optim import freeze, parameter_groups
from vlm.train.recipe.recipe import Optimizer, load_recipe
from vlm.train.verify.arguments import parts
from vlm.train.verify.shell import options

TOWER = "model.vision_tower.vision_tower."

INTENDED = {"stage1": {"language_model.lm_head.weight"}}
"""What the published run of a stage trains beyond our recipe, by its own slip; nothing for the others."""


@pytest.fixture(scope="module")
def folder(golden) -> Path:
    found = sorted(golden.glob("*/trainable.json"))
    if not found:
        pytest.skip("no trainable.json in this folder")
    return found[0].parent


@pytest.fixture
def model(folder):
    with torch.device("meta"):
        return make_model(read_layout(folder).spec)


def ours(folder: Path, names: list[str]) -> set[str]:
    """Published parameter names under ours; each is known, or dropped on purpose (the unused final norm)."""
    layout = read_layout(folder)
    tower = rename([n.removeprefix(TOWER) for n in names if n.startswith(TOWER)], layout.towers[0][1])
    rest = rename([n for n in names if not n.startswith(TOWER)], layout.patterns)
    assert not tower.unknown and not rest.unknown
    return {*tower.renamed.values(), *rest.renamed.values()}


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.cases("*/trainable.json", "stages")
def test_the_flags_of_a_script_train_what_upstream_trained(case, folder, model):
    flags, _ = options(shlex.split(case["value"]["flags"]))
    patterns, _ = parts(flags, internvl=False)["trainable"]
    freeze(model, tuple(patterns))
    assert trained(model) == ours(folder, case["value"]["trainable"])
    assert not trained(model) & ours(folder, case["value"]["frozen"])


@pytest.mark.cases("*/trainable.json", "stages")
def test_recipes_train_the_same_with_the_published_option_and_otherwise_as_documented(case, folder, model):
    stage = case["id"]
    if stage.startswith("variant"):
        pytest.skip("a variant of the flags that no recipe has; the test above covers it")
    want = ours(folder, case["value"]["trainable"])
    prepare(model, load_recipe(f"convllava-{stage}", published=True))
    assert trained(model) == want
    recipe = load_recipe(f"convllava-{stage}")
    prepare(model, recipe)
    assert want - trained(model) == INTENDED.get(stage, set()) and trained(model) <= want
    assert any(d.key == "trainable" for d in recipe.differences) == (stage in INTENDED)


@pytest.mark.cases("*/trainable.json", "optimizer_groups_stage2")
def test_the_trainers_rule_gives_each_parameter_the_published_rate_and_decay(case, folder, model):
    value = case["value"]
    prepare(model, load_recipe("convllava-stage2"))
    # upstream honours the tower's own rate only beside one for the projector; ours says what it means
    rates = {"projector.*": value["mm_projector_lr"], "encoder.*": value["vision_tower_lr"]}
    groups = {p: rate for p, rate in rates.items() if rate is not None and value["mm_projector_lr"] is not None}
    spec = Optimizer(lr=value["learning_rate"], weight_decay=value["weight_decay"], decay="trainer", groups=groups)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    got = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in parameter_groups(model, spec) for p in g["params"]}
    want = {n: (g["lr"], g["weight_decay"]) for g in value["groups"] for n in ours(folder, g["params"])}
    assert got == want


def test_intended_decay_differs_from_the_trainers_in_scales_norms_and_embeddings_alone(folder, model):
    prepare(model, load_recipe("convllava-stage2"))

    def decayed(rule):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = parameter_groups(model, Optimizer(lr=1, weight_decay=0.1, decay=rule))
        return {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}

    more = decayed("trainer") - decayed("intended")
    assert decayed("intended") < decayed("trainer")
    assert more and all(
        name.endswith(".gamma") or ".norm." in name or ".downsample.0." in name or "embed_tokens" in name
        for name in more
    )


def test_the_file_names_all_three_stages(folder):
    found = json.loads((folder / "trainable.json").read_text(encoding="utf-8"))
    assert {"stage1", "stage2", "stage3"} <= found["stages"].keys()
