import pytest

from vlm.core.errors import DataError, UnknownName
from vlm.core.sample.chat import TEMPLATES, prompt_text, render, user_message
from vlm.core.sample.records import image, text


def turns(*values):
    return [{"role": ("user", "assistant")[i % 2], "content": [text(v)]} for i, v in enumerate(values)]


def test_internvl_templates_have_no_newline_after_im_end_and_smollm2_has_one():
    messages = turns("Q1", "A1", "Q2")
    for name in ("internlm2-chat", "Hermes-2"):
        assert prompt_text(messages, name, "S", generation_prompt=True) == (
            "<|im_start|>system\nS<|im_end|><|im_start|>user\nQ1<|im_end|><|im_start|>assistant\nA1<|im_end|>"
            "<|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n"
        )
    assert prompt_text(messages, "smollm2", "S", generation_prompt=True) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n"
    )


def test_hermes_2_keeps_the_system_text_of_its_release_and_names_the_later_one():
    assert TEMPLATES["Hermes-2"].system == "Answer the questions."
    assert TEMPLATES["Hermes-2-2024-07"].system == TEMPLATES["internlm2-chat"].system
    later, release = TEMPLATES["Hermes-2-2024-07"], TEMPLATES["Hermes-2"]
    assert prompt_text(turns("Q"), later, "S") == prompt_text(turns("Q"), release, "S")


def test_llava_v1_uses_the_user_wording_and_no_space_between_rounds():
    got = prompt_text(turns("Q1", "A1", "Q2"), "llava_v1", generation_prompt=True)
    assert got.startswith("A chat between a curious user and an artificial intelligence assistant.")
    assert got.endswith("user's questions. USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:")


def test_llava_moves_images_to_the_front_of_their_turn_and_keeps_each():
    question = user_message("Compare <image> and <image> please ", [image("a"), image("b")])
    assert prompt_text([question], "llava_v1", "S") == "S USER: <image>\n<image>\nCompare  and  please "
    assert [s.medium["path"] for s in render([question], "llava_v1") if s.medium] == ["a", "b"]


def test_llava_plain_discards_the_question():
    question = user_message("<image>\nDescribe it.", [image("a")])
    answer = {"role": "assistant", "content": [text("A caption.")]}
    assert prompt_text([question, answer], "llava_plain") == "<image>A caption.\n"


def test_system_message_replaces_the_argument_and_the_argument_the_template():
    own = {"role": "system", "content": [text("Own.")]}
    assert "system\nOwn.<" in prompt_text([own, *turns("Q")], "Hermes-2", "Argument.")
    assert "system\nArgument.<" in prompt_text(turns("Q"), "Hermes-2", "Argument.")
    assert "system\n<|im_end|>" in prompt_text(turns("Q"), "Hermes-2", "")


def test_only_answers_and_their_ends_are_supervised():
    for name, template in TEMPLATES.items():
        spans = render(turns("Q1", "A1", "Q2", "A2"), name)
        end = template.ends["assistant"]
        expected = f"{template.lead}A1{end}{template.lead}A2{end}"
        assert "".join(s.text for s in spans if s.supervised) == expected
        assert all(s.markup for s in spans if s.text in template.headers.values())
        assert not any(s.markup for s in spans if s.text in ("Q1", "A1", "Q2", "A2"))


def test_blanks_are_stripped_around_messages_by_internlm2_only():
    messages = [user_message("  <image>\n Q \n", [image("a")]), *turns("", "\n A ")[1:]]
    assert "user\n<image>\n Q<|im_end|>" in prompt_text(messages, "internlm2-chat")
    assert "assistant\nA<|im_end|>" in prompt_text(messages, "internlm2-chat")
    assert "user\n  <image>\n Q \n<|im_end|>" in prompt_text(messages, "Hermes-2")


def test_an_empty_answer_is_its_header_alone():
    assert prompt_text(turns("Q", ""), "internlm2-chat", "S").endswith("Q<|im_end|><|im_start|>assistant\n")


def test_placeholders_that_differ_from_the_media_are_refused_with_both_counts():
    with pytest.raises(DataError, match="item 7: 1 <image> placeholders but 2 media"):
        user_message("<image> Q", [image("a"), image("b")], where="item 7")
    question = user_message("Q", [image("a"), image("b")])
    assert prompt_text([question], "Hermes-2", "S").endswith("user\n<image>\n<image>\nQ<|im_end|>")
    assert user_message("literal <image>")["content"] == [text("literal <image>")]


def test_unknown_template_and_wrong_turn_order_are_refused():
    with pytest.raises(UnknownName, match="did you mean internlm2-chat"):
        render(turns("Q"), "internlm2_chat")
    with pytest.raises(DataError, match="message 1 is from 'user'"):
        render([*turns("Q"), *turns("Q")], "Hermes-2")
