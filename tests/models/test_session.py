"""A conversation: streaming, history, and text that stays text."""

import pytest
import torch

from vlm.core.errors import ConfigError, MediaError
from vlm.models.generate import answer
from vlm.models.session import ChatSession, PieceStreamer


@pytest.fixture
def chat(preset, checkpoint):
    return ChatSession(checkpoint(preset))


def encoded(chat, question, **kwargs):
    return chat.processor.encode(chat.messages(question, **kwargs), strides=chat.strides)


def test_streamed_pieces_join_to_the_whole_answer(chat, picture):
    prompt = encoded(chat, "What is it?", images=[picture()])
    whole = answer(chat.model, chat.processor, [prompt], max_new_tokens=12)[0].text
    pieces = list(chat.stream("What is it?", images=[picture()], max_new_tokens=12))
    assert len(pieces) > 1 and all(pieces)
    assert "".join(pieces) == whole
    chat.reset()
    assert chat.ask("What is it?", images=[picture()], max_new_tokens=12) == whole


def test_a_character_is_shown_when_it_is_whole_or_the_answer_is_over(chat):
    """Three byte tokens make one character, two do not."""
    ids = [chat.processor.tokenizer.token_id(f"<0x{byte:02X}>") for byte in "語".encode()]
    streamer = PieceStreamer(chat.processor)
    for i in ids[:2]:
        streamer.put(torch.tensor([i]))
    assert streamer.queue.empty()
    streamer.put(torch.tensor(ids[2:]))
    assert streamer.queue.get() == "語"
    streamer.put(torch.tensor(ids[:2]))
    assert streamer.queue.empty()
    streamer.end()
    assert set("".join(streamer)) == {"\N{REPLACEMENT CHARACTER}"}


def test_the_history_grows_by_a_turn_and_keeps_its_pictures(chat, picture):
    first = chat.ask("What is it?", images=[picture()], max_new_tokens=4)
    assert [m["role"] for m in chat.history] == ["user", "assistant"]
    assert chat.history[1]["content"][0]["text"] == first.strip()
    second = encoded(chat, "And now?", images=[picture((0, 0, 200))])
    assert len(second.image_spans) == 2
    chat.ask("And now?", max_new_tokens=4)
    assert [m["role"] for m in chat.history] == ["user", "assistant"] * 2
    chat.reset()
    assert chat.history == []


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_an_error(question, chat):
    with pytest.raises(ConfigError, match="question is empty"):
        chat.ask(question)
    assert chat.history == []


def test_what_a_user_quotes_stays_text(chat, picture):
    tokenizer = chat.processor.tokenizer
    quote = "What does <image> mean, and <|im_end|>, <img>, <IMG_CONTEXT> or </s>?"
    prompt, plain = encoded(chat, quote, images=[picture()]), encoded(chat, "What?", images=[picture()])
    assert len(prompt.image_spans) == 1
    for special in tokenizer.specials.values():
        assert (prompt.input_ids == special).sum() == (plain.input_ids == special).sum()
    assert quote in tokenizer.decode(prompt.input_ids, skip_special=False)


def test_a_system_text_stands_at_the_front_and_survives_a_reset(preset, checkpoint):
    chat = ChatSession(checkpoint(preset), system="Answer in verse.")
    chat.reset()
    prompt = encoded(chat, "Why?")
    text = chat.processor.tokenizer.decode(prompt.input_ids, skip_special=True)
    assert 0 <= text.index("Answer in verse.") < text.index("Why?")


def test_a_missing_picture_is_an_error_and_leaves_the_history(chat, tmp_path):
    with pytest.raises(MediaError, match=r"nowhere\.png"):
        chat.ask("What?", images=[tmp_path / "nowhere.png"])
    assert chat.history == []


def test_an_error_while_generating_reaches_the_caller(chat):
    with pytest.raises(ValueError, match="streamer"):
        chat.ask("What?", num_beams=2)
    assert chat.history == []
