"""A conversation: published prompts, streaming, history, batches, and text that stays text."""

import threading

import numpy as np
import pytest
import torch
from transformers import StoppingCriteriaList

from support.videos import write_video
from vlm.core.errors import ConfigError, HardwareError
from vlm.core.sample.chat import INTERNVL2_5_SYSTEM, INTERNVL2_SYSTEM, VICUNA_SYSTEM, prompt_text
from vlm.core.sample.records import video
from vlm.models.answers import answer
from vlm.models.session import ChatSession, PieceStreamer


@pytest.fixture
def chat(preset, checkpoint):
    return ChatSession(checkpoint(preset))


@pytest.fixture
def movie(tmp_path):
    """A video of ten frames."""
    return write_video(tmp_path / "movie.mp4", range(0, 250, 25), (64, 48), rate=5)


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
    tokenizer = chat.processor.tokenizer
    ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "語".encode()]
    if None in ids:  # a byte-level vocabulary
        ids = tokenizer.encode_plain("語")
    assert len(ids) == 3
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


def test_what_a_user_quotes_stays_text(chat, picture):
    tokenizer = chat.processor.tokenizer
    quote = "What does <image> mean, and <|im_end|>, <img>, <IMG_CONTEXT> or </s>?"
    prompt, plain = encoded(chat, quote, images=[picture()]), encoded(chat, "What?", images=[picture()])
    assert len(prompt.image_spans) == 1
    for special in tokenizer.specials.values():
        assert (prompt.input_ids == special).sum() == (plain.input_ids == special).sum()
    assert quote in tokenizer.decode(prompt.input_ids, skip_special=False)


def test_a_system_text_is_at_the_front_and_survives_a_reset(preset, checkpoint):
    chat = ChatSession(checkpoint(preset), system="Answer in verse.")
    chat.reset()
    prompt = encoded(chat, "Why?")
    text = chat.processor.tokenizer.decode(prompt.input_ids, skip_special=True)
    assert 0 <= text.index("Answer in verse.") < text.index("Why?")


# prompts, byte for byte ----------------------------------------------------------------------------------------------

CHATML = "<|im_start|>system\n{}<|im_end|><|im_start|>user\n{}<|im_end|><|im_start|>assistant\n"
PROMPTS = {
    "tiny-internvl2": CHATML.replace("{}", INTERNVL2_SYSTEM, 1),
    "tiny-internvl-chat-v1-2": CHATML.replace("{}", "Answer the questions.", 1),
    "tiny-convllava": VICUNA_SYSTEM + " USER: {} ASSISTANT:",
    "tiny-internvl3": CHATML.replace("<|im_end|>", "<|im_end|>\n").replace("{}", INTERNVL2_5_SYSTEM, 1),
}
TILES = ("tiny-internvl2", "tiny-internvl3")
SEPARATE = {"tiny-convllava": "<image>\n<image>\nQ?"}


def prompt_of(chat, preset, *turns):
    """The prompt as a string: of InternVL read back from the ids, where images are blocks of context tokens."""
    if preset == "tiny-convllava":
        return prompt_text(turns[-1], chat.processor.template, generation_prompt=True)
    ids = chat.processor.encode(turns[-1]).input_ids
    text = chat.processor.tokenizer.decode(ids, skip_special=False).removeprefix("<s>")
    return text.replace("<IMG_CONTEXT>" * chat.processor.tokens_per_tile, "<tile>")


def expected(preset, body, *tiles):
    """The published prompt around a question whose images have so many tiles."""
    for n in tiles if preset != "tiny-convllava" else ():
        body = body.replace("<image>", f"<img>{'<tile>' * n}</img>", 1)
    return PROMPTS[preset].format(body)


def test_prompts_of_text_and_of_one_image(chat, preset, picture):
    assert prompt_of(chat, preset, chat.messages("Q?")) == expected(preset, "Q?")
    assert prompt_of(chat, preset, chat.messages("Q?", [picture()])) == expected(preset, "<image>\nQ?", 1)


def test_prompt_of_separate_images(chat, preset, picture):
    two = [picture(), picture((0, 0, 200))]
    body = SEPARATE.get(preset, "Image-1: <image>\nImage-2: <image>\nQ?")
    assert prompt_of(chat, preset, chat.messages("Q?", two)) == expected(preset, body, 1, 1)


def test_prompt_of_combined_images_has_one_block_with_the_tiles_of_all(chat, preset, picture):
    chat.combine = True
    two = [picture(), picture((0, 0, 200), (120, 60))]
    if preset == "tiny-convllava":
        with pytest.raises(ConfigError, match="cannot be combined"):
            chat.messages("Q?", two)
        return
    n = 1 + (3 if preset in TILES else 1)  # two tiles and a thumbnail
    assert prompt_of(chat, preset, chat.messages("Q?", two)) == expected(preset, "<image>\nQ?", n)
    prompt = encoded(chat, "Q?", images=two)
    alone = [encoded(chat, "Q?", images=[one]).pixels for one in two]
    np.testing.assert_array_equal(prompt.pixels, np.concatenate(alone))
    assert chat.ask("Q?", images=two, max_new_tokens=3) and len(chat.history) == 2


def test_prompt_of_a_video(preset, checkpoint, movie):
    chat = ChatSession(checkpoint(preset), frames=3)
    if preset == "tiny-convllava":  # its published code takes no video; the frames move to the front like any image
        assert len(encoded(chat, "Q?", videos=[movie]).image_spans) == 3
        return
    body = "Frame1: <image>\nFrame2: <image>\nFrame3: <image>\nQ?"
    if preset == "tiny-internvl3":
        body = body.replace("Frame", "Frame-")
    assert prompt_of(chat, preset, chat.messages("Q?", (), [movie])) == expected(preset, body, 1, 1, 1)
    assert chat.ask("Q?", videos=[movie], max_new_tokens=2)


def test_prompt_of_a_later_round_holds_the_picture_where_it_was_shown(chat, preset, picture):
    answer = chat.ask("Q1?", images=[picture()], max_new_tokens=4).strip()
    between = {
        "tiny-convllava": f" ASSISTANT: {answer}</s>USER: ",
        "tiny-internvl3": f"<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n<|im_start|>user\n",
    }.get(preset, f"<|im_end|><|im_start|>assistant\n{answer}<|im_end|><|im_start|>user\n")
    got = prompt_text(chat.messages("Q2?"), chat.processor.template, generation_prompt=True)
    assert got == PROMPTS[preset].format(f"<image>\nQ1?{between}Q2?")
    assert len(encoded(chat, "Q2?").image_spans) == 1


def test_the_number_of_tiles_can_be_limited_where_there_are_tiles(preset, checkpoint, picture):
    wide = picture(size=(240, 60))
    if preset not in TILES:
        with pytest.raises(ConfigError, match="max_tiles 2, but this checkpoint makes one square"):
            ChatSession(checkpoint(preset), max_tiles=2)
        return
    assert encoded(ChatSession(checkpoint(preset)), "Q?", images=[wide]).n_tiles == 5
    assert encoded(ChatSession(checkpoint(preset), max_tiles=2), "Q?", images=[wide]).n_tiles == 3


# batches and settings -------------------------------------------------------------------------------------------------


def test_a_batch_equals_one_by_one_and_leaves_the_history(chat, picture):
    questions = ["What is it?", "Why is the sky of this picture so blue today?", "Where?"]
    images = [[picture()], [], [picture((0, 0, 200)), picture((0, 200, 0))]]
    alone = []
    for question, files in zip(questions, images, strict=True):
        chat.reset()
        alone.append(chat.ask(question, images=files, max_new_tokens=8))
    chat.reset()
    assert chat.ask_batch(questions, images=images, max_new_tokens=8) == alone
    assert len(set(alone)) > 1 and chat.history == []
    assert chat.ask_batch([]) == []


def test_a_batch_with_lists_of_unequal_length_or_an_empty_question_is_an_error(chat, picture):
    with pytest.raises(ConfigError, match="images for 1 of 2 questions"):
        chat.ask_batch(["A?", "B?"], images=[[picture()]])
    with pytest.raises(ConfigError, match="question is empty"):
        chat.ask_batch(["A?", " "])


def test_drawing_is_repeatable_and_beams_come_at_once(chat):
    state = torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        chat.reset()
        drawn.append(chat.ask("Why?", do_sample=True, temperature=2.0, seed=seed, max_new_tokens=12))
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), state)
    chat.reset()
    best = answer(chat.model, chat.processor, [encoded(chat, "Why?")], max_new_tokens=6, num_beams=2)[0].text
    assert list(chat.stream("Why?", max_new_tokens=6, num_beams=2)) == [best]
    assert chat.history[-1]["content"][0]["text"] == best


@pytest.mark.parametrize("strides", ["64", 0, -1, float("nan")])
def test_unknown_strides_are_reported_before_the_weights_are_read(strides, preset, checkpoint, monkeypatch):
    monkeypatch.setattr("vlm.models.session.load_model", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match="strides"):
        ChatSession(checkpoint(preset), strides=strides)


# streaming ------------------------------------------------------------------------------------------------------------


class Gate:
    """A stopping criterion that holds generation before its n-th token until it is opened."""

    def __init__(self, n: int):
        self.left, self.open, self.waited = n, threading.Event(), True

    def __call__(self, input_ids, scores, **_):
        self.left -= 1
        if self.left == 0:
            self.waited = self.open.wait(20)
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_pieces_arrive_while_the_answer_is_still_being_made(chat):
    gate = Gate(8)
    stream = chat.stream("Why?", max_new_tokens=16, min_new_tokens=16, stopping_criteria=StoppingCriteriaList([gate]))
    first = [next(stream), next(stream)]
    gate.open.set()  # had the pieces come at the end, the gate would have given up waiting
    rest = list(stream)
    assert gate.waited and all(first) and rest
    assert "".join(first + rest).strip() == chat.history[-1]["content"][0]["text"]


def test_a_half_read_answer_stops_and_leaves_no_trace(chat):
    gate = Gate(10_000)
    settings = {"max_new_tokens": 600, "min_new_tokens": 600, "stopping_criteria": StoppingCriteriaList([gate])}
    stream = chat.stream("Why?", **settings)
    next(stream)
    stream.close()
    made = 10_000 - gate.left
    assert chat.history == [] and made < 600
    assert not [t for t in threading.enumerate() if t.name.startswith("answer")]
    alone = ChatSession.ask(chat, "And?", max_new_tokens=5)
    assert 10_000 - gate.left == made
    chat.reset()
    assert chat.ask("And?", max_new_tokens=5) == alone


def test_a_newer_question_overtakes_an_unfinished_answer(chat):
    old = chat.stream("Old?", max_new_tokens=600, min_new_tokens=600)
    next(old)
    chat.ask("New?", max_new_tokens=3)
    assert list(old) == []
    assert [m["content"][0]["text"] for m in chat.history if m["role"] == "user"] == ["New?"]
    unread = chat.stream("Unread?", max_new_tokens=3)
    chat.reset()
    assert list(unread) == [] and chat.history == []


def fails_after_a_piece(error):
    def generate(ids, streamer, **_):
        streamer.put(torch.tensor([20, 21, 22, 23]))
        raise error

    return generate


def test_an_error_while_generating_reaches_the_caller(chat, monkeypatch):
    monkeypatch.setattr(chat.model, "generate", fails_after_a_piece(RuntimeError("broken kernel")))
    seen = []
    with pytest.raises(RuntimeError, match="broken kernel"):
        seen.extend(chat.stream("What?"))
    assert chat.history == []
    monkeypatch.setattr(chat.model, "generate", fails_after_a_piece(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(HardwareError, match="out of memory with a prompt of") as error:
        chat.ask("What?")
    assert "max_tiles" in error.value.fix and chat.history == []


def test_settings_that_the_model_refuses_reach_the_caller(chat):
    with pytest.raises(ConfigError, match="temperature"):
        chat.ask("What?", temperature=0.5)


def test_a_part_of_a_video_is_asked_about_alone(chat, movie):
    whole, part = (encoded(chat, "What?", videos=[v]) for v in (movie, video(movie, (0.0, 0.5))))
    assert whole.pixels.shape == part.pixels.shape and not np.array_equal(whole.pixels, part.pixels)
    assert np.array_equal(part.pixels, encoded(chat, "What?", videos=video(movie, (0.0, 0.5))).pixels)
    (message,) = chat.messages("What?", videos=[video(movie, (0.0, 0.5))])
    assert [p["clip"] for p in message["content"] if p["type"] == "video"] == [(0.0, 0.5)]
