"""Keys and values in fewer bytes and on the CPU: their rounding, equal answers however they are read, flat memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.core.errors import ConfigError, UnknownName
from vlm.models.answers import answer
from vlm.models.attention import KV_DTYPES, KVStorage, RowCache, StoredStates, interface, local, storage
from vlm.models.attention.storage import BLOCK
from vlm.models.checkpoint.load import load_model
from vlm.models.engine import ChatEngine, Sampling
from vlm.models.processor import load_processor
from vlm.models.session import user_turn
from vlm.train.plan.trace import LiveBytes

HALF_STEP = {"auto": 0.0, "float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11, "fp8": 2**-4}
"""Greatest error of a normal number, as a part of it."""


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_what_is_read_is_what_was_written_to_the_rounding_of_the_dtype(dtype, offload) -> None:
    whole = numbers(2, 3, 2 * BLOCK + 100, 8) * torch.tensor([1e-3, 1, 100])[:, None, None]
    states, at = StoredStates(KVStorage(dtype, offload)), 0
    for count in (5, 1, BLOCK, 1, BLOCK + 93):
        found = states.write(whole[:, :, at : at + count], at)
        at += count
    assert found.shape == whole.shape and found.dtype == whole.dtype
    error, largest = (found - whole).abs(), whole.abs().amax(-1, keepdim=True)
    if dtype == "int8":
        assert (error <= largest / 254 * 1.0001).all() and error.max() > 0
    else:
        small = largest * 2**-17 if dtype == "fp8" else 1e-7  # below the least normal number of the dtype
        assert (error <= whole.abs() * HALF_STEP[dtype] + small).all()
        assert bool(error.max() > 0) == (HALF_STEP[dtype] > 0)
    exact = KVStorage(dtype).bytes_per_value(torch.float32, 8) * whole.numel()
    assert exact <= states.nbytes <= 1.5 * exact


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_a_token_of_zeros_and_one_that_is_not_finite(dtype) -> None:
    whole = torch.zeros(1, 1, 3, 4)
    whole[0, 0, 1, 2], whole[0, 0, 2, 1] = torch.nan, torch.inf
    found = StoredStates(KVStorage(dtype)).write(whole, 0)[0, 0]
    assert found[0].tolist() == [0, 0, 0, 0]
    assert not found[1:].isfinite().all(-1).any(), "a damaged key must not look like a number"


@pytest.mark.parametrize("offload", [False, True])
def test_two_that_began_alike_do_not_write_into_each_other(offload) -> None:
    whole = numbers(1, 2, BLOCK + 50, 4)
    first = RowCache(1, KVStorage("auto", offload))
    first.append(0, whole, whole)
    first.length = whole.shape[2]
    second, third = first.copy(BLOCK + 10), first.keys[0].beginning(BLOCK + 10, rows=3)
    more = numbers(1, 2, 30, 4, seed=1)
    keys, _ = second.append(0, more, more)
    assert torch.equal(keys, torch.cat([whole[:, :, : BLOCK + 10], more], dim=2))
    rows = third.write(more.expand(3, -1, -1, -1) * torch.tensor([1, 2, 3])[:, None, None, None], BLOCK + 10)
    assert torch.equal(rows[2, :, -30:], 3 * more[0]) and torch.equal(rows[1, :, :-30], whole[0, :, : BLOCK + 10])
    assert torch.equal(first.keys[0].read(first.length, whole), whole)


def logits(model, ids, **how) -> torch.Tensor:
    """Logits [rows, new, V] of greedy steps."""
    out = model.generate(ids, max_new_tokens=4, return_dict_in_generate=True, output_logits=True, **how)
    return torch.stack(out.logits, dim=1)


@pytest.fixture
def model(tiny):
    """A model of one's own."""
    return tiny("tiny-internvl2")


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_neither_chunks_nor_the_place_change_what_is_computed(dtype, model, prompt, tiles) -> None:
    ids, pixels = prompt(model, 6, "image", 9), tiles(model, 1)
    plain = logits(model, ids, pixel_values=pixels)
    model.kv_storage = KVStorage(dtype)
    at_once, pieces = (logits(model, ids, pixel_values=pixels, prefill_chunk=n) for n in (1000, 4))
    model.kv_storage = KVStorage(dtype, offload=True)
    offloaded = logits(model, ids, pixel_values=pixels, prefill_chunk=4)
    assert torch.equal(offloaded, pieces)
    scale = plain.abs().max()
    # a key that lies between two steps of a few bits may fall to either side
    assert (pieces - at_once).abs().max() <= scale * {"int8": 0.02, "fp8": 0.1}.get(dtype, 0.01)
    error = float((at_once - plain).abs().max() / scale)
    if dtype in ("auto", "float32"):
        assert error < 1e-5
    else:
        assert 1e-6 < error < {"float16": 0.01, "bfloat16": 0.05, "int8": 0.1, "fp8": 0.5}[dtype]


@pytest.mark.parametrize("kept", [KVStorage("int8"), KVStorage("auto", offload=True)])
def test_beams_batches_and_prefixes_have_the_same_answers_as_one_prompt(kept, model, prompt) -> None:
    model.kv_storage = kept
    document, questions = prompt(model, 30), prompt(model, 5, seed=2).repeat(3, 1)
    questions[1, :3], questions[2] = 7, prompt(model, 5, seed=3)
    prefix = model.prefill(document, chunk=8)
    whole = torch.cat([document.expand(3, -1), questions], dim=1)
    for how in ({}, {"num_beams": 3}):
        behind = model.generate(questions, prefix=prefix, max_new_tokens=4, **how)
        batch = model.generate(whole, max_new_tokens=4, **how)
        each = torch.cat([model.generate(row[None], max_new_tokens=4, **how) for row in whole])
        assert behind.tolist() == batch.tolist() == each.tolist()
    assert each.unique(dim=0).shape[0] > 1


def test_the_engine_and_a_batch_keep_them_alike(checkpoint) -> None:
    model = load_model(checkpoint(), kv_dtype="bfloat16")
    processor = load_processor(checkpoint())
    prompts = [
        processor.encode([user_turn(f"{'word ' * n}why?", [], [], processor.template)], strides=0.5) for n in (3, 90)
    ]
    wanted = answer(model, processor, prompts, max_new_tokens=6)
    with ChatEngine(model, processor) as engine:
        rows = [engine.ask(one, Sampling(max_new_tokens=6)) for one in (*prompts, prompts[1])]
        kept = engine.prefixes.kept[-1].row.keys[0].blocks[0][0]
    assert kept.dtype == torch.bfloat16
    assert [row.text for row in rows] == [reply.text for reply in (*wanted, wanted[1])]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 40), cached=st.integers(1, 60), heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]), pad=st.booleans()
)
def test_long_chunks_without_a_mask_give_what_the_mask_gives(n, cached, heads, pad) -> None:
    query = numbers(2, heads[0], n, 8)
    key, value = numbers(2, heads[1], n + cached, 8, seed=1), numbers(2, heads[1], n + cached, 8, seed=2)
    keys = torch.ones(2, n + cached, dtype=torch.bool)
    keys[1, : cached // 2 if pad else 0] = False
    seen = torch.ones(n, n + cached, dtype=torch.bool).tril(cached) & keys[:, None]
    wanted = local.causal(query, key, value, None, seen[:, None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "LONGEST_MASK", 0)
        found = local.sdpa(query, key, value, keys if pad else None, None, None)
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)


def test_long_chunks_reach_the_answers_too(model, prompt, monkeypatch) -> None:
    ids = prompt(model, 70).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    wanted = logits(model, ids, attention_mask=mask)
    masks = []
    monkeypatch.setattr(local, "varlen", lambda *a, real=local.varlen: masks.append(a[3]) or real(*a))
    for module in (local, interface):
        monkeypatch.setattr(module, "LONGEST_MASK", 100)
    found = logits(model, ids, attention_mask=mask, prefill_chunk=16)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert masks and all(m.dim() == 2 for m in masks), "no mask of queries by keys was made"


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "int8"])
def test_memory_of_a_chunked_prefill_grows_by_the_cache_alone(dtype, model, prompt, monkeypatch) -> None:
    """Beside the prompt (ids, mask, positions, embeddings); of another dtype one layer is read back at a time."""
    for module, name in ((local, "LONGEST_MASK"), (interface, "LONGEST_MASK"), (storage, "SPAN")):
        monkeypatch.setattr(module, name, 256)
    model.kv_storage = KVStorage(dtype)
    peaks = []
    for length in (2048, 4096):
        ids, live = prompt(model, length), LiveBytes()
        live.ignore(list(model.parameters()))
        with live, torch.inference_mode():
            model.generate(ids, max_new_tokens=1, prefill_chunk=64)
        peaks.append(live.peak)
    language = model.spec.language
    head = language.width // language.heads
    values = 2 * language.kv_heads * head
    cache = language.depth * values * model.kv_storage.bytes_per_value(torch.float32, head)
    asked = language.width * 4 + 4 * 8
    layer = 0 if dtype == "auto" else values * 4
    assert (peaks[1] - peaks[0]) / 2048 == pytest.approx(cache + asked + layer, rel=0.02)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"kv_dtype": "int3"}, UnknownName, "int8"),
        ({"kv_offload": True}, ConfigError, "runs on the CPU"),
        ({"kv_offload": True, "device": {"": "cpu"}}, ConfigError, "runs on the CPU"),
    ],
)
def test_what_cannot_be_is_said_before_weights_are_read(given, error, said, checkpoint, monkeypatch) -> None:
    monkeypatch.setattr("vlm.models.checkpoint.load.renamed_tensors", lambda *_: pytest.fail("weights are read"))
    with pytest.raises(error, match=said):
        load_model(checkpoint(), **given)
