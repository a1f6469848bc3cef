"""Draws of a row do not depend on its batch, and follow from seed, prompt and pictures alone."""

import pytest

from vlm.core.errors import ConfigError
from vlm.models.answers import answer
from vlm.models.generation.drawing import RowDraws
from vlm.models.session import ChatSession


@pytest.fixture(scope="module")
def chat(checkpoint) -> ChatSession:
    return ChatSession(checkpoint("tiny-internvl2"))


def replies(chat: ChatSession, prompts: list, **settings) -> list[str]:
    draws = RowDraws(prompts, **{"temperature": 1.0, "seed": 1, **settings})
    return [reply.text for reply in answer(chat.model, chat.processor, prompts, max_new_tokens=8, draws=draws)]


def prompts_of(chat: ChatSession, pictures: list, strides: object = None) -> list:
    questions = ["What is it?", "How many are there in the picture, and why?", "Who?"]
    messages = [chat.messages(q, images=p) for q, p in zip(questions, pictures, strict=True)]
    return [chat.processor.encode(message, strides=strides) for message in messages]


def test_a_reply_is_the_same_alone_and_in_every_batch(chat, picture) -> None:
    prompts = prompts_of(chat, [[picture()], [picture()], []])
    alone = [replies(chat, [prompt])[0] for prompt in prompts]
    assert replies(chat, prompts) == alone and replies(chat, prompts[::-1]) == alone[::-1]
    assert len(set(alone)) == 3


def test_plain_and_v2pe_prompts_of_one_batch_keep_their_draws(chat, picture) -> None:
    plain, spread = prompts_of(chat, [[picture()], [], []]), prompts_of(chat, [[picture()], [], []], strides=64)
    mixed = [spread[0], plain[1], spread[1], plain[0]]
    assert replies(chat, mixed) == [replies(chat, [prompt])[0] for prompt in mixed]


def test_seed_temperature_and_top_p_change_the_reply_and_nothing_else_does(chat) -> None:
    prompt = prompts_of(chat, [[], [], []])[:1]
    usual = replies(chat, prompt)
    assert usual == replies(chat, prompt) != replies(chat, prompt, seed=2)
    greedy = [reply.text for reply in answer(chat.model, chat.processor, prompt, max_new_tokens=8)]
    assert replies(chat, prompt, temperature=1e-4) == greedy == replies(chat, prompt, top_p=1e-6)
    assert usual != greedy


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"temperature": -1}, {"temperature": float("inf")}, {"top_p": 2}]
)
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError):
        RowDraws([], **{"temperature": 1.0, **settings})
