"""Batches: documents whole, lengths alike, nothing too heavy; and no answer depends on who shares the batch."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import fake_backend as fake
from vlm.core.sample.records import image, text
from vlm.eval.loaders import Item
from vlm.eval.run.batches import SHARED_TOKENS, in_batches
from vlm.eval.run.plan import Task, documents
from vlm.eval.run.runner import _share
from vlm.eval.run.shards import batches

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"
PICTURE = 1000.0


class Backend(fake.FakeBackend):
    """A letter costs a token, a picture a thousand."""

    def cost(self, messages):
        parts = [part for message in messages for part in message["content"]]
        return sum(float(len(part["text"])) if part["type"] == "text" else PICTURE for part in parts)


def task(number, *parts, new=8):
    messages = [{"role": "user", "content": list(parts)}]
    limits = {"max_new_tokens": new, "min_new_tokens": 1}
    return Task(Item(str(number), messages, None, ""), str(number), Backend().cost(messages), limits)


def groups(tasks):
    return sorted(document.tasks for document in documents(tasks, Backend()))


def test_questions_on_one_picture_or_one_long_text_are_one_document():
    story = "Once upon a time. " * 50
    tasks = [
        task(0, image("/a"), text("\nWhat?")),
        task(1, text(story + "Who was it?")),
        task(2, image("/b"), text("\nWhat?")),
        task(3, image("/a"), text("\nWhere is the cat?")),
        task(4, text(story + "When?")),
        task(5, image("/a"), text("\nWhat?"), new=99),  # another budget of new tokens: another batch
    ]
    assert groups(tasks) == [[0, 3], [1, 4], [2], [5]]
    found = {tuple(document.tasks): document for document in documents(tasks, Backend())}
    assert found[0, 3].shared == PICTURE + 3  # "\nWh"
    assert found[0, 3].cost == tasks[0].cost + tasks[3].cost - found[0, 3].shared
    assert found[2,].shared == 0 and found[2,].cost == tasks[2].cost


def test_what_is_common_must_be_half_of_the_longest_for_all_of_the_group():
    short = task(0, image("/a"), text("x" * 100))
    middle = task(1, image("/a"), text("y" * 900))
    long = task(2, image("/a"), text("z" * 1100))
    assert groups([short, middle]) == [[0, 1]]
    assert groups([short, middle, long]) == [[0, 1], [2]]


def test_a_document_fills_its_own_batches_and_is_cut_only_when_it_is_larger():
    tasks = [task(i, image(f"/{i % 3}"), text(f"\nQuestion {i}?")) for i in range(12)]  # four on each of three
    tasks += [task(i, image(f"/{i}"), text("\nWhat?")) for i in range(12, 17)]
    order = in_batches(tasks, documents(tasks, Backend()), 4, max_tokens=4500)
    pictures = [[t.media[0] for t in batch] for batch in order]
    assert sorted(p for p in pictures if len(set(p)) == 1 and len(p) > 1) == [["/0"] * 4, ["/1"] * 4, ["/2"] * 4]
    assert sorted(map(len, order)) == [1, 4, 4, 4, 4]
    assert sorted(t.key for batch in order for t in batch) == sorted(t.key for t in tasks)
    smaller = in_batches(tasks[:12], documents(tasks[:12], Backend()), 3)
    assert [len({t.media[0] for t in batch}) for batch in smaller] == [1] * 6


@pytest.mark.parametrize("length", [SHARED_TOKENS - 1, SHARED_TOKENS])
def test_a_document_of_few_tokens_fills_batches_with_others(length):
    tasks = [task(i, text("ab"[i // 2] * length), text(str(i))) for i in range(4)]  # two on each of two
    found = documents(tasks, Backend())
    assert [document.tasks for document in found] == [[0, 1], [2, 3]], "shards still hold it whole"
    order = in_batches(tasks, found, 4)
    assert [[int(t.key) for t in batch] for batch in order] == (
        [[0, 1, 2, 3]] if length < SHARED_TOKENS else [[0, 1], [2, 3]]
    )


@settings(deadline=None)  # a busy machine must not decide
@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 5)), min_size=1, max_size=60), st.integers(1, 9))
def test_any_items_are_batched_once_dearest_first_within_the_budget(items, size):
    costs, shared = [cost for cost, _ in items], [key or None for _, key in items]
    result = batches(costs, shared, size, max_tokens=4000)
    assert sorted(i for batch in result for i in batch) == list(range(len(items)))
    assert [max(costs[i] for i in b) for b in result] == sorted(
        (max(costs[i] for i in b) for b in result), reverse=True
    )
    for batch in result:
        single = [i for i in batch if shared[i] is None or shared.count(shared[i]) == 1]
        assert single in ([], batch), "a document shares no batch with others"
        assert not single or len(batch) == 1 or len(batch) * max(costs[i] for i in batch) <= 4000
        assert single or len({shared[i] for i in batch}) == 1


def test_shards_keep_documents_whole_and_do_not_depend_on_who_asks():
    tasks = [task(i, image(f"/{i % 7}"), text(f"\nQuestion {i}?" + "x" * (i * 37 % 200))) for i in range(40)]
    for n in (1, 2, 3, 8):
        shares = [_share(tasks, Backend(), shard, n) for shard in range(n)]
        assert sorted(t.key for share in shares for t in share) == sorted(t.key for t in tasks)
        for share in shares if n > 1 else []:
            assert [t.key for t in share] == [t.key for t in _share(tasks, Backend(), shares.index(share), n)]
        owners = {t.media[0]: {k for k, share in enumerate(shares) if t in share} for t in tasks}
        assert all(len(owner) == 1 for owner in owners.values())


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A tiny model and encoded questions: several on one picture, of very unequal lengths, and without a picture."""
    from vlm.eval.backends.native import Checkpoint, NativeBackend
    from vlm.eval.mini.draw import save, shapes
    from vlm.models.checkpoint.assemble import build
    from vlm.models.checkpoint.load import save_model
    from vlm.models.specs import load_preset

    home = tmp_path_factory.mktemp("composition")
    model = build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=0)
    save_model(model, home / "weights", tokenizer=TOKENIZER)
    backend = NativeBackend(Checkpoint(home / "weights", device="cpu"), stride=16)
    questions = []
    for n, thing in enumerate([("red", "circle"), ("blue", "square"), ("green", "triangle")]):
        save(shapes([thing]), home / f"{n}.png")
        questions += [[image(home / f"{n}.png"), text(f"\n{words}?")] for words in ("What", "Where is it " * 9, "Why")]
    questions += [[text("How many?")], [text("word " * 300 + "?")]]
    return backend, [backend.encode(str(i), [{"role": "user", "content": q}]) for i, q in enumerate(questions)]


def test_answers_do_not_depend_on_the_composition_of_batches(encoded):
    backend, samples = encoded

    def answers(order):
        found = {}
        for batch in order:
            replies = backend.answer([samples[i] for i in batch], max_new_tokens=12, min_new_tokens=1)
            found |= {i: (reply.text, reply.finished) for i, reply in zip(batch, replies, strict=True)}
        return [found[i] for i in range(len(samples))]

    n = len(samples)
    alone = answers([[i] for i in range(n)])
    assert len({text for text, _ in alone}) >= 4
    assert answers([list(range(n))]) == alone
    assert answers([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]) == alone  # documents together: their pictures once
    rng = random.Random(3)
    for _ in range(3):
        mixed = rng.sample(range(n), n)
        assert answers([mixed[:4], mixed[4:9], mixed[9:]]) == alone
