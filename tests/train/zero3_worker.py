"""One rank of a run under ZeRO-3 that keeps no parameter whole, with a loss in chunks of three labels.

test_train_zero3.py gives the names in capitals through runpy.
"""
# ruff: noqa: F821

import os
from pathlib import Path

os.environ.update(ENV)

import torch

from vlm.models import loss
from vlm.train.recipe.recipe import load_recipe
from vlm.train.run import engine
from vlm.train.run.loop import train

torch.set_num_threads(1)
loss.weighted_cross_entropy.__defaults__ = (3, None)
make_config = engine.config


def config(*given):
    made = make_config(*given)
    made["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return made


engine.config = config
train(load_recipe(RECIPE, overrides=("zero.stage=3", "steps=3", *SETS)), Path(OUT), quiet=True)
