"""Hours of a plan: an estimate between two ends, the published hours beside it, and the rows that a step has."""

import re

import pytest
from typer.testing import CliRunner

from vlm.cli.commands import plan as plan_command
from vlm.train.plan import run_plan
from vlm.train.plan.machines import Machine
from vlm.train.plan.run_plan import RunPlan
from vlm.train.recipe.recipe import load_recipe, recipe_names

STAGE3 = "convllava-stage3"
SMALL = {"bf16_tflops": 100, "fp32_tflops": 10, "link_gbs": 100, "net_gbs": 10, "source": "test"}


@pytest.fixture
def machine(monkeypatch):
    """`machine(0.01)`: the plan's machines have that many GB, and other figures where they are given."""

    def set_(gb, **figures):
        made = Machine(memory_gb=gb, **{**SMALL, **figures})
        monkeypatch.setattr(run_plan, "get_machine", lambda name: made)

    return set_


def estimate(recipe, machine="x", nodes=1, gpus_per_node=1):
    return RunPlan.resolve(recipe, machine=machine, nodes=nodes, gpus_per_node=gpus_per_node).estimate


@pytest.mark.slow
def test_published_hours_are_within_the_bounds_that_the_docs_state():
    """Also where the efficiency comes from the literature and the other runs alone, so that no run explains itself."""
    from vlm.train.plan.published import published_points

    points = published_points()
    assert [(p["recipe"], p["gpus"]) for p in points] == [
        ("internvl-chat-v1-2-sft", 32), ("internvl-chat-v1-2-sft", 64), ("v2pe-32k", 32), (STAGE3, 8),
    ]  # fmt: skip
    ratios = {p["recipe"]: p["ratio"] for p in points}
    assert 1 < ratios["internvl-chat-v1-2-sft"] < 1.6 and 0.7 < ratios["v2pe-32k"] < 1.4
    for p in points:
        for low, high in (p["between"], p["left_out"], p["our_between"]):
            assert low <= p["published_hours"] <= high <= 2.001 * low, p["recipe"]
        assert p["bound_hours"] > p["published_hours"] and p["bound_hours"] >= p["our_between"][1] * 0.999


def test_what_a_run_left_out_is_judged_by_is_what_the_others_and_the_literature_say():
    from vlm.train.plan.published import efficiency_without

    rows = [{"recipe": name, "efficiency": e} for name, e in (("a", 0.55), ("a", 0.55), ("b", 0.11), ("c", 0.44))]
    assert efficiency_without("b", rows) == pytest.approx((0.44 * 0.55 * 0.44) ** (1 / 3)), "two figures of one run"
    assert efficiency_without("a", rows) == pytest.approx((0.44 * 0.11 * 0.44) ** (1 / 3))


def test_the_ends_of_an_estimate_are_a_factor_of_two_apart_unless_transfers_set_the_pace(recipe, machine):
    for net, factor in ((1e9, 2.0), (1e-9, 1.0)):
        machine(80, net_gbs=net, link_gbs=net)
        found = estimate(recipe("steps=100"), "x", nodes=2, gpus_per_node=2)
        low, high = found.seconds_between
        assert high / low == pytest.approx(factor) and low <= found.seconds <= high
        assert found.hours_between == pytest.approx((low / 36, high / 36))


def test_times_are_of_the_rows_that_training_would_make(recipe, machine):
    machine(80)
    sets = ("batch.samples=12", "batch.max_tokens=1024", "max_length=512", "zero.stage=3")
    plans = {n: RunPlan.resolve(recipe(*sets), machine="x", nodes=1, gpus_per_node=n) for n in (1, 4, 5)}
    assert [plan.bound.passes for plan in plans.values()] == [6, 2, 2]
    four, five = plans[4].bound, plans[5].bound
    assert five.seconds == pytest.approx(four.seconds), "12 whole samples of one length: three on the busiest of 4 or 5"
    shorter = RunPlan.resolve(recipe(*sets), machine="x", nodes=1, gpus_per_node=4, tokens_per_sample=256)
    assert shorter.expected.passes == 1 and shorter.expected.seconds < shorter.bound.seconds == four.seconds


def test_the_longest_rows_are_those_with_the_fewest_passes_that_fit(recipe, machine):
    from vlm.train.plan.rows import LEFT, longest_rows

    def plan():
        sets = ("batch.samples=24", "batch.max_tokens=512", "max_length=512", "batch.max_tiles=50", "zero.stage=3")
        return RunPlan.resolve(recipe(*sets), machine="x", nodes=1, gpus_per_node=2)

    machine(80)
    found, bound = longest_rows(plan())
    assert (found.recipe.batch.max_tokens, found.recipe.batch.max_tiles, bound.passes) == (12 * 512, 12 * 50, 1)
    assert plan().bound.passes == 12
    machine(0.9 * bound.gb_needed / (1 - LEFT))
    tight, needs = longest_rows(plan())
    assert 1 < needs.passes < 12 and needs.gb_needed <= 0.9 * bound.gb_needed
    assert tight.recipe.batch.max_tokens == -(-12 // needs.passes) * 512
    assert tight.recipe.batch.samples == 24
    machine(1e-6)
    assert longest_rows(plan()) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_have_the_longest_rows_that_fit_the_published_machine(name):
    from vlm.train.plan.rows import longest_rows

    recipe = load_recipe(name)
    if recipe.hardware is None or recipe.zero_stage < 2:
        pytest.skip("weights are not gathered for each row")
    found, bound = longest_rows(RunPlan.resolve(recipe))
    assert bound.passes == RunPlan.resolve(recipe).bound.passes
    assert found.recipe.batch.max_tokens == recipe.batch.max_tokens


def test_the_first_line_has_the_estimate_beside_what_was_published():
    result = CliRunner().invoke(plan_command.app, [STAGE3, "--machine", "a800-80", "--gpus-per-node", "8"])
    assert result.exit_code == 0, result.output
    said = re.search(r"at most ([\d.]+) h, estimate ([\d.]+) to ([\d.]+) h, published 5 h, ", result.output)
    most, low, high = map(float, said.groups())
    assert low < 5 < high < most
