"""Whole images in the model: several shapes in one batch, one pack and one prompt; saved, read back, exported."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vlm.core.errors import ConfigError, DataError
from vlm.core.sample.chat import user_message
from vlm.core.sample.records import image, text
from vlm.models.answers import answer, encode_unique, shared_length, split
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import load_model, save_model
from vlm.models.engine import ChatEngine, Limits, Sampling
from vlm.models.processor import Processor, load_processor
from vlm.models.specs import load_preset
from vlm.models.vision.whole import encode_whole, encoder_calls, image_shares
from vlm.models.vlm import make_model

SIZES = [(300, 200), (100, 500), (300, 200), (64, 64), (1, 900)]


@pytest.fixture
def pictures(tmp_path):
    drawn = np.random.default_rng(3)
    files = []
    for i, (width, height) in enumerate(SIZES):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(drawn.integers(0, 256, (height, width, 3), np.uint8)).save(files[-1])
    return files


@pytest.fixture
def folder(tiny, golden_data, tmp_path):
    model = tiny("tiny-convllava")
    model.spec = model.spec.with_image_rule("whole:40")
    save_model(model, tmp_path / "whole", tokenizer=golden_data / "tokenizers" / "llama")
    return tmp_path / "whole"


def prompt(processor: Processor, files, question="What is it?"):
    return processor.encode([user_message(question, [image(file) for file in files])])


def test_a_model_keeps_its_image_rule_on_the_disk(folder):
    spec = read_layout(folder).spec
    assert (spec.image_rule.kind, spec.image_rule.size, spec.image_rule.max_tiles) == ("whole", 64, 40)
    assert spec.tokens_per_tile == load_processor(folder).tokens_per_tile == load_model(folder).tokens_per_tile == 1


@pytest.mark.parametrize("to", ["llava", "internvl", "hf"])
def test_an_export_that_has_no_place_for_the_rule_is_refused_by_name(folder, tmp_path, to):
    with pytest.raises(ConfigError, match=r"whole|encoder convnext"):
        convert(folder, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_llava_layout_names_the_image_rule(folder, tmp_path):
    with pytest.raises(ConfigError, match="the image rule whole"):
        convert(folder, "llava", tmp_path / "out")


def test_a_batch_of_several_shapes_has_the_features_of_each_alone(folder, pictures):
    model, processor = load_model(folder), load_processor(folder)
    together = prompt(processor, pictures)
    assert together.grids == tuple(processor.spec.image_rule.plan(*size).grid for size in SIZES)
    features = model.encode_images(processor.pixels(together.pixels), grids=together.grids)
    alone = []
    for file in pictures:
        pixels = Image.open(file)
        columns, rows = processor.spec.image_rule.plan(*pixels.size).grid
        resized = np.asarray(pixels.resize((64 * columns, 64 * rows), Image.Resampling.BICUBIC))
        alone.append(model.encode_images(processor.pixels(resized[None]))[0])
    assert torch.allclose(features[:, 0], torch.cat(alone), atol=1e-5)
    unique = encode_unique(model, processor, [together, together], chunk=2)
    assert torch.allclose(unique, torch.cat([features, features]), atol=1e-5)


def test_a_batch_answers_as_each_prompt_alone(folder, pictures):
    model, processor = load_model(folder), load_processor(folder)
    prompts = [prompt(processor, pictures[:2]), prompt(processor, pictures[3:]), prompt(processor, [])]
    batched = answer(model, processor, prompts, max_new_tokens=8)
    assert batched == [answer(model, processor, [one], max_new_tokens=8)[0] for one in prompts]


def test_the_serving_engine_answers_as_generate_does_in_any_step_size(folder, pictures):
    model, processor = load_model(folder), load_processor(folder)
    prompts = [prompt(processor, pictures), prompt(processor, pictures, "Why?"), prompt(processor, pictures[1:2])]
    wanted = [answer(model, processor, [one], max_new_tokens=8)[0] for one in prompts]
    for limits in (
        Limits(),
        Limits(step_tokens=7, step_tiles=1, feature_bytes=0),
        Limits(step_tokens=16, step_tiles=30),
    ):
        with ChatEngine(model, processor, limits) as engine:
            assert [engine.ask(one, Sampling(max_new_tokens=8)).text for one in prompts] == [r.text for r in wanted]


def test_equal_cells_of_other_pictures_are_not_the_same_picture(folder, tmp_path):
    """An all-red picture has equal cells in any grid: caches and prefixes must go by the whole picture."""
    model, processor = load_model(folder), load_processor(folder)
    for name, size in (("wide", (256, 64)), ("tall", (64, 256))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    wide, tall = (prompt(processor, [tmp_path / f"{name}.png"]) for name in ("wide", "tall"))
    assert np.array_equal(wide.pixels, tall.pixels) and wide.grids != tall.grids
    assert shared_length([wide, tall]) == wide.image_spans[0][0]
    features = encode_unique(model, processor, [wide, tall], chunk=8)
    assert not torch.allclose(features[:4], features[4:])
    with ChatEngine(model, processor) as engine:
        engine.ask(wide, Sampling(max_new_tokens=4))
        wanted = answer(model, processor, [tall], max_new_tokens=4)[0].text
        assert engine.ask(tall, Sampling(max_new_tokens=4)).text == wanted


def test_a_prompt_splits_with_the_grids_of_its_pictures(folder, pictures):
    one = prompt(load_processor(folder), pictures)
    start, count, _ = one.image_spans[1]
    first, rest = split(one, start + count)
    assert first.grids + rest.grids == one.grids and len(first.grids) == 2
    assert len(first.pixels) == first.n_tiles and len(rest.pixels) == rest.n_tiles


def test_combined_pictures_share_one_placeholder(folder, pictures):
    from vlm.core.sample.encode import combined_part

    processor = load_processor(folder)
    one = processor.encode([{"role": "user", "content": [combined_part(pictures), text("\nWhich?")]}])
    assert len(one.image_spans) == 1 and len(one.grids) == len(pictures)
    assert one.n_tiles == sum(c * r for c, r in one.grids) == len(one.pixels)


def test_a_packed_row_has_the_loss_of_its_samples(folder, pictures):
    model, processor = load_model(folder), load_processor(folder)
    rows = []
    for files in (pictures[:2], pictures[2:], []):
        messages = [user_message("What?", [image(file) for file in files])]
        messages.append({"role": "assistant", "content": [text("A picture.")]})
        rows.append(processor.encode(messages, generation_prompt=False))

    def loss(group):
        from vlm.train.run.stream import make_row, to_tensors

        batch = to_tensors(make_row(group, "token"), processor, torch.device("cpu"))
        return model(**batch, loss_denominator=1.0).loss

    assert torch.allclose(loss(rows), sum(loss([row]) for row in rows), rtol=1e-5)


def test_grids_that_do_not_fit_the_cells_are_refused(folder):
    model = load_model(folder)
    with pytest.raises(DataError, match="6 cells for grids of 4"):
        model.encode_images(torch.zeros(6, 3, 64, 64), grids=[(2, 2)])


def test_idle_calls_add_nothing_and_keep_the_number_of_calls():
    calls = []

    def encode(images):
        calls.append(tuple(images.shape))
        return images.mean((1, 2, 3))[:, None, None].expand(-1, images.shape[2] * images.shape[3] // 4, 1) + 1

    cells = torch.arange(5.0)[:, None, None, None].expand(-1, 3, 2, 2)
    plain = encode_whole(encode, cells, [(2, 1), (1, 2), (1, 1)])
    assert len(calls) == 3 == encoder_calls([(2, 1), (1, 2), (1, 1)])
    calls.clear()
    assert torch.equal(encode_whole(encode, cells, [(2, 1), (1, 2), (1, 1)], calls=5), plain)
    assert len(calls) == 5
    assert encoder_calls([]) == 1


def test_shares_of_a_row_cover_each_image_once():
    grids = [(3, 4), (1, 1), (12, 12), (2, 2), (1, 30)]
    for size in (1, 2, 3, 8):
        shares = image_shares(grids, size)
        assert len(shares) == size and [i for share in shares for i in share] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "name, budget", [("whole", 144), ("whole:576", 576), ("whole:1024x1024", 256), ("whole:64x64", 1)]
)
def test_the_budget_of_a_named_rule(name, budget):
    rule = load_preset("convllava-768").with_image_rule(name).image_rule
    assert (rule.kind, rule.size, rule.max_tiles) == ("whole", 64, budget)


def test_another_rule_and_back():
    spec = load_preset("convllava-1024")
    back = spec.with_image_rule("whole:576").with_image_rule("pad")
    assert (back.image_rule.kind, back.image_rule.size) == ("pad", 1536)
    assert spec.with_image_rule("whole").with_image_rule("pad") == spec


@pytest.mark.parametrize(
    "name", ["", "wohle", "whole:", "whole:0", "whole:-4", "whole:9999999", "whole:10x10", "whole:4x", "pad:3", "tiles"]
)
def test_a_rule_that_is_none_is_named(name):
    with pytest.raises(ConfigError, match="image rule"):
        load_preset("convllava-768").with_image_rule(name)


@pytest.mark.parametrize("preset", ["internvl2-2b", "internvl-chat-v1-2"])
def test_a_transformer_encoder_does_not_take_whole_images(preset):
    with pytest.raises(ConfigError, match="convolutional encoder"):
        load_preset(preset).with_image_rule("whole")


def test_a_checkpoint_of_the_published_rule_is_asked_with_another_one(tiny, golden_data, pictures, tmp_path):
    save_model(tiny("tiny-convllava"), tmp_path / "pad", tokenizer=golden_data / "tokenizers" / "llama")
    padded, whole = load_processor(tmp_path / "pad"), load_processor(tmp_path / "pad", image_rule="whole:40")
    assert padded.spec.image_rule.kind == "pad" and prompt(padded, pictures).grids is None
    assert load_processor(tmp_path / "pad", image_rule="whole:40", max_tiles=6).spec.image_rule.max_tiles == 6
    with pytest.raises(ConfigError, match="whole"):
        load_processor(tmp_path / "pad", max_tiles=6)
    model = load_model(tmp_path / "pad")  # its own spec pads: the prompt says what it holds
    assert answer(model, whole, [prompt(whole, pictures)], max_new_tokens=4)


def test_text_alone_trains_through_the_encoder(folder):
    model = make_model(read_layout(folder).spec).train()
    ids = torch.randint(0, 300, (1, 12))
    model(ids, labels=ids, encoder_calls=2).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.encoder.parameters())


def test_copies_of_a_prompt_without_grids_are_squares(folder, pictures):
    one = prompt(load_processor(folder), pictures[:1])
    bare = replace(copy.copy(one), grids=None)
    assert [p.stop - p.start for p in bare.pictures] == [1] * one.n_tiles
    assert [p.stop - p.start for p in one.pictures] == [one.n_tiles]
