"""Answers: batches, positions, and no work done twice."""

import dataclasses

import pytest
import torch

from vlm.core.errors import ConfigError
from vlm.core.records import image, text
from vlm.models.generate import Reply, answer, encode_unique, left_padded, reply
from vlm.models.processor import load_processor
from vlm.models.weights import load_model


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


@pytest.mark.parametrize("strides", [None, 1, 64])
def test_a_batch_gives_the_answers_of_its_prompts_one_by_one(strides, loaded, picture):
    model, processor = loaded
    prompts = questions(processor, picture, strides)
    assert len({len(p.input_ids) for p in prompts}) == 4

    def tokens(batch) -> list[list[int]]:
        ids, mask, place = left_padded(batch)
        features = encode_unique(model, processor, batch, chunk=2)
        return model.generate(
            ids, features=features, attention_mask=mask, position_ids=place, max_new_tokens=6
        ).tolist()

    alone = [tokens([prompt])[0] for prompt in prompts]
    assert len({tuple(row) for row in alone}) == 4  # or the test could not fail
    for size in (2, 3, 4):
        assert tokens(prompts[:size]) == alone[:size]
    replies = answer(model, processor, prompts, max_new_tokens=6)
    assert replies == [answer(model, processor, [prompt], max_new_tokens=6)[0] for prompt in prompts]


@pytest.mark.parametrize("stride", [None, 1, 0.5])
def test_each_new_token_stands_one_behind_the_last(stride, checkpoint, picture):
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
