"""Answers on a device: generation in all its forms, chat, the serving engine, evaluation, teacher forcing."""

import sys
import threading

import pytest
import torch

from support.rehearsed_rows import moved
from support.tiny_models import TOKENIZERS, random_ids, random_tiles
from vlm.cli.main import main
from vlm.core.errors import CheckpointError
from vlm.eval.backends.native import Checkpoint, NativeBackend
from vlm.eval.backends.teacher_forcing import TeacherForcedBackend
from vlm.eval.benchmark import load_benchmark
from vlm.eval.mini import make_mini
from vlm.eval.run.runner import Options, run_evaluation
from vlm.models.answers import answer
from vlm.models.attention import KVStorage
from vlm.models.engine import ChatEngine, GenerationRequest, Limits, Sampling
from vlm.models.generation.drawing import RowDraws
from vlm.models.session import ChatSession, user_turn


def prompts(model):
    """A prompt with an image in the middle, and V2PE positions."""
    ids = random_ids(model, 6, "image", 5)
    return ids, {"pixel_values": random_tiles(model, 1), "position_ids": torch.arange(ids.shape[1])[None] * 0.5}


SETTINGS = [
    ("tiny-internvl2", {"prefill_chunk": 4, "image_chunk": 1}),
    ("tiny-internvl2", {"num_beams": 2}),
    ("tiny-internvl2", {"do_sample": True, "temperature": 2.0, "num_return_sequences": 2, "seed": 3}),
    ("tiny-internvl2", {"min_new_tokens": 4, "eos_token_id": [5, 6]}),
    *((name, {}) for name in TOKENIZERS),
]


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_generation(name, settings, pair, device):
    here, there = pair(name)
    ids, inputs = prompts(here)
    wanted = here.generate(ids, **inputs, max_new_tokens=5, **settings)
    found = there.generate(ids.to(device), **moved(inputs, device), max_new_tokens=5, **settings)
    assert found.device == torch.device(device)
    if "seed" not in settings or "cuda" not in device:  # a GPU draws other numbers
        assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("positions", ["v2pe", "plain"])
def test_a_prefix_for_several_questions(positions, pair, device):
    here, there = pair()
    document, questions = random_ids(here, 5, "image"), random_ids(here, 4, seed=2).repeat(2, 1)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    places = torch.arange(document.shape[1])[None] * (0.5 if positions == "v2pe" else 1)
    found = []
    for model, where in ((here, "cpu"), (there, device)):
        given = moved({"pixel_values": random_tiles(here, 1), "position_ids": places}, where)
        prefix = model.prefill(document.to(where), **given, chunk=3)
        new = model.generate(questions.to(where), prefix=prefix, attention_mask=mask.to(where), max_new_tokens=4)
        whole = torch.cat([document, questions[:1]], dim=1)
        after = prefix.positions_after(questions[:1].to(where), mask[:1].to(where))
        ids, positions_ = prefix.rest(whole.to(where), torch.cat([places.to(where), after.to(where)], dim=1))
        again = model.generate(ids, prefix=prefix, position_ids=positions_, max_new_tokens=4)
        found.append((new.tolist(), again.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_keys_and_values_that_wait_on_the_cpu(dtype, folder, pair, device, picture):
    """Several blocks of them, a prefix, beams, and the serving engine."""
    here, there = pair()
    here.kv_storage, there.kv_storage = KVStorage(dtype), KVStorage(dtype, offload=True)
    ids = random_ids(here, 1200, "image", 5)
    found = []
    for model, where in ((here, "cpu"), (there, device)):
        pixels = random_tiles(here, 1).to(where)
        new = model.generate(ids.to(where), pixel_values=pixels, max_new_tokens=4, prefill_chunk=300)
        prefix = model.prefill(ids[:, :1100].to(where), chunk=500)
        behind = model.generate(ids[:, 1100:1150].to(where).repeat(2, 1), prefix=prefix, max_new_tokens=3, num_beams=2)
        found.append((new.tolist(), behind.tolist()))
    assert found[0] == found[1]
    assert {part.device.type for kept in prefix.states[0] for block in kept.blocks for part in block} == {"cpu"}
    said = []
    for settings in ({}, {"device": device, "kv_offload": True}):
        chat = ChatSession(folder, kv_dtype=dtype, **settings)
        with ChatEngine(chat.model, chat.processor) as engine:
            said.append([engine.ask(one, Sampling(max_new_tokens=4)) for one in encoded(chat, picture)])
    assert said[0] == said[1]


def test_the_command_keeps_keys_and_values_on_the_cpu(folder, device, picture, capsys, monkeypatch):
    said = []
    for where in (["cpu"], [device, "--kv-offload"]):
        words = ["chat", str(picture()), "What is it?", "-m", str(folder), "--max-new-tokens", "6", "--device", *where]
        monkeypatch.setattr(sys, "argv", ["vlm", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and said[0].strip()


def test_logits_that_are_not_finite_are_found_there_too(pair, device):
    _, there = pair()
    with torch.no_grad():
        there.language_model.lm_head.weight[3] = torch.nan
    with pytest.raises(CheckpointError, match="not finite"):
        there.generate(random_ids(there, 4).to(device), max_new_tokens=3)


@pytest.fixture
def chats(folder, device):
    """The same chat on the CPU and on the device."""
    return ChatSession(folder), ChatSession(folder, device=device)


def encoded(chat, picture):
    """Six prompts: with and without pictures, short and long, both kinds of positions."""
    made = []
    for i in range(6):
        pictures = [picture(j) for j in range(i % 3)]
        turn = user_turn("What is it? " * (1 + 2 * i), pictures, [], chat.processor.template)
        made.append(chat.processor.encode([turn], strides=(None, 0.5)[i % 2], id=str(i)))
    return made


def test_chat_in_rounds_streamed_and_in_batches(chats, picture):
    said = []
    for chat in chats:
        first = chat.ask("What is this?", images=[picture(1)], max_new_tokens=6)
        pieces = list(chat.stream("And now?", images=[picture(2)], max_new_tokens=6))
        beams = chat.ask("Again?", num_beams=2, max_new_tokens=4)
        batch = chat.ask_batch(["One?", "And two, in many more words?"], images=[[picture(0)], []], max_new_tokens=5)
        said.append((first, pieces, beams, batch))
    assert said[0] == said[1] and any(said[0][0])


def test_batches_with_drawn_tokens_and_shared_documents(chats, picture, device):
    for draws in (None, {"temperature": 1.5, "top_p": 0.9, "seed": 4}):
        if draws and "cuda" in device:  # a GPU draws other numbers
            continue
        found = []
        for chat in chats:
            batch = encoded(chat, picture)
            given = RowDraws(batch, **draws) if draws else None
            found.append(answer(chat.model, chat.processor, batch, max_new_tokens=5, draws=given))
        assert found[0] == found[1]
    story, shared = f"A long {'story ' * 30}", []
    for chat in chats:
        turns = [user_turn(f"{story}: {q}?", [picture(1)], [], chat.processor.template) for q in ("who", "why")]
        batch = [chat.processor.encode([turn]) for turn in turns]
        shared.append(answer(chat.model, chat.processor, batch, max_new_tokens=5))
    assert shared[0] == shared[1]


def test_the_serving_engine(chats, picture):
    """Crowded steps, prompts in pieces, prefixes and tiles that are known, log-probabilities, drawn tokens."""
    found = []
    for chat in chats:
        limits = Limits(running=4, step_tokens=8, step_tiles=1)
        with ChatEngine(chat.model, chat.processor, limits) as engine:
            batch = encoded(chat, picture)
            done, events = [threading.Event() for _ in batch], [[] for _ in batch]

            def listen(i, done=done, events=events):
                def take(event):
                    events[i].append(event)
                    if event.ended:
                        done[i].set()

                return take

            for i, one in enumerate(batch):
                how = Sampling(
                    max_new_tokens=5,
                    temperature=1.2 if i == 4 else 0,
                    seed=7,
                    logprobs=2 if i == 1 else None,
                    min_new_tokens=2,
                )
                engine.submit(GenerationRequest(one, how, listen(i)))
            assert all(flag.wait(60) for flag in done)
            assert not [e.error for heard in events for e in heard if e.error]
            replies = [[t.id for e in heard for t in e.tokens] for heard in events]
            again = engine.ask(batch[5], Sampling(max_new_tokens=5, min_new_tokens=2))
            found.append((replies, again, engine.counts["steps"] > 0))
    assert found[0] == found[1]


def test_an_evaluation(folder, device, tmp_path):
    benchmark, data = load_benchmark("pope"), make_mini("POPE", tmp_path / "pope", n=2)
    for where in ("cpu", device):
        backend = NativeBackend(Checkpoint(folder, device=where), stride=16)
        run_evaluation(
            benchmark, backend, tmp_path / where, Options(batch_size=3, stride=16, limit=4, max_new_tokens=4), data=data
        )
    found, wanted = ((tmp_path / where / "results.jsonl").read_bytes() for where in (device, "cpu"))
    assert found == wanted and b'"kind": "error"' not in found


def test_teacher_forcing(folder, device, picture):
    results = []
    for where in ("cpu", device):
        backend = TeacherForcedBackend(Checkpoint(folder, device=where), stride=16)
        question = user_turn("What is it?", [picture(1)], [], backend.processor.template)
        reply = {"role": "assistant", "content": [{"type": "text", "text": "A grey cat on a mat."}]}
        results.append(backend.answer([backend.encode("1", [question, reply])], max_new_tokens=1, min_new_tokens=1))
    assert results[0] == results[1] and results[0][0].n_new > 5
