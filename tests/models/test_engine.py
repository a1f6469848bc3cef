"""The engine: a crowd is answered as each alone, prefixes are shared, limits hold, and nothing waits for ever."""

import random
import threading
import time

import pytest
import torch

from vlm.core.errors import ConfigError, VlmError
from vlm.models.answers import answer
from vlm.models.engine import Busy, ChatEngine, ContextOverflow, Event, GenerationRequest, Limits, Sampling
from vlm.models.engine.sampling import ReplyText
from vlm.models.engine.turns import WRITTEN
from vlm.models.session import ChatSession, user_turn


class Listener:
    """Collects the events of one request."""

    def __init__(self):
        self.events: list[Event] = []
        self.finished = threading.Event()

    def __call__(self, event):
        self.events.append(event)
        if event.ended:
            self.finished.set()

    @property
    def text(self):
        return "".join(e.text for e in self.events)

    @property
    def ids(self):
        return [t.id for e in self.events for t in e.tokens]

    def wait(self):
        assert self.finished.wait(60)
        return self.events[-1].ended


@pytest.fixture
def chat(preset, checkpoint):
    return ChatSession(checkpoint(preset))


@pytest.fixture
def prompts(chat, picture):
    """Eight conversations: text, one and several pictures, several lengths, V2PE and plain positions."""

    def make(n=8, strides=("model", None, 0.5)):
        result = []
        for i in range(n):
            pictures = [picture(size=(30 + 20 * j, 40), color=(40 * j, 200, 9 * i)) for j in range(i % 3)]
            turn = user_turn("What is it? " * (1 + i * 3), pictures, [], chat.processor.template)
            result.append(chat.processor.encode([turn], strides=strides[i % len(strides)], id=str(i)))
        return result

    return make


def submit(engine, prompt, **settings):
    listener = Listener()
    deadline = settings.pop("deadline", None)
    request = GenerationRequest(prompt, Sampling(**settings), listener, deadline)
    engine.submit(request)
    return request, listener


@pytest.mark.parametrize("limits", [Limits(), Limits(running=3, step_tokens=7, step_tiles=1)])
def test_a_crowd_gets_the_answers_that_each_alone_gets(chat, prompts, limits):
    """Prompts are read whole, or in pieces that cut images, beside replies that are being written."""
    batch = prompts()
    alone = [answer(chat.model, chat.processor, [p], max_new_tokens=9)[0].text for p in batch]
    with ChatEngine(chat.model, chat.processor, limits) as engine:
        running = [submit(engine, p, max_new_tokens=9) for p in batch]
        assert {listener.wait() for _, listener in running} <= {"stop", "length"}
        assert [listener.text for _, listener in running] == alone
    assert len(set(alone)) > 4  # the prompts do matter


def test_draws_are_those_of_generate_with_the_same_seed(chat, prompts):
    (prompt,) = prompts(1)
    settings = {"max_new_tokens": 12, "temperature": 0.9, "top_p": 0.8, "top_k": 20, "seed": 5}
    wanted = answer(chat.model, chat.processor, [prompt], do_sample=True, **settings)[0].text
    with ChatEngine(chat.model, chat.processor) as engine:
        crowd = [submit(engine, p, max_new_tokens=12) for p in prompts(4)]
        _, listener = submit(engine, prompt, **settings)
        listener.wait()
        assert listener.text == wanted
        assert engine.ask(prompt, Sampling(**{**settings, "seed": 6})).text != wanted
        assert all(other.wait() for _, other in crowd)


def test_a_document_is_read_once(chat, prompts):
    """The second question, and the next turn of a conversation, continue from what is cached; answers stay the same."""
    for prompt in prompts(3):
        with ChatEngine(chat.model, chat.processor) as engine:
            first, listener = submit(engine, prompt, max_new_tokens=6)
            listener.wait()
            again, second = submit(engine, prompt, max_new_tokens=6)
            second.wait()
            assert first.cached_tokens == 0 and again.cached_tokens == len(prompt) - 1
            assert second.text == listener.text
            assert engine.counts["tiles"] == len({t.tobytes() for t in prompt.pixels}) if prompt.n_tiles else True


def test_another_picture_or_position_is_another_document(chat, picture):
    def prompt(color, strides):
        turn = user_turn("What is it?", [picture(color=color)], [], chat.processor.template)
        return chat.processor.encode([turn], strides=strides)

    prompts = [prompt((255, 0, 0), 1.0), prompt((0, 255, 0), 1.0), prompt((255, 0, 0), 0.5), prompt((255, 0, 0), None)]
    alone = [answer(chat.model, chat.processor, [p], max_new_tokens=8)[0].text for p in prompts]
    with ChatEngine(chat.model, chat.processor) as engine:
        assert [engine.ask(p, Sampling(max_new_tokens=8)).text for p in prompts] == alone


def test_the_prefix_cache_is_bounded(chat, prompts):
    (prompt, *others) = prompts(6)
    with ChatEngine(chat.model, chat.processor, Limits(prefix_bytes=1)) as engine:
        engine.ask(prompt, Sampling(max_new_tokens=2))
        assert engine.prefixes.nbytes == 0
    room = 400_000
    with ChatEngine(chat.model, chat.processor, Limits(prefix_bytes=room)) as engine:
        for p in (prompt, *others):
            engine.ask(p, Sampling(max_new_tokens=2))
        assert 0 < engine.prefixes.nbytes <= room


def test_a_short_request_does_not_wait_for_a_long_one(chat):
    """Ten thousand tokens are read in pieces; a question that comes meanwhile is answered long before they are."""
    long_turn = user_turn("word " * 3000, [], [], chat.processor.template)
    long = chat.processor.encode([long_turn], strides=None)
    short = chat.processor.encode([user_turn("hi", [], [], chat.processor.template)], strides=None)
    with ChatEngine(chat.model, chat.processor, Limits(step_tokens=64)) as engine:
        _, slow = submit(engine, long, max_new_tokens=1)
        while not engine.running:
            time.sleep(0.001)
        _, fast = submit(engine, short, max_new_tokens=4)
        fast.wait()
        assert not slow.finished.is_set()
        slow.wait()


def note_steps(engine, monkeypatch, at_layer=None):
    """A list that grows by each finished forward pass: tokens by request; `at_layer(number)` runs within a pass."""
    steps, forward = [], engine._forward

    def noted(pack, plain):
        tokens = {r.request: count for r, count in pack}
        if finished := forward(pack, plain):
            steps.append(tokens)
        return finished

    monkeypatch.setattr(engine, "_forward", noted)
    if at_layer is not None:
        inside = engine.model.language_model.model.layers[0]
        inside.register_forward_pre_hook(lambda *_: at_layer(len(steps)))
    return steps


def text_prompt(chat, words, strides=None):
    return chat.processor.encode([user_turn("word " * words, [], [], chat.processor.template)], strides=strides)


@pytest.mark.parametrize("strides", [None, "model"])
def test_a_short_request_beside_a_long_one_waits_for_none_of_its_work(chat, monkeypatch, strides):
    """Counted in tokens: it comes in the middle of a step that reads a piece of the long prompt."""
    long, short = text_prompt(chat, 1500), text_prompt(chat, 1, strides)
    alone = [answer(chat.model, chat.processor, [p], max_new_tokens=8)[0].text for p in (long, short)]
    came = []

    def come(number):
        if number == 3 and not came:
            came.extend([len(steps), *submit(engine, short, max_new_tokens=8)])

    with ChatEngine(chat.model, chat.processor) as engine:
        steps = note_steps(engine, monkeypatch, come)
        slow, reading = submit(engine, long, max_new_tokens=8)
        reading.wait()
    at, fast, writing = came
    last = max(number for number, tokens in enumerate(steps) if fast in tokens)
    beside = sum(tokens.get(slow, 0) for tokens in steps[at : last + 1])
    assert beside == 0
    assert [reading.text, writing.text] == alone
    assert sum(tokens.get(slow, 0) for tokens in steps) >= len(long)  # the step that was given up was taken again


def test_a_long_prompt_gets_half_of_the_work_while_short_ones_keep_coming(chat, monkeypatch):
    long, short = text_prompt(chat, 700), text_prompt(chat, 1)
    with ChatEngine(chat.model, chat.processor) as engine:
        listeners = []

        def come(number):
            if not slow[0].new_tokens and (not listeners or listeners[-1].finished.is_set()):
                listeners.append(submit(engine, short, max_new_tokens=6)[1])

        slow = [GenerationRequest(long, Sampling(max_new_tokens=2), reading := Listener())]
        steps = note_steps(engine, monkeypatch, come)
        engine.submit(slow[0])
        reading.wait()
    read = [tokens.get(slow[0], 0) for tokens in steps]
    first = next(number for number, count in enumerate(read) if count)
    others = sum(WRITTEN for tokens, count in zip(steps, read, strict=True) if not count)
    assert first <= 2 + 4 * 128 // WRITTEN
    assert len(listeners) > 5 and 0.3 < others / (others + len(long)) < 0.6


def test_prompts_of_one_length_are_read_together_with_the_replies_of_the_first(chat, monkeypatch):
    """Nobody is held back in a crowd of equals: each step reads a whole piece until all prompts are read."""
    prompts = [text_prompt(chat, 100) for _ in range(6)]
    with ChatEngine(chat.model, chat.processor, Limits(prefix_bytes=0)) as engine:
        steps = note_steps(engine, monkeypatch)
        with engine._news:  # all are there before the first step
            crowd = [submit(engine, p, max_new_tokens=5) for p in prompts]
        assert all(listener.wait() for _, listener in crowd)
    total = sum(len(p) for p in prompts)
    reading = [step for step in steps if sum(step.values()) > len(crowd)]
    assert len(reading) <= -(-total // 128) + 1
    assert any(1 in step.values() for step in reading)  # the first write while the others are read


def test_a_cancelled_or_late_request_ends_and_leaves_its_place(chat, prompts):
    batch = prompts(3)
    with ChatEngine(chat.model, chat.processor, Limits(running=1)) as engine:
        request, endless = submit(engine, batch[0], max_new_tokens=100_000)
        _, late = submit(engine, batch[1], max_new_tokens=5, deadline=time.monotonic())
        _, next_ = submit(engine, batch[2], max_new_tokens=5)
        assert late.wait() == "timeout"
        engine.cancel(request)
        assert endless.wait() in ("cancelled", "stop") and next_.wait() in ("stop", "length")


def test_the_queue_and_the_context_are_limited(chat, prompts):
    batch = prompts(4)
    with ChatEngine(chat.model, chat.processor, Limits(running=1, queue=1, context=500)) as engine:
        with pytest.raises(ContextOverflow, match=f"{len(batch[0])} tokens of prompt and 500 of reply"):
            submit(engine, batch[0], max_new_tokens=500)
        request, _ = submit(engine, batch[0], max_new_tokens=300)
        while not engine.running:
            time.sleep(0.001)
        submit(engine, batch[1], max_new_tokens=1)
        with pytest.raises(Busy, match="1 requests are waiting"):
            submit(engine, batch[2], max_new_tokens=1)
        engine.cancel(request)


def test_requests_that_can_start_at_once_do_not_count_as_waiting(chat, prompts):
    """A request for several replies, or a crowd on an idle server."""
    batch = prompts(6)
    with ChatEngine(chat.model, chat.processor, Limits(running=4, queue=1)) as engine:
        with engine._news:  # the engine takes none of them meanwhile
            listeners = [submit(engine, prompt, max_new_tokens=1)[1] for prompt in batch[:5]]
            with pytest.raises(Busy, match="5 requests are waiting"):
                submit(engine, batch[5], max_new_tokens=1)
        assert all(listener.wait() in ("stop", "length") for listener in listeners)


def test_closing_finishes_what_is_there_or_cancels_it(chat, prompts):
    batch = prompts(2)
    engine = ChatEngine(chat.model, chat.processor)
    _, listener = submit(engine, batch[0], max_new_tokens=8)
    engine.close()
    assert listener.events[-1].ended in ("stop", "length")
    with pytest.raises(Busy):
        submit(engine, batch[0])
    engine = ChatEngine(chat.model, chat.processor)
    _, listener = submit(engine, batch[0], max_new_tokens=10**6)
    engine.close(wait=0.1)
    assert listener.events[-1].ended in ("cancelled", "stop")


def test_logits_that_are_no_numbers_are_an_error(chat, prompts):
    (prompt,) = prompts(1)
    with torch.no_grad():
        chat.model.language_model.lm_head.weight[3] = float("nan")
    with ChatEngine(chat.model, chat.processor) as engine, pytest.raises(VlmError, match="not finite"):
        engine.ask(prompt, Sampling())


def test_an_unexpected_error_ends_its_requests_and_not_the_engine(chat, prompts, monkeypatch):
    (prompt,) = prompts(1)
    with ChatEngine(chat.model, chat.processor) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(engine.model.language_model.lm_head, "forward", None)
            with pytest.raises(VlmError, match="TypeError"):
                engine.ask(prompt, Sampling(max_new_tokens=3))
        assert engine.ask(prompt, Sampling(max_new_tokens=3)).n_new


def test_log_probabilities_are_those_of_the_logits(chat, prompts):
    (prompt,) = prompts(1)
    with ChatEngine(chat.model, chat.processor) as engine:
        _, listener = submit(engine, prompt, max_new_tokens=3, logprobs=4)
        listener.wait()
    ids = torch.from_numpy(prompt.input_ids)[None]
    positions = torch.from_numpy(prompt.position_ids)[None]
    positions = positions if prompt.strides is not None else positions.long()
    with torch.no_grad():
        wanted = chat.model(ids, position_ids=positions).logits[0, -1].log_softmax(-1)
    token = listener.events[0].tokens[0]
    assert token.logprob == pytest.approx(wanted.max().item(), abs=1e-4)
    assert [p for _, p in token.top] == pytest.approx(wanted.topk(4).values.tolist(), abs=1e-4)
    assert len(listener.ids) <= 3 and all(len(t.top) == 4 for e in listener.events for t in e.tokens)


@pytest.mark.parametrize(
    "settings",
    [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"logprobs": 21}, {"stop": ("",)}],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        Sampling(**settings)


def test_a_stop_text_ends_the_reply_and_is_never_shown_in_part(chat):
    """The pieces join to the text before the first stop text, wherever the borders of the tokens are."""
    tokenizer = chat.processor.tokenizer
    rng = random.Random(0)
    for _ in range(50):
        words = "".join(rng.choice(["ab", "a", "b", "ba ", "end", "語"]) for _ in range(12))
        ids = tokenizer.encode(words)
        whole = tokenizer.decode(ids).strip()
        stop = ("abb", "en", "ba b")
        text = ReplyText(chat.processor, stop)
        shown = ""
        for i, token in enumerate(ids):
            shown += text.add(token, last=i == len(ids) - 1)
            if text.stopped:
                break
        ends = [whole.find(s) for s in stop if s in whole]
        assert shown == (whole[: min(ends)] if ends else whole)
