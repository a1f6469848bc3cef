"""What is trained, what decays, and the learning rate at each step."""

import fnmatch

import pytest
import torch

from vlm.core.errors import ConfigError
from vlm.models import load_preset, make_model
from vlm.train.parameters.optim import decays, freeze, lr_factor, make_optimizer, parameter_groups
from vlm.train.recipe.recipe import Optimizer

PRESETS = ["tiny-internvl2", "tiny-internvl-chat-v1-2", "tiny-convllava"]


def tiny(preset="tiny-internvl2"):
    with torch.device("meta"):
        return make_model(load_preset(preset))


def test_exactly_the_matching_parameters_are_trained_and_counted():
    model = tiny("tiny-convllava")
    counts = freeze(model, ("projector.*", "encoder.stages.4.*"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    names = [name for name, _ in model.named_parameters()]
    assert trained == {*fnmatch.filter(names, "projector.*"), *fnmatch.filter(names, "encoder.stages.4.*")}
    sizes = dict(model.named_parameters())
    assert counts == {
        "projector": sum(p.numel() for n, p in sizes.items() if n.startswith("projector")),
        "encoder.stages.4": sum(p.numel() for n, p in sizes.items() if n.startswith("encoder.stages.4")),
    }
    freeze(model, ("projector.*",))
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.startswith("encoder"))


def test_a_pattern_that_matches_nothing_is_an_error_that_names_it():
    with pytest.raises(ConfigError, match=r"match no parameter: projektor\.\*"):
        freeze(tiny(), ("projektor.*", "language_model.*"))


def test_nothing_trainable_is_an_error():
    model = tiny()
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter is trainable"):
        make_optimizer(model, Optimizer(lr=0.1))


@pytest.mark.parametrize("preset", PRESETS)
def test_intended_decay_spares_norms_biases_layer_scale_and_embeddings_alone(preset):
    model = tiny(preset)
    decayed = {n for n, p in model.named_parameters() if decays(n, p, "intended")}
    spared, matrices = set(), set()
    for path, module in model.named_modules():
        own = {f"{path}.{n}": p for n, p in module.named_parameters(recurse=False)}
        if "Norm" in type(module).__name__ or isinstance(module, torch.nn.Embedding) or path.endswith("embeddings"):
            spared |= own.keys()
        spared |= {n for n in own if n.endswith((".bias", ".gamma", ".ls1", ".ls2"))}
        if isinstance(module, torch.nn.Linear):
            matrices.add(f"{path}.weight")
    assert len(spared) > 20 and not spared & decayed
    assert len(matrices) > 10 and matrices <= decayed


def test_published_decay_is_for_everything():
    model = tiny()
    assert all(decays(n, p, "published") for n, p in model.named_parameters())
    groups = parameter_groups(model, Optimizer(lr=0.1, weight_decay=0.05, decay="published"))
    assert [g["weight_decay"] for g in groups] == [0.05]


def test_groups_hold_each_trained_parameter_once_with_its_own_rate():
    model = tiny()
    freeze(model, ("projector.*", "language_model.*"))
    spec = Optimizer(lr=0.1, weight_decay=0.05, groups={"projector.*": 0.5, "*": 0.2})
    groups = parameter_groups(model, spec)
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {(0.5, 0.05), (0.5, 0.0), (0.2, 0.05), (0.2, 0.0)}
    projector = {id(p) for p in model.projector.parameters()}
    assert all((g["lr"] == 0.5) == (id(p) in projector) for g in groups for p in g["params"])


@pytest.mark.parametrize(
    "spec, expected",
    [
        (Optimizer(lr=1, warmup=0.1, schedule="cosine"), {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5, 99: 0.0003}),
        (Optimizer(lr=1, warmup=5, schedule="linear"), {0: 0.2, 4: 1.0, 5: 1.0, 99: 1 / 95}),
        (Optimizer(lr=1, warmup=0.1, schedule="constant"), {0: 0.1, 10: 1.0, 99: 1.0}),
        (Optimizer(lr=1, warmup=0.0, schedule="cosine"), {0: 1.0, 50: 0.5}),
    ],
    ids=["cosine", "linear, warm-up in steps", "constant", "no warm-up"],
)
def test_rate_over_a_hundred_steps(spec, expected):
    assert {s: lr_factor(s, 100, spec) for s in expected} == pytest.approx(expected, abs=1e-4)
    factors = [lr_factor(s, 100, spec) for s in range(100)]
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1]) and factors[top:] == sorted(factors[top:], reverse=True)
    assert min(factors) > 0
