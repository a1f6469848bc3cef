"""Attention: the same answer from every backend, documents separated by cu_seqlens alone, no n x n tensor for packs.

flash-attn needs a GPU: here its kernel is a stand-in with the signature, layout and causal alignment of flash-attn
2.8's `flash_attn_varlen_func`. That shows our side of the call to be right, not the kernel.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import vlm.models.attention as attention
from vlm.core.errors import ConfigError, DataError, UnknownName
from vlm.core.sample.positions import positions
from vlm.models.attention import local
from vlm.models.specs import RopeScaling

OTHERS = ["varlen", "flash_attention_2"]
BORDERS = torch.tensor([0, 7, 8, 21], dtype=torch.int32)


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """Stand-in: q [tokens, H, D], k and v [tokens, H_kv, D]; int32 borders of segments; causal to the lower right."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert (len(q), len(k)) == (cu_seqlens_q[-1], cu_seqlens_k[-1]) and causal
    lengths_q, lengths_k = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    assert max_seqlen_q >= max(lengths_q) and max_seqlen_k >= max(lengths_k)  # the kernel's grid is made for these
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    out = []
    for a, b, c in zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True):
        scores = torch.einsum("qhd,khd->hqk", a, b) * softmax_scale
        seen = torch.ones(len(a), len(b), dtype=torch.bool).tril(len(b) - len(a))
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), c))
    return torch.cat(out)


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    """flash-attn as if it ran here."""
    monkeypatch.setattr(local, "flash_kernel", lambda device, dtype: flash_attn_varlen_func)


def qkv(batch: int, queries: int, keys: int, heads: int = 4, heads_kv: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(batch, heads, queries, 8), (batch, heads_kv, keys, 8), (batch, heads_kv, keys, 8)]
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def by_hand(q, k, v, sees) -> torch.Tensor:
    """Softmax attention with `sees` [B, Lq, Lk], written out."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scores = (q @ k.mT) / q.shape[-1] ** 0.5
    return scores.masked_fill(~sees[:, None], float("-inf")).softmax(-1).nan_to_num() @ v


def compare(name, inputs, mask, cu_seqlens, sees, rows) -> None:
    """Output and gradients of a backend against attention by hand, where `rows` [B, Lq] are tokens."""
    found = []
    for out in (
        attention.BACKENDS[name].attend(*inputs, mask, cu_seqlens, 8**-0.5),
        by_hand(*inputs, sees),
    ):
        out = out.transpose(1, 2)[rows]
        found.append([out, *torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), inputs)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("name", ["sdpa", *OTHERS])
def test_documents_of_a_pack_attend_within_themselves_forward_and_backward(name):
    inputs = qkv(1, 21, 21)
    document = torch.repeat_interleave(torch.arange(3), BORDERS.diff())
    sees = (document[:, None] == document) & torch.ones(21, 21, dtype=torch.bool).tril()
    compare(name, inputs, None, BORDERS, sees[None], torch.ones(1, 21, dtype=torch.bool))


@pytest.mark.parametrize("name", ["sdpa", *OTHERS])
@pytest.mark.parametrize("queries", [9, 4, 1])
@pytest.mark.parametrize("padding", ["left", "right", "none"])
def test_padded_rows_prefill_chunks_and_decoding_forward_and_backward(name, queries, padding):
    inputs = qkv(3, queries, 9)
    keys = torch.ones(3, 9, dtype=torch.bool)
    if padding == "left":
        keys[1, :3] = keys[2, :5] = False
    elif padding == "right":
        keys[1, -3:] = keys[2, -8:] = False
    sees = torch.ones(queries, 9, dtype=torch.bool).tril(9 - queries) & keys[:, None]
    rows = keys[:, -queries:]
    mask = None if padding == "none" else sees[:, None] if attention.BACKENDS[name].dense else keys
    compare(name, inputs, mask, None, sees, rows)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize(("name", "quadratic"), [("sdpa", True), ("varlen", False), ("auto", False)])
def test_no_tensor_of_a_pack_grows_with_the_square_of_its_length(name, quadratic, tiny, prompt):
    model, n = tiny(), 600
    model.set_attention(name)
    ids = prompt(model, n)
    with Largest() as largest, torch.no_grad():
        model(ids, cu_seqlens=torch.tensor([0, 250, n], dtype=torch.int32), logits=False)
    assert (largest.elements >= n * n) == quadratic


@pytest.mark.parametrize("given", [None, torch.ones(1, 600, dtype=torch.long)])
def test_one_row_without_padding_takes_no_mask(given, tiny, prompt):
    model, n = tiny(), 600
    with Largest() as largest, torch.no_grad():
        model(prompt(model, n), attention_mask=given, position_ids=torch.linspace(0, 9, n).double()[None], logits=False)
    assert largest.elements < n * n


# the whole model ------------------------------------------------------------------------------------------------------


def logits_and_gradients(model, ids, **given):
    model.zero_grad()
    out = model(ids, labels=ids.clamp(min=0), **given)
    out.loss.backward()
    return out.logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("rows", ["packed", "padded left", "padded right", "plain"])
def test_backends_agree_in_the_whole_model_forward_and_backward(name, rows, tiny, prompt, tiles):
    model = tiny().train()
    model.set_gradient_checkpointing(True)
    ids, pixels = prompt(model, 4, "image", 5), tiles(model, 1)
    place = torch.from_numpy(positions([("text", 4), ("image", 1), ("text", 5)], 4, 1, brackets=False))[None]
    given = {"pixel_values": pixels, "position_ids": place}
    where = torch.ones_like(ids, dtype=torch.bool)
    if rows == "packed":
        given["cu_seqlens"] = torch.tensor([0, 3, ids.shape[1]], dtype=torch.int32)
    elif rows != "plain":
        pad = (3, 0) if rows.endswith("left") else (0, 3)
        ids, given["position_ids"], where = F.pad(ids, pad), F.pad(place, pad), F.pad(where, pad)
        given["attention_mask"] = where.long()
    found = []
    for backend in ("sdpa", name):
        model.set_attention(backend)
        loss_mask = {"loss_weights": where.float()}
        found.append(logits_and_gradients(model, ids, **given, **loss_mask))
    torch.testing.assert_close(found[1][0][where], found[0][0][where], atol=1e-4, rtol=1e-4)
    total = sum(g.norm() for g in found[0][1].values())
    for key, gradient in found[1][1].items():
        assert (gradient - found[0][1][key]).norm() <= 1e-5 * total, key


@pytest.mark.parametrize("name", ["auto", *OTHERS])
def test_backends_generate_the_same_tokens_from_a_padded_batch(name, tiny, prompt):
    model = tiny()
    short, long = prompt(model, 5), prompt(model, 9, seed=1)
    ids = torch.cat([F.pad(short, (4, 0)), long])
    mask = torch.cat([F.pad(torch.ones_like(short), (4, 0)), torch.ones_like(long)])
    model.set_attention("sdpa")
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=6)
    model.set_attention(name)
    assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=6), expected)


def causal_layers_by_hand(model, embeddings, place):
    """The language model with attention over a dense causal mask, layer by layer: the answer without any backend."""
    inner = model.language_model.model
    cos, sin = (t.unsqueeze(1) for t in inner.rotary_emb(embeddings, place))
    half = cos.shape[-1] // 2
    n, x = embeddings.shape[1], embeddings
    sees = torch.ones(1, n, n, dtype=torch.bool).tril()
    for layer in inner.layers:
        y, a = layer.input_layernorm(x), layer.self_attn
        q, k, v = (p(y).unflatten(-1, (-1, a.head_dim)).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
        q, k = (t * cos + torch.cat([-t[..., half:], t[..., :half]], -1) * sin for t in (q, k))
        x = x + a.o_proj(by_hand(q, k, v, sees).transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return inner.norm(x)


@pytest.mark.parametrize("name", ["auto", "sdpa", *OTHERS])
@pytest.mark.parametrize("stride", [1, 0.5, 16])
def test_v2pe_positions_without_a_mask_are_one_causal_document(name, stride, tiny, prompt, tiles):
    """The failure of packed training on stock transformers: no cache, gradient checkpointing, no mask, steps other than
    1. Against dense causal attention by hand, which knows nothing of documents."""
    model = tiny().train()
    model.set_gradient_checkpointing(True)
    model.set_attention(name)
    ids, pixels = prompt(model, 4, "image", 3, "image", 5), tiles(model, 2)
    layout = [("text", 4), ("image", 1), ("text", 3), ("image", 1), ("text", 5)]
    place = torch.from_numpy(positions(layout, model.tokens_per_tile, stride, brackets=False))[None]
    wanted = causal_layers_by_hand(model, model.embed(ids, pixels), place)
    got = model(ids, pixel_values=pixels, position_ids=place).logits
    torch.testing.assert_close(got, model.language_model.lm_head(wanted), atol=1e-4, rtol=1e-4)
    # the language model itself, called without ours around it and without a mask
    inner = model.language_model(inputs_embeds=model.embed(ids, pixels), position_ids=place, use_cache=False)
    torch.testing.assert_close(inner.logits, got, atol=1e-4, rtol=1e-4)


# packed rows without positions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [None, RopeScaling(kind="dynamic", factor=2.0)])
def test_positions_and_dynamic_scaling_restart_in_each_document(scaling, tiny, prompt):
    """One document is beyond the 16 positions of the model and one is not: each keeps the base of its length."""
    model = tiny(max_positions=16, rope_scaling=scaling)
    documents = [prompt(model, n, seed=n) for n in (30, 9, 17)]
    seen = []  # the logits alone would not tell: rotary embeddings are relative
    rotary = model.language_model.model.rotary_emb
    rotary.register_forward_pre_hook(lambda _, args, given: seen.append(given["position_ids"]), with_kwargs=True)
    packed = model(torch.cat(documents, 1), cu_seqlens=torch.tensor([0, 30, 39, 56], dtype=torch.int32)).logits
    assert seen[0][0, :, 0].tolist() == [*range(30), *range(9), *range(17)]
    alone = torch.cat([model(ids).logits for ids in documents], 1)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)


def test_dynamic_scaling_of_a_batch_goes_by_each_row(tiny, prompt):
    model = tiny(max_positions=16, rope_scaling=RopeScaling(kind="dynamic", factor=2.0))
    short, long = prompt(model, 9), prompt(model, 30, seed=1)
    mask = torch.cat([F.pad(torch.ones_like(short), (21, 0)), torch.ones_like(long)])
    batch = model(torch.cat([F.pad(short, (21, 0)), long]), attention_mask=mask).logits
    torch.testing.assert_close(batch[0, 21:], model(short).logits[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(batch[1], model(long).logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("borders", [[0, 4, 8], [1, 9], [0, 5, 5, 9], [0, 6, 3, 9], []])
def test_borders_that_do_not_cut_the_row_are_refused(borders, tiny, prompt):
    model = tiny()
    with pytest.raises(DataError, match=r"cu_seqlens .* for 1 rows of 9 tokens"):
        model(prompt(model, 9), cu_seqlens=torch.tensor(borders, dtype=torch.int32))


# names ----------------------------------------------------------------------------------------------------------------


def test_a_model_keeps_its_backend_and_another_model_has_its_own(tiny):
    first, second = tiny(), tiny()
    first.set_attention("varlen")
    assert (first.attention, second.attention) == ("varlen", "auto")


def test_an_unknown_backend_is_refused_with_the_known_ones(tiny):
    with pytest.raises(UnknownName, match="did you mean varlen"):
        tiny().set_attention("var_len")


def test_flash_attention_that_cannot_run_says_what_to_install(tiny, monkeypatch):
    monkeypatch.undo()
    if attention.flash_problem("cuda", torch.bfloat16) is None:
        pytest.skip("flash-attn is installed")
    model = tiny()
    with pytest.raises(ConfigError, match=r"pip install --no-build-isolation .*farlens-cli\[flash\]"):
        model.set_attention("flash_attention_2")
    assert model.attention == "auto"


def test_auto_takes_flash_attention_where_it_can_run_and_never_for_float32(monkeypatch):
    monkeypatch.setattr(local, "find_spec", lambda name: name)
    bf16, f32 = torch.bfloat16, torch.float32
    assert attention.choose("auto", True, "cuda", bf16) == attention.choose("auto", False, "cuda", bf16) == OTHERS[1]
    assert [attention.choose("auto", packed, "cuda", f32) for packed in (True, False)] == ["varlen", "sdpa"]
    assert [attention.choose("auto", packed, "cpu", bf16) for packed in (True, False)] == ["varlen", "sdpa"]


def test_a_cache_with_room_ahead_is_refused_where_no_mask_says_so(tiny, prompt):
    model = tiny()
    model.set_attention("varlen")
    with pytest.raises(ConfigError, match=r"a cache of .* places"):
        model.generate(prompt(model, 5), max_new_tokens=3, cache_implementation="static")


def test_a_further_backend_joins_by_an_entry_of_the_dict(tiny, prompt, monkeypatch):
    calls = []

    def ring(*given):
        calls.append(1)
        return attention.varlen(*given)

    monkeypatch.setitem(attention.BACKENDS, "ring", attention.AttentionBackend(ring, dense=False))
    model = tiny()
    expected = model(prompt(model, 6)).logits
    model.set_attention("ring")
    assert torch.allclose(model(prompt(model, 6)).logits, expected) and len(calls) == model.spec.language.depth
