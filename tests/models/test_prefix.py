"""Several questions on one document: the cache of what they share gives what a full prefill gives."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.core.errors import ConfigError, DataError
from vlm.core.sample.positions import positions
from vlm.models.answers import answer, document_length, encode_unique, left_padded, shared_length, split
from vlm.models.checkpoint.load import load_model
from vlm.models.processor import load_processor
from vlm.models.specs import RopeScaling

STRIDES = st.sampled_from([None, 0.5, 1, 2, 16])
SCALED = {"rope_scaling": RopeScaling(kind="dynamic", factor=2.0), "max_positions": 16}


@pytest.fixture(scope="module")
def model(tiny):
    """In float64, where two ways to the same logits differ by rounding alone."""
    return tiny("tiny-internvl2").double()


def steps(model, ids, new=2, **kwargs) -> torch.Tensor:
    """Logits [B, new, V] of greedy steps."""
    out = model.generate(ids, max_new_tokens=new, return_dict_in_generate=True, output_logits=True, **kwargs)
    return torch.stack(out.logits, dim=1)


def kept(prefix) -> list[tuple[torch.Tensor, ...]]:
    """Keys and values of each layer, as they are kept."""
    like = prefix.model.language_model.lm_head.weight
    return [tuple(states.read(prefix.length, like) for states in layer) for layer in prefix.states]


def document(model, prompt, tiles, parts, stride) -> tuple:
    """ids [1, n], positions [1, n] (integers without stride) and features [1, tokens, C] of text and images."""
    ids = prompt(model, *parts)
    layout = [("image", 1) if part == "image" else ("text", part) for part in parts]
    place = torch.from_numpy(positions(layout, model.tokens_per_tile, stride, brackets=False))[None]
    images = parts.count("image")
    features = model.encode_images(tiles(model, max(images, 1)).double()).flatten(0, 1)[None]
    return ids, place.long() if stride is None else place, features[:, : images * model.tokens_per_tile]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    parts=st.lists(st.just("image") | st.integers(1, 6), min_size=1, max_size=5),
    stride=STRIDES,
    where=st.floats(0, 1),
    chunk=st.integers(1, 20),
)
def test_a_split_anywhere_gives_the_logits_of_the_whole(parts, stride, where, chunk, model, prompt, tiles):
    """Also within an image, between two, right behind one, and when the question is one token."""
    ids, place, features = document(model, prompt, tiles, [*parts, 2], stride)
    at = 1 + round(where * (ids.shape[1] - 2))
    images = int((ids[:, :at] == model.spec.image_tokens.context_id).sum())
    hidden = model.decode(
        model.embed(ids, features=features), attention_mask=torch.ones_like(ids), position_ids=place
    ).last_hidden_state
    expected = steps(model, ids, position_ids=place, features=features)
    torch.testing.assert_close(expected[:, 0], model.language_model.lm_head(hidden[:, -1]).float(), atol=1e-5, rtol=0)

    prefix = model.prefill(ids[:, :at], features=features[:, :images], position_ids=place[:, :at], chunk=chunk)
    rest, rest_place = prefix.rest(ids, place)
    got = steps(model, rest, prefix=prefix, features=features[:, images:], position_ids=rest_place, prefill_chunk=chunk)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("preset", ["tiny-internvl2", "tiny-internvl-chat-v1-2", "tiny-convllava"])
@pytest.mark.parametrize("stride", [None, 0.5])
def test_a_prefix_serves_a_batch_again_and_again_and_stays_as_it_was(stride, preset, tiny, prompt, tiles):
    """Questions of unequal length, one with an image, padded on the left; in float32."""
    model = tiny(preset)
    start, tile = [4, "image", 3], model.tokens_per_tile
    wholes = [document(model, prompt, tiles, [*start, *end], stride) for end in ([1], [5], [2, "image", 3])]
    length = 7 + tile
    prefix = model.prefill(
        wholes[0][0][:, :length], features=wholes[0][2], position_ids=wholes[0][1][:, :length], chunk=3
    )
    before = copy.deepcopy(kept(prefix))
    rests = [prefix.rest(torch.cat([wholes[0][0][:, :length], ids[:, length:]], 1), place) for ids, place, _ in wholes]
    longest = max(ids.shape[1] for ids, _ in rests)
    ids, place, mask = (
        torch.cat([torch.nn.functional.pad(t, (longest - t.shape[1], 0)) for t in column])
        for column in ([r[0] for r in rests], [r[1] for r in rests], [torch.ones_like(r[0]) for r in rests])
    )
    after_document = wholes[2][2][:, tile:]
    for _ in range(2):
        got = steps(model, ids, prefix=prefix, features=after_document, attention_mask=mask, position_ids=place)
        for row, (question, (_, whole_place, features)) in enumerate(zip(rests, wholes, strict=True)):
            whole = torch.cat([prefix.input_ids, question[0]], dim=1)
            expected = steps(model, whole, features=features, position_ids=whole_place)
            torch.testing.assert_close(got[row : row + 1], expected, atol=1e-5, rtol=1e-5)
    for old, new in zip(before, kept(prefix), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    assert (got[0, 0] - got[1, 0]).abs().max() > 0.1  # or the test could not fail


@pytest.mark.parametrize("stride", [None, 0.5])
def test_text_goes_on_behind_the_prefix_without_positions(stride, tiny, prompt, tiles):
    """ConvLLaVA has no `</img>`: after an image, V2PE continues at the position rounded up, plus one."""
    model = tiny("tiny-convllava")
    ids, place, features = document(model, prompt, tiles, [3, "image", "image", "image", 4], stride)
    prefix = model.prefill(ids[:, :-4], features=features, position_ids=place[:, :-4])
    assert prefix.next_position == place[0, -4] and prefix.length == ids.shape[1] - 4
    expected = steps(model, ids, features=features, position_ids=place)
    torch.testing.assert_close(steps(model, ids[:, -4:], prefix=prefix), expected, atol=1e-5, rtol=1e-5)


def test_beams_and_draws_on_a_prefix_are_those_of_the_whole(model, prompt, tiles):
    ids, place, features = document(model, prompt, tiles, [3, "image", 6], 2)
    prefix = model.prefill(ids[:, :-4], features=features, position_ids=place[:, :-4])
    for kind in ({"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "seed": 3, "top_k": 5}):
        whole = model.generate(ids, features=features, position_ids=place, max_new_tokens=6, **kind)
        rest = model.generate(ids[:, -4:], prefix=prefix, position_ids=place[:, -4:], max_new_tokens=6, **kind)
        assert torch.equal(whole, rest)


def test_a_prefix_is_computed_once_and_makes_no_logits(tiny, prompt):
    model, rows, tokens = tiny(), [], []
    model.language_model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:2].numel()))
    model.language_model.model.layers[0].register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[1]))
    prefix = model.prefill(prompt(model, 20), chunk=8)
    assert (rows, tokens) == ([], [8, 8, 4])
    for _ in range(3):
        model.generate(prompt(model, 5), prefix=prefix, max_new_tokens=1)
    assert rows == [1] * 3 and sum(tokens) == 20 + 3 * 5


# what does not fit ----------------------------------------------------------------------------------------------------


def test_a_prefix_that_does_not_fit_is_an_error(model, tiny, prompt, tiles):
    ids, place, features = document(model, prompt, tiles, [3, "image", 6], 2)
    n = ids.shape[1] - 4
    prefix = model.prefill(ids[:, :n], features=features, position_ids=place[:, :n])
    question = ids[:, n:]
    for match, call in {
        "2 rows": lambda: model.prefill(ids[:, :n].repeat(2, 1), features=features),
        "empty": lambda: model.prefill(ids[:, :0]),
        "another model": lambda: tiny().generate(question, prefix=prefix),
        "float64 positions in the prefix, int64": lambda: model.generate(
            question, prefix=prefix, position_ids=place[:, n:].long()
        ),
        r"ends at position .* begins at 0\.0": lambda: model.generate(
            question, prefix=prefix, position_ids=place[:, :4]
        ),
        "three equal shapes": lambda: model.generate(question, prefix=prefix, position_ids=place),
        "without position_ids": lambda: model.generate(
            torch.cat([ids[:, 3:n], question], 1), prefix=prefix, features=features
        ),
        "0 image placeholders": lambda: model.generate(question, prefix=prefix, features=features),
    }.items():
        with pytest.raises(DataError, match=match):
            call()
    with pytest.raises(ConfigError, match="'static' with a prefix"):
        model.generate(question, prefix=prefix, cache_implementation="static")


def test_a_whole_prompt_that_does_not_begin_with_the_prefix_is_an_error(model, prompt, tiles):
    ids, place, features = document(model, prompt, tiles, [3, "image", 6], 2)
    prefix = model.prefill(ids[:, :-4], features=features, position_ids=place[:, :-4])
    other, shifted = ids.clone(), place.clone()
    other[0, 2] += 1
    shifted[0, 5] += 0.25
    with pytest.raises(DataError, match=r"^id 2 of a prompt"):
        prefix.rest(other, place)
    with pytest.raises(DataError, match=r"^position 5 of a prompt"):
        prefix.rest(ids, shifted)
    with pytest.raises(DataError, match="at least"):
        prefix.rest(ids[:, :-4], place[:, :-4])


def test_dynamic_scaling_with_a_prefix_is_right_or_an_error(tiny, prompt):
    """Each length has its own base, so the keys of a prefix would be those of a shorter prompt."""
    model = tiny(**SCALED)
    prefix = model.prefill(prompt(model, 10))
    whole = torch.cat([prefix.input_ids, prompt(model, 6, seed=1)], dim=1)
    expected = steps(model, whole, new=1)
    torch.testing.assert_close(steps(model, whole[:, 10:], new=1, prefix=prefix), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(DataError, match="17 positions with a prefix, beyond the 16"):
        model.generate(prompt(model, 7), prefix=prefix)
    with pytest.raises(DataError, match="17 positions"):
        model.prefill(prompt(model, 17))


# batches of prompts that share a document -----------------------------------------------------------------------------


@pytest.fixture
def loaded(preset, checkpoint):
    folder = checkpoint(preset)
    return load_model(folder), load_processor(folder)


def asked(processor, picture, questions, strides=None, colors=((250, 0, 0), (0, 250, 0))) -> list:
    """Prompts on one document: pictures, then the question."""
    pages = [
        part for c in colors for part in ({"type": "image", "path": str(picture(c))}, {"type": "text", "text": " "})
    ]
    return [
        processor.encode([{"role": "user", "content": [*pages, {"type": "text", "text": q}]}], strides=strides)
        for q in questions
    ]


@pytest.mark.parametrize("strides", [None, 1])
def test_what_prompts_share_is_computed_once_and_the_answers_are_the_same(strides, loaded, picture):
    model, processor = loaded
    batch = asked(processor, picture, ["What is it?", "Who?", "Which color is the sky, and why so?"], strides)
    alone = [answer(model, processor, [prompt], max_new_tokens=6)[0] for prompt in batch]
    tokens = []
    model.language_model.model.layers[0].register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[:2]))
    assert answer(model, processor, batch, max_new_tokens=6) == alone
    shared = document_length(model, batch)
    assert tokens[0] == (1, shared)
    assert sum(rows * n for rows, n in tokens) < sum(map(len, batch)) + 3 * 5


def test_only_what_is_equal_is_shared(loaded, picture):
    _, processor = loaded
    one, two = asked(processor, picture, ["What?", "Who?"])
    (other,) = asked(processor, picture, ["What?"], colors=((250, 0, 0), (0, 0, 250)))
    (single,) = asked(processor, picture, ["What?"], colors=((250, 0, 0),))
    (strided,) = asked(processor, picture, ["What?"], strides=0.5)
    second = one.image_spans[1][0]
    assert second + one.image_spans[1][1] < shared_length([one, two]) < len(one)
    assert shared_length([one, other]) == second  # the ids are equal, the pixels are not
    assert one.image_spans[0][1] + one.image_spans[0][0] <= shared_length([one, single]) <= second
    assert shared_length([one, strided]) <= one.image_spans[0][0] + 1
    assert shared_length([one, one]) == len(one) - 1


def test_a_prompt_and_its_parts_hold_the_same(loaded, picture):
    _, processor = loaded
    (sample,) = asked(processor, picture, ["What?"], strides=1)
    n = sample.image_spans[1][0]
    head, tail = split(sample, n)
    assert [*head.input_ids, *tail.input_ids] == sample.input_ids.tolist()
    assert [*head.position_ids, *tail.position_ids] == sample.position_ids.tolist()
    assert head.n_tiles == len(head.pixels) and tail.n_tiles == len(tail.pixels)
    assert (head.strides, tail.strides) == ([1.0], [1.0]) and tail.image_spans[0][0] == 0


def test_dynamic_scaling_beyond_the_limit_shares_nothing(checkpoint, picture):
    folder = checkpoint("tiny-internvl2")
    model, processor = load_model(folder), load_processor(folder)
    batch = asked(processor, picture, ["What?", "Who?"])
    assert document_length(model, batch) > 0
    model.spec = model.spec.with_language(**SCALED)
    assert document_length(model, batch) == 0


def test_v2pe_and_plain_prompts_are_answered_each_by_its_own_positions(checkpoint, picture):
    """One tensor of positions cannot say which row RoPE scaling is for; plain rows beyond the limit would lose it."""
    folder = checkpoint("tiny-internvl2")
    model, processor = load_model(folder), load_processor(folder)
    model.language_model.model.rotary_emb.scaling = SCALED["rope_scaling"]
    model.language_model.model.rotary_emb.max_positions = 16
    model.spec = model.spec.with_language(**SCALED)
    mixed = [asked(processor, picture, [q], s)[0] for q, s in (("A?", None), ("Bc?", 1), ("Cde?", None))]
    with pytest.raises(DataError, match="2 of 3 samples count plainly"):
        left_padded(mixed)
    alone = [answer(model, processor, [prompt], max_new_tokens=8)[0] for prompt in mixed]
    assert len({r.text for r in alone}) == 3
    assert answer(model, processor, mixed, max_new_tokens=8) == alone
    floats = mixed[0].position_ids[None]
    features = encode_unique(model, processor, mixed[:1], 4)
    ids = torch.from_numpy(mixed[0].input_ids)[None]
    plain, unscaled = (
        steps(model, ids, features=features, position_ids=torch.from_numpy(p)) for p in (floats.astype(int), floats)
    )
    assert (plain - unscaled).abs().max() > 0.1  # or the test could not fail


def test_the_example_of_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")
    scope: dict = {}
    exec(page.split("```python\n")[1].split("```")[0], scope)
    assert scope["answers"].shape == (3, 5)
