"""Answers: batches, positions, and no work done twice."""

import dataclasses

import pytest
import torch

from vlm.core.errors import ConfigError, DataError
from vlm.core.sample.records import image, text
from vlm.models.answers import Reply, answer, encode_unique, left_padded, reply
from vlm.models.checkpoint.load import load_model
from vlm.models.processor import load_processor
from vlm.models.specs import RopeScaling


@pytest.fixture
def loaded(preset, checkpoint):
    folder = checkpoint(preset)
    return load_model(folder), load_processor(folder)


def questions(processor, picture, strides) -> list:
    """Four prompts of different lengths: with one, two and no pictures."""
    red, blue = picture((250, 0, 0)), picture((0, 0, 250), (180, 60))
    contents = [
        [image(red), text("\nWhat is it?")],
        [text("Say something about the weather, and take your time.")],
        [image(red), text("\nand "), image(blue), text("\nWhich one?")],
        [text("Hi")],
    ]
    return [processor.encode([{"role": "user", "content": c}], strides=strides) for c in contents]


def tokens(model, processor, batch, **settings) -> list[list[int]]:
    """New tokens of a padded batch, nothing shared."""
    ids, mask, place = left_padded(batch)
    features = encode_unique(model, processor, batch, chunk=2)
    return model.generate(ids, features=features, attention_mask=mask, position_ids=place, **settings).tolist()


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3, "num_return_sequences": 2}])
@pytest.mark.parametrize("strides", [None, 1, 64])
def test_a_batch_gives_the_answers_of_its_prompts_one_by_one(strides, settings, loaded, picture):
    """Batches of 1 to 8 prompts of different lengths, greedy and by beams."""
    model, processor = loaded
    settings = {"max_new_tokens": 6, **settings}
    more = [processor.encode([{"role": "user", "content": [text("x " * n)]}], strides=strides) for n in (1, 3, 9, 20)]
    prompts = questions(processor, picture, strides) + more
    assert len({len(p.input_ids) for p in prompts}) >= 7
    alone = [tokens(model, processor, [prompt], **settings) for prompt in prompts]
    assert len({str(rows) for rows in alone}) > 4  # or the test could not fail
    for size in range(1, 9):
        assert tokens(model, processor, prompts[:size], **settings) == [row for rows in alone[:size] for row in rows]
    if "num_beams" not in settings:
        replies = answer(model, processor, prompts, max_new_tokens=6)
        assert replies == [answer(model, processor, [prompt], max_new_tokens=6)[0] for prompt in prompts]


@pytest.mark.parametrize("stride", [None, 1, 0.5])
def test_each_new_token_is_one_position_after_the_last(stride, checkpoint, picture):
    """Decoding with a cache against whole forwards whose positions are written out."""
    folder = checkpoint("tiny-internvl2")
    model, processor = load_model(folder), load_processor(folder)
    prompt = questions(processor, picture, stride)[2]
    ids, mask, place = left_padded([prompt])
    pixels = processor.pixels(prompt.pixels)
    got = model.generate(ids, pixel_values=pixels, attention_mask=mask, position_ids=place, max_new_tokens=5)
    for expected in got[0]:
        logits = model(ids, pixel_values=pixels, position_ids=place).logits
        assert logits[0, -1].argmax() == expected
        ids = torch.cat([ids, expected.view(1, 1)], dim=1)
        place = torch.cat([place, place[:, -1:] + 1], dim=1)


def test_equal_tiles_are_encoded_once(loaded, picture):
    model, processor = loaded
    prompts = questions(processor, picture, None)
    batch = [prompts[0], prompts[2], prompts[0]]  # red; red, blue; red
    sizes = []
    model.encoder.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    answer(model, processor, batch, max_new_tokens=1)
    tiles = [tile.tobytes() for sample in batch for tile in sample.pixels]
    assert sum(sizes) == len(set(tiles)) < len(tiles)
    features = encode_unique(model, processor, batch, chunk=1)
    all_tiles = torch.cat([processor.pixels(sample.pixels) for sample in batch])
    torch.testing.assert_close(features, model.encode_images(all_tiles), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_no_more_tiles_than_a_chunk_are_encoded_at_once(chunk, checkpoint, picture):
    """Hundreds of tiles must not take hundreds of tiles' activations, nor their floats."""
    folder = checkpoint("tiny-internvl2")
    model, processor = load_model(folder), load_processor(folder)
    pages = [image(picture((k, 250 - k, 99), (180, 60))) for k in range(0, 80, 20)]
    prompt = processor.encode([{"role": "user", "content": [*pages, text("Sum?")]}], strides=1)
    ids, _, place = left_padded([prompt])
    sizes, floats = [], []
    model.encoder.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    pixels = processor.pixels(prompt.pixels)
    processor.pixels = lambda part: floats.append(len(part)) or type(processor).pixels(processor, part)
    new = model.generate(ids, pixel_values=pixels, position_ids=place, max_new_tokens=3, image_chunk=chunk)
    assert max(sizes) == chunk and sum(sizes) == prompt.n_tiles == 16
    features = encode_unique(model, processor, [prompt], chunk)
    assert max(sizes) == max(floats) == chunk
    assert torch.equal(model.generate(ids, features=features, position_ids=place, max_new_tokens=3), new)


def test_a_batch_without_pictures_has_no_features(loaded, picture):
    model, processor = loaded
    prompts = questions(processor, picture, None)
    assert encode_unique(model, processor, [prompts[1], prompts[3]], chunk=1) is None
    assert len(answer(model, processor, [prompts[1], prompts[3]], max_new_tokens=2)) == 2


def test_pads_are_on_the_left_and_masked_and_plain_positions_are_integers(loaded, picture):
    _, processor = loaded
    ids, mask, place = left_padded(questions(processor, picture, None))
    assert place.dtype == torch.int64
    prompts = questions(processor, picture, 1)
    for prompt, row in zip(prompts, left_padded(prompts)[2], strict=True):
        assert row.dtype == torch.float64
        assert row[-len(prompt.position_ids) :].tolist() == prompt.position_ids.tolist()
    assert (mask.diff(dim=1) >= 0).all() and mask[:, -1].all() and not mask.all()
    assert ids.shape == mask.shape == place.shape
    assert (place[:, -1] == mask.sum(1) - 1).all()


def test_a_reply_ends_at_the_first_stop_token(loaded):
    _, processor = loaded
    words, stop = processor.tokenizer.encode_plain("the cat"), processor.stop_ids
    whole = Reply("the cat", len(words) + 1, True)
    assert reply(processor, [*words, stop[0], *words], stop) == whole
    assert reply(processor, words, stop) == dataclasses.replace(whole, n_new=len(words), finished=False)
    assert reply(processor, [stop[-1]], stop) == Reply("", 1, True)


def test_beams_answer_too(checkpoint, picture):
    folder = checkpoint("tiny-internvl2")
    model, processor = load_model(folder), load_processor(folder)
    prompts = questions(processor, picture, 1)[:2]
    together = answer(model, processor, prompts, max_new_tokens=4, num_beams=3)
    assert together == [answer(model, processor, [p], max_new_tokens=4, num_beams=3)[0] for p in prompts]


def test_the_processor_takes_its_own_strides_from_the_model_and_no_other_word(checkpoint, picture):
    processor = load_processor(checkpoint("tiny-internvl2"))
    processor.spec = processor.spec.model_copy(update={"strides": 2.0})
    message = [{"role": "user", "content": [image(picture()), text("?")]}]
    assert processor.encode(message).strides == [2.0]
    assert processor.encode(message, strides=None).strides is None
    with pytest.raises(ConfigError, match="strides 'modle'"):
        processor.encode(message, strides="modle")


def test_another_image_rule_leaves_the_processor_as_it_was(checkpoint, picture):
    processor = load_processor(checkpoint("tiny-internvl2"))
    message = [{"role": "user", "content": [image(picture(size=(240, 60))), text("?")]}]
    one = processor.with_image_rule(max_tiles=1, thumbnail=False)
    assert (one.encode(message).n_tiles, processor.encode(message).n_tiles) == (1, 5)


# prefill --------------------------------------------------------------------------------------------------------------


def logits(model, ids, **kwargs) -> torch.Tensor:
    """[B, 3, V] of three greedy steps."""
    out = model.generate(ids, max_new_tokens=3, return_dict_in_generate=True, output_logits=True, **kwargs)
    return torch.stack(out.logits, dim=1)


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
@pytest.mark.parametrize("scaling", [None, "linear", "dynamic"])
@pytest.mark.parametrize("positions", ["plain", "V2PE"])
def test_prefill_in_chunks_gives_the_logits_of_prefill_at_once(positions, scaling, attention, tiny, prompt, tiles):
    """Also where a chunk of a row is padding alone, and where dynamic NTK goes by the length of the whole prompt."""
    rope = RopeScaling(kind=scaling, factor=2.0) if scaling else None
    model = tiny(rope_scaling=rope, max_positions=12)
    model.set_attention(attention)
    ids, pixels = prompt(model, 9, "image", 12), tiles(model, 1)
    ids = torch.cat([ids, torch.cat([torch.zeros(1, 11, dtype=torch.long), ids[:, :-11]], 1)])
    mask = torch.ones_like(ids)
    mask[1, :11] = 0
    place = (mask.cumsum(1) - 1).clamp(min=0)
    if positions == "V2PE":
        place = place * 0.75
    given = {"pixel_values": pixels.repeat(2, 1, 1, 1), "attention_mask": mask, "position_ids": place}
    whole = logits(model, ids, **given)
    full = model(ids, **given).logits[:, -1]
    torch.testing.assert_close(whole[:, 0], full, atol=1e-5, rtol=1e-5)
    for chunk in (1, 5, ids.shape[1] - 1, ids.shape[1]):
        torch.testing.assert_close(logits(model, ids, prefill_chunk=chunk, **given), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [5, 100])
@pytest.mark.parametrize("beams", [1, 3])
def test_only_the_last_position_of_a_prompt_gets_logits_and_beams_share_its_prefill(beams, chunk, tiny, prompt):
    model, rows, computed = tiny(), [], []
    model.language_model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:2].numel()))
    model.language_model.model.layers[0].register_forward_pre_hook(
        lambda _, args: computed.append(args[0].shape[:2].numel())
    )
    ids = torch.cat([prompt(model, 23), prompt(model, 23, seed=1)])
    model.generate(ids, num_beams=beams, max_new_tokens=4, prefill_chunk=chunk)
    assert rows == [2 * beams] * 4
    assert sum(computed) == 2 * 22 + 2 * beams * 4
    assert max(computed) <= 2 * chunk


# drawing and stopping -------------------------------------------------------------------------------------------------


def test_a_seed_repeats_its_draw_and_leaves_the_global_generator_alone(tiny, prompt):
    model, ids = tiny(), prompt(tiny(), 9).repeat(2, 1)
    before = torch.get_rng_state()
    draws = [
        model.generate(ids, do_sample=True, temperature=2.0, top_k=0, seed=seed, max_new_tokens=8).tolist()
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0][0] != draws[0][1]  # equal prompts, each with its own draw
    assert torch.equal(torch.get_rng_state(), before)
    several = model.generate(ids[:1], do_sample=True, num_return_sequences=3, seed=1, max_new_tokens=5)
    beams = [model.generate(ids, do_sample=True, num_beams=2, seed=4, max_new_tokens=5).tolist() for _ in range(2)]
    assert several.shape == (3, 5) and beams[0] == beams[1]


def test_a_stop_token_ends_its_row_and_the_rest_is_padding(tiny, prompt):
    model = tiny()
    ids = torch.cat([prompt(model, 7, seed=k) for k in range(3)])
    free = model.generate(ids, max_new_tokens=8)
    stop = free[0, 2].item()
    assert stop not in free[0, :2]
    ended = model.generate(ids, max_new_tokens=8, eos_token_id=[stop], pad_token_id=5)
    for row, whole in zip(ended.tolist(), free.tolist(), strict=True):
        end = whole.index(stop) + 1 if stop in whole else 8
        assert row == (whole[:end] + [5] * 8)[: ended.shape[1]]
    alone = model.generate(ids[:1], max_new_tokens=8, eos_token_id=[stop])
    assert alone.tolist() == [free[0, :3].tolist()]
    late = model.generate(ids[:1], max_new_tokens=8, eos_token_id=[stop], min_new_tokens=5)
    assert late.shape[1] >= 5 and stop not in late[0, :4]


# bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "settings"),
    [
        ("max_new_tokens 0", {"max_new_tokens": 0}),
        ("max_new_tokens -3", {"max_new_tokens": -3}),
        ("min_new_tokens 9", {"min_new_tokens": 9}),
        ("num_beams 0", {"num_beams": 0}),
        ("num_return_sequences 0", {"num_return_sequences": 0}),
        ("num_return_sequences 4\n.*num_beams .3", {"num_beams": 3, "num_return_sequences": 4}),
        ("num_return_sequences 2\n.*do_sample", {"num_return_sequences": 2}),
        ("a streamer with 1 prompts, 2 beams", {"num_beams": 2, "streamer": object()}),
        ("temperature, seed without do_sample", {"temperature": 0.7, "seed": 1}),
        ("temperature 0", {"do_sample": True, "temperature": 0.0}),
        ("top_p 1.5", {"do_sample": True, "top_p": 1.5}),
        ("top_k -1", {"do_sample": True, "top_k": -1}),
        ("use_cache False", {"use_cache": False}),
        ("unknown generation settings: max_tokens", {"max_tokens": 5}),
        ("early_stopping", {"num_beams": 2, "early_stopping": "soon"}),
        ("image chunks of 0", {"image_chunk": 0}),
        ("prefill chunks of 0", {"prefill_chunk": 0}),
    ],
)
def test_impossible_settings_are_errors_before_a_token_is_computed(match, settings, tiny, prompt, tiles):
    model, calls = tiny(), []
    model.language_model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ConfigError, match=match):
        model.generate(prompt(model, 3, "image", 2), pixel_values=tiles(model, 1), **{"max_new_tokens": 4, **settings})
    assert not calls


def test_malformed_prompts_are_errors(tiny, prompt, tiles):
    model = tiny()
    ids = prompt(model, 6).repeat(2, 1)
    right = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    for match, wrong in {
        "not empty": {"input_ids": ids[:, :0]},
        "ends with padding": {"attention_mask": right},
        r"positions \[1, 6\]": {"position_ids": torch.arange(6)[None]},
        r"mask \[2, 5\]": {"attention_mask": right[:, :5]},
    }.items():
        with pytest.raises(DataError, match=match):
            model.generate(**{"input_ids": ids, **wrong})
    with pytest.raises(ConfigError, match="a streamer with 2 prompts"):
        model.generate(ids, streamer=object())
    for flags in ([1], [1, 0, 1]):
        with pytest.raises(DataError, match=f"{len(flags)} image flags for 2 tiles"):
            model(prompt(model, "image", "image"), pixel_values=tiles(model, 2), image_flags=torch.tensor(flags))


def test_one_reply_for_each_prompt(checkpoint, picture):
    folder = checkpoint("tiny-internvl2")
    model, processor = load_model(folder), load_processor(folder)
    with pytest.raises(ConfigError, match="several answers"):
        answer(
            model, processor, questions(processor, picture, 1), max_new_tokens=2, num_beams=2, num_return_sequences=2
        )
