"""How often the host waits for the device: for each row of training, each new token, each step of the engine.

A wait costs a GPU the time until the next operation is queued. The numbers are held exactly on the pretended device;
`SHOW_WAITS=1 pytest -s tests/rehearsal/test_waits.py` says where each one comes from.
"""

import pytest
import torch

from support.rehearsed_rows import moved, one_row, packed_row, padded_rows
from vlm.models.attention import local
from vlm.models.engine import ChatEngine, GenerationRequest, Limits, Sampling
from vlm.models.session import ChatSession, user_turn
from vlm.train.run.stream import PackedRow, to_tensors


def flash_stand_in(q, k, v, borders_q, borders_k, longest_q, longest_k, softmax_scale, causal):
    """A kernel that, as flash-attn's, asks the device for nothing; its numbers are of no use here."""
    return q * 1.0


def training_row(model, positions="v2pe"):
    """A packed row as the data stream makes it, and its tiles."""
    row = packed_row(model, positions)
    places = torch.arange(row["input_ids"].shape[1]) if row["position_ids"] is None else row["position_ids"][0]
    packed = PackedRow(
        input_ids=row["input_ids"][0].numpy(),
        labels=row["labels"][0].numpy(),
        weights=row["loss_weights"][0].numpy(),
        position_ids=places.numpy(),
        cu_seqlens=row["cu_seqlens"].numpy(),
        pixels=None,
        ids=["a", "b", "c"],
    )
    return packed, row["pixel_values"]


@pytest.mark.parametrize(
    ("backend", "positions", "recomputed"),
    [
        ("sdpa", "plain", False),
        ("varlen", "v2pe", True),
        ("varlen", "plain", False),
        ("flash_attention_2", "v2pe", False),
    ],
)
def test_a_row_of_training_waits_twice_whatever_its_depth(
    backend, positions, recomputed, pair, device, waits, hold, monkeypatch
):
    """For its images (do they fit the placeholders?) and for the number of its labels."""
    monkeypatch.setattr(local, "flash_kernel", lambda *_: flash_stand_in)
    for depth in (1, 3):
        here, there = pair(depth=depth)
        there.train().set_gradient_checkpointing(recomputed)
        there.set_attention(backend)
        packed, pixels = training_row(here, positions)
        with waits() as count:
            batch = to_tensors(packed, None, torch.device(device))
            batch["pixel_values"] = pixels.to(device, non_blocking=True)
            there(**batch, logits=False).loss.backward()
        hold(count, read=1, size=1)


def test_a_row_of_text_waits_no_more(pair, device, waits, hold):
    _, there = pair()
    ids = torch.arange(10, 40)[None].to(device)
    borders = torch.tensor([0, 12, 30], dtype=torch.int32)
    there.train()
    with waits() as count:
        there(ids, labels=ids, cu_seqlens=borders, logits=False).loss.backward()
    hold(count, read=1, size=1)


def per_token(model, inputs, waits, **settings):
    """The waits of one more new token."""
    counts = []
    for n in (4, 9):
        with waits() as count:
            assert model.generate(**inputs, max_new_tokens=n, **settings).shape[1] == n
        counts.append(count)
    more = {kind: counts[1][kind] - counts[0][kind] for kind in counts[1]}
    assert all(n % 5 == 0 for n in more.values()), more
    return type(counts[0])({kind: n // 5 for kind, n in more.items()})


@pytest.mark.parametrize("backend", ["sdpa", "varlen"])
def test_a_greedy_token_waits_once(backend, pair, device, waits, hold):
    """Whether to stop; that the logits are finite is asked in the same breath."""
    here, there = pair()
    there.set_attention(backend)
    for inputs in (one_row(here), one_row(here, positions="plain")):
        del inputs["labels"]
        inputs = {k: v for k, v in inputs.items() if v is not None}
        hold(per_token(there, moved(inputs, device), waits), read=1)


def test_a_token_of_a_padded_batch_waits_once_too(pair, device, waits, hold):
    here, there = pair()
    inputs = {k: v for k, v in padded_rows(here).items() if k != "labels"}
    hold(per_token(there, moved(inputs, device), waits), read=1)


def test_a_drawn_token_waits_twice_because_no_token_is_drawn_from_what_is_not_finite(pair, device, waits, hold):
    here, there = pair()
    inputs = {k: v for k, v in one_row(here).items() if k != "labels"}
    hold(per_token(there, moved(inputs, device), waits, do_sample=True, seed=1), read=2)


@pytest.mark.parametrize("replies", [1, 3])
def test_a_step_of_the_engine_waits_once_for_all_its_replies(replies, folder, device, waits, hold, kind):
    chat = ChatSession(folder, device=device)
    prompts = [
        chat.processor.encode([user_turn(f"What is it, {i}?", [], [], chat.processor.template)]) for i in range(replies)
    ]
    engine = ChatEngine(chat.model, chat.processor, Limits())
    engine.close()  # its thread: the steps are run here
    texts: list[str] = []
    with torch.inference_mode():
        for prompt in prompts:
            how = Sampling(max_new_tokens=50)
            engine.waiting.append(GenerationRequest(prompt, how, lambda event: texts.append(event.text)))
        engine._step()  # reads the prompts
        for _ in range(3):
            with waits() as count:
                engine._step()
            assert len(engine.running) == replies, "a reply ended: the test needs another prompt"
            hold(count, read=1)


@pytest.mark.parametrize(
    ("queries", "padded", "expected"), [(1, False, {}), (9, False, {}), (9, True, {"size": 1}), (1, True, {"size": 2})]
)
def test_a_layer_of_flash_attention_asks_only_where_tokens_are(
    queries, padded, expected, device, waits, hold, monkeypatch
):
    q, k = (torch.ones(2, 4, n, 8, device=device) for n in (queries, 9))
    mask = torch.tensor([[True] * 9, [False] * 3 + [True] * 6], device=device) if padded else None
    seen = []

    def kernel(q, k, v, borders_q, borders_k, longest_q, longest_k, **_):
        seen.append((borders_q, borders_k, longest_q, longest_k))
        return q

    monkeypatch.setattr(local, "flash_kernel", lambda *_: kernel)
    with waits() as count:
        local.LOCAL["flash_attention_2"].attend(q, k, k, mask, None, None)
    hold(count, **expected)
    borders_q, borders_k, *longest = seen[0]
    assert borders_k.tolist() == [0, 9, 15 if padded else 18] and longest == [queries, 9]
    assert borders_q.tolist() == ([0, 1, 2] if queries == 1 else borders_k.tolist())
