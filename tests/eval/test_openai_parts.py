"""What the OpenAI-compatible backend leaves to the server: newlines after images, the least length, the model."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support import openai_server as fake
from vlm.core.errors import ConfigError, UnknownName
from vlm.core.sample.records import image, text
from vlm.eval.backends.openai import OpenAIBackend, ServerDown

chat, server, Server = fake.chat, fake.server, fake.Server

IMG = "IMAGE"
SENT = [
    # content -> what is sent where the template writes a newline after images at the front, after each, after none
    ([IMG, "\nQ"], [IMG, "Q"], [IMG, "Q"], [IMG, "\nQ"]),
    ([IMG, "\n", IMG, "\nQ"], [IMG, IMG, "Q"], [IMG, IMG, "Q"], [IMG, "\n", IMG, "\nQ"]),
    ([IMG, "Q"], [IMG, "Q"], [IMG, "Q"], [IMG, "Q"]),
    (["A: ", IMG, "\nQ"], ["A: ", IMG, "\nQ"], ["A: ", IMG, "Q"], ["A: ", IMG, "\nQ"]),
    ([IMG, "\n\nQ"], [IMG, "\n\nQ"], [IMG, "\nQ"], [IMG, "\n\nQ"]),
    (["\nQ"], ["\nQ"], ["\nQ"], ["\nQ"]),
]


@pytest.mark.parametrize(("content", "front", "each", "none"), SENT)
def test_a_newline_that_the_template_writes_is_not_sent_again(
    content: list[str], front: list[str], each: list[str], none: list[str], server: Server, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    message = {"role": "user", "content": [image(tmp_path / "a.png") if c == IMG else text(c) for c in content]}
    keys = set()
    for newline, wanted in (("front", front), ("each", each), ("none", none)):
        backend = OpenAIBackend(server.endpoint(), newline=newline)
        [sent] = backend.encode("1", [message]).messages
        assert [part.get("text", IMG) for part in sent["content"]] == wanted
        keys.add(json.dumps(backend.settings))
    assert len(keys) == 3  # stored answers to other prompts are not taken for these


def test_an_unknown_rule_of_newlines_names_those_that_there_are(server: Server) -> None:
    with pytest.raises(UnknownName, match="front"):
        OpenAIBackend(server.endpoint(), newline="fron")


def test_the_shortest_length_is_sent_where_the_server_takes_it(server: Server) -> None:
    def ask(backend: Any, question: str) -> Any:
        encoded = backend.encode("1", [{"role": "user", "content": [text(question)]}])
        return backend.answer([encoded], max_new_tokens=7, min_new_tokens=1)[0]

    assert ask(server.backend(), "Hello?").note == "" and server.asked[-1]["min_tokens"] == 1
    refusal = {"error": {"message": "Unrecognized request argument supplied: min_tokens"}}
    server.say = lambda body, n: (
        (400, {}, json.dumps(refusal).encode()) if "min_tokens" in body else (200, {}, chat("no"))
    )
    backend = server.backend()
    replies = [ask(backend, f"{n}?") for n in range(3)]
    assert [reply.text for reply in replies] == ["no"] * 3 and "min_tokens not sent" in replies[0].note
    assert ["min_tokens" in body for body in server.asked] == [True, True, False, False, False]


def test_an_empty_list_of_models_says_what_to_pass(server: Server) -> None:
    for cards in ([], None):
        server.cards = cards
        with pytest.raises(ConfigError, match=r"lists no model[\s\S]*--model NAME, as the server calls it"):
            server.backend()
        assert OpenAIBackend(server.endpoint(), "any").model == "any"


def test_a_server_that_cannot_list_its_models_is_asked_for_the_named_one(server: Server) -> None:
    """`transformers serve` answers 500 where no hub cache is."""
    server.cards = 500
    endpoint = server.endpoint()
    endpoint.wait = 0.001
    assert OpenAIBackend(endpoint, "any").model == "any"
    with pytest.raises(ServerDown, match="HTTP 500"):
        OpenAIBackend(endpoint)
