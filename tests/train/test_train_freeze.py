"""What each published stage trains, with which rate and decay; and the pure parts of augmentation and grouping."""

import random

import numpy as np
import pytest
import torch

from vlm.core.errors import ConfigError
from vlm.models import load_preset, make_model
from vlm.train.parameters.lora import prepare
from vlm.train.parameters.optim import decays, freeze, parameter_groups
from vlm.train.recipe.recipe import Optimizer, load_recipe
from vlm.train.run.augment import compress
from vlm.train.run.grouping import has_media, modality_order

STAGES = {"s3": 129_785_856, "s4": 61_612_032, "s5": 472_934_400}
PROJECTOR, LLM = 29_368_320, 6_738_415_616
TRAINED = {
    "convllava-stage1": STAGES["s5"] + PROJECTOR,
    "convllava-stage2": sum(STAGES.values()) + PROJECTOR + LLM,
    "convllava-stage3": PROJECTOR + LLM,
    "v2pe-32k": 2_205_754_368,
    "internvl-chat-v1-2-pretrain": 5_536_496_000 + 143_170_560,
    "internvl-chat-v1-2-sft": 40_068_684_160,
    "internvl-chat-v1-2-finetune": 143_170_560 + 34_389_017_600,
}


def meta(preset):
    with torch.device("meta"):
        return make_model(load_preset(preset))


@pytest.mark.parametrize("name, count", TRAINED.items())
def test_each_stage_trains_the_published_number_of_parameters(name, count):
    recipe = load_recipe(name)
    assert sum(prepare(meta(recipe.model.preset), recipe).values()) == count


def test_stage_1_as_published_also_trains_the_head():
    recipe = load_recipe("convllava-stage1", published=True)
    assert sum(prepare(meta("convllava-768"), recipe).values()) == TRAINED["convllava-stage1"] + 32000 * 4096


@pytest.mark.parametrize("preset", ["tiny-internvl2", "tiny-internvl-chat-v1-2", "tiny-convllava"])
def test_decay_never_touches_norms_scales_tables_or_biases_unless_asked(preset):
    model = meta(preset)
    spared = ("norm", "ls1", "ls2", "gamma", "position_embedding", "class_embedding", "embed_tokens", ".bias")
    seen = [n for n, _ in model.named_parameters() if any(part in n for part in spared)]
    assert len(seen) > 10
    for name, parameter in model.named_parameters():
        if name in seen or parameter.dim() == 1:
            assert not decays(name, parameter, "intended"), name
        assert decays(name, parameter, "published")


def test_the_trainers_rule_spares_only_the_norms_it_knew():
    def decayed(preset, name):
        model = meta(preset)
        owner = model.get_submodule(name.rpartition(".")[0])
        return decays(name, model.get_parameter(name), "trainer", owner)

    six = "tiny-internvl-chat-v1-2"
    layer = "encoder.encoder.layers.0"
    tables = ("encoder.embeddings.class_embedding", "encoder.embeddings.position_embedding")
    norms = (f"{layer}.norm1.weight", f"{layer}.attn.q_norm.weight", f"{layer}.ls1")
    for name in (*norms, *tables, "language_model.model.embed_tokens.weight"):
        assert decayed(six, name), name
    for name in ("projector.0.weight", "language_model.model.norm.weight", f"{layer}.attn.proj.bias",
                 "language_model.model.layers.0.input_layernorm.weight"):  # fmt: skip
        assert not decayed(six, name), name
    assert not decayed("tiny-internvl2", f"{layer}.norm1.weight"), "300M has torch's LayerNorm"
    assert decayed("tiny-convllava", "encoder.stages.0.blocks.0.norm.weight")


def test_a_rate_for_something_frozen_is_an_error():
    model = meta("tiny-convllava")
    freeze(model, ("projector.*",))
    with pytest.raises(ConfigError, match=r"groups: no trained parameter matches encoder\.\*"):
        parameter_groups(model, Optimizer(lr=0.1, groups={"encoder.*": 0.01}))


def test_jpeg_of_a_tile_follows_its_own_random_numbers():
    tiles = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    again = [compress(tiles, (75, 100), random.Random(seed)) for seed in (1, 1, 2)]
    assert again[0].shape == tiles.shape and again[0].dtype == np.uint8
    assert np.array_equal(again[0], again[1]) and not np.array_equal(again[0], again[2])
    error = [np.abs(compress(tiles, (q, q), random.Random(0)).astype(int) - tiles).mean() for q in (30, 75, 100)]
    assert error[0] > error[1] > error[2] > 0
    assert compress(tiles[:0], (75, 100), random.Random(0)).shape == (0, 32, 32, 3)


def test_a_grouped_order_is_a_permutation_whose_steps_hold_one_modality():
    media = np.random.default_rng(0).random(1003) < 0.3
    order = modality_order(media, 16, 7, 0)
    assert sorted(order) == list(range(1003))
    whole = media.sum() // 16 + (~media).sum() // 16
    steps = media[order[: whole * 16]].reshape(-1, 16)
    assert (steps.all(1) | ~steps.any(1)).all()
    kinds = steps[:, 0]
    assert 0 < kinds[: whole // 2].sum() < whole // 2, "the modalities of steps are mixed"
    assert not np.array_equal(order, modality_order(media, 16, 7, 1))
    assert np.array_equal(order, modality_order(media, 16, 7, 0))


@pytest.mark.parametrize("flags", [[], [True] * 5, [False] * 40])
def test_one_modality_alone_or_nothing_is_grouped_too(flags):
    assert sorted(modality_order(flags, 16, 0)) == list(range(len(flags)))


def test_media_is_read_off_a_line():
    lines = [
        b'{"image": "a.png"}',
        b'{"image": ["a", "b"]}',
        b'{"image": []}',
        b"{}",
        b"[]",
        b"{broken",
        b'{"video": "v"}',
    ]
    assert [has_media(line) for line in lines] == [True, True, False, False, False, False, True]


def test_the_stream_groups_compresses_and_limits_tiles_as_the_recipe_says(recipe, processor):
    from vlm.train.run.stream import Stream

    def rows(step, *changes, **entry):
        data = [{**recipe().data[0].model_dump(), **entry}]
        return Stream(recipe("batch.packing=none", *changes, data=data), processor).step(step).rows

    plain = rows(0)
    again, degraded = (rows(0, "jpeg_quality=[75, 80]") for _ in range(2))
    for a, b, c in zip(plain, again, degraded, strict=True):
        assert np.array_equal(a.input_ids, b.input_ids)
        if a.pixels is not None:
            assert not np.array_equal(a.pixels, b.pixels) and np.array_equal(b.pixels, c.pixels)
    few = rows(0, max_tiles=1)
    tiles = [sum(len(r.pixels) for r in found if r.pixels is not None) for found in (few, plain)]
    assert tiles[0] < tiles[1]
    for step in range(3):  # 16 records with images and 8 without, six a step: two steps and one are whole
        kinds = {row.pixels is None for row in rows(step, "batch.grouping=modality")}
        assert len(kinds) == 1, "one modality in a step"
