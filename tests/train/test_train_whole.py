"""Training on whole images: several shapes in a pack, under ZeRO-3 with unequally many shapes, and in a ring."""

import json

import pytest

from vlm.core.errors import ConfigError
from vlm.models.checkpoint.layout import read_layout
from vlm.train.plan.costs import row_limits
from vlm.train.plan.run_plan import RunPlan
from vlm.train.run.loop import train

WHOLE = (
    "model.start=pretrained/tiny-convllava",
    "model.preset=tiny-convllava",
    'model.spec={image_rule: "whole:9", vision: {drop_path: 0.0}}',
    "strides=null",
)


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_on_whole_images_saves_its_rule(recipe, tmp_path):
    train(recipe(*WHOLE, "steps=2"), tmp_path / "run", quiet=True)
    rule = read_layout(tmp_path / "run" / "model").spec.image_rule
    assert (rule.kind, rule.size, rule.max_tiles) == ("whole", 64, 9)


@pytest.mark.parametrize("sequence", [1, 2])
def test_ranks_with_pictures_of_unequally_many_shapes_do_not_wait_for_each_other(
    two_ranks, recipe, recipe_file, tmp_path, sequence
):
    train(recipe(*WHOLE, "steps=3"), tmp_path / "alone", quiet=True)
    sets = [*WHOLE, f"sequence_parallel.size={sequence}"]
    two_ranks("zero3_worker.py", RECIPE=str(recipe_file), OUT=str(tmp_path / "two"), SETS=sets)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


def test_the_plan_counts_a_whole_image_by_its_tokens(recipe):
    given = recipe(*WHOLE, "max_length=400", "batch.max_tokens=512")
    plan = RunPlan.resolve(given, 1, "cpu")
    assert plan.tokens_per_image == 1 and plan.spec.image_rule.max_tiles == 9
    assert row_limits(given, plan.spec, 1) == (512, 512)
    assert row_limits(recipe(*WHOLE, "batch.packing=none"), plan.spec, 1)[1] == 9
    padded = RunPlan.resolve(recipe(*WHOLE[:2], "strides=null", "max_length=400"), 1, "cpu")
    larger = RunPlan.resolve(recipe(*WHOLE[:2], 'model.spec={image_rule: "whole:36"}', "strides=null"), 1, "cpu")
    assert padded.estimate.flops_model < plan.estimate.flops_model < larger.estimate.flops_model  # 4, 9 and 36 cells


@pytest.mark.parametrize("name", ["wohle", "whole:0", "whole:10x10"])
def test_a_recipe_with_a_rule_that_is_none_is_refused(recipe, name):
    with pytest.raises(ConfigError, match=r"model\.spec"):
        recipe(*WHOLE[:2], f'model.spec={{image_rule: "{name}"}}')


def test_a_recipe_for_a_transformer_encoder_refuses_whole_images(recipe):
    with pytest.raises(ConfigError, match="convolutional encoder"):
        recipe('model.spec={image_rule: "whole"}')
