"""Tokens per tile by arithmetic alone equal those of the model built from the spec."""

import pytest
import torch

from vlm.core.config import package_tables
from vlm.core.errors import ConfigError
from vlm.models.specs import load_preset
from vlm.models.vlm import make_model


@pytest.mark.parametrize("name", package_tables("vlm.models", "presets"))
def test_tokens_per_tile_are_those_of_the_model(name):
    spec = load_preset(name)
    with torch.device("meta"):
        assert spec.tokens_per_tile == make_model(spec).tokens_per_tile


@pytest.mark.parametrize("level", [-1, -2, -3])
@pytest.mark.parametrize("extra", [False, True])
def test_levels_of_a_timm_pyramid_are_counted_from_the_deepest(level, extra):
    spec = load_preset("smol-convllava")
    changes = {"level": level, **({} if extra else {"extra_stage": None})}
    spec = spec.model_copy(update={"vision": spec.vision.model_copy(update=changes)})
    with torch.device("meta"):
        assert spec.tokens_per_tile == make_model(spec).tokens_per_tile


def test_a_timm_level_that_arithmetic_cannot_know_is_refused():
    spec = load_preset("smol-v2pe")
    shallow = spec.model_copy(update={"vision": spec.vision.model_copy(update={"level": 2})})
    with pytest.raises(ConfigError, match="timm level 2"):
        _ = shallow.tokens_per_tile
