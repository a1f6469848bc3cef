"""Chat templates: messages as spans of text and media, each marked as markup or content, supervised or not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

from vlm.core.errors import DataError, UnknownName
from vlm.core.sample.records import Medium, Message, Part, split_placeholders, text

IMAGE = "<image>"
INTERNVL2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
INTERNVL2_5_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Template:
    """A prompt format. A message is `headers[role]`, `lead`, its text, `ends[role]`, `tail`.

    `headers`, `ends` and `tail` are markup: their special tokens are recognized, those in a user's text are not. The
    text of an answer and its end are supervised, the tail never is.
    """

    name: str
    system: str
    headers: dict[str, str]
    ends: dict[str, str]
    stop: tuple[str, ...]
    """Tokens that end a generated answer."""
    lead: str = ""
    """Text between header and message, part of the message (so of its first token)."""
    tail: str = ""
    strip: bool = False
    """Remove blanks around a message (published InternLM2 code)."""
    images_first: bool = False
    """Move the images of a message to its front, each followed by a newline, and strip the rest (LLaVA)."""
    images_only: bool = False
    """Discard the text of the user (LLaVA's caption template)."""
    frame: str = "Frame{}: "
    """Text before each frame of a video; a benchmark's own evaluator writes `Frame1: ` for every family."""
    ends_empty: bool = False
    """End a message without content too (InternVL2.5); otherwise it is its header alone (published)."""


def _chatml(name: str, system: str, **rules: Any) -> Template:
    roles = ("system", "user", "assistant")
    headers = {role: f"<|im_start|>{role}\n" for role in roles}
    return Template(name, system, headers, dict.fromkeys(roles, "<|im_end|>"), ("<|im_end|>",), **rules)


HERMES_2 = _chatml("Hermes-2", "Answer the questions.")
LLAVA_V1 = Template(
    "llava_v1",
    VICUNA_SYSTEM,
    headers={"system": "", "user": "USER:", "assistant": "ASSISTANT:"},
    ends={"system": " ", "user": " ", "assistant": "</s>"},
    stop=("</s>",),
    lead=" ",
    images_first=True,
)
NO_MARKUP = {"system": "", "user": "", "assistant": ""}

# Sources: OpenGVLab/V2PE, OpenGVLab/InternVL, alibaba/conv-llava; smollm2 from the chat template of SmolLM2-Instruct.
TEMPLATES: dict[str, Template] = {
    t.name: t
    for t in (
        _chatml("internlm2-chat", INTERNVL2_SYSTEM, strip=True),
        # the system text that the V1-2 weights were trained and released with ...
        HERMES_2,
        # ... and the one that the published code has had since July 2024, made for InternVL2
        replace(HERMES_2, name="Hermes-2-2024-07", system=INTERNVL2_SYSTEM),
        # InternVL2.5, 3 and 3.5 alike: unlike the two above, a newline follows every end token
        _chatml("internvl2_5", INTERNVL2_5_SYSTEM, tail="\n", frame="Frame-{}: ", ends_empty=True),
        LLAVA_V1,
        Template(
            "llava_plain",
            "",
            NO_MARKUP,
            {**NO_MARKUP, "assistant": "\n"},
            stop=("</s>",),
            images_first=True,
            images_only=True,
        ),
        _chatml("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face", tail="\n"),
    )
}


class Span(NamedTuple):
    """A piece of the prompt: either `text`, or a `medium` (an image or video part)."""

    text: str | None
    medium: Medium | None
    supervised: bool
    markup: bool


def get_template(template: str | Template) -> Template:
    """Return a template by its name; a `Template` is returned as it is.

    Raises:
        UnknownName: No template has this name; the message names the nearest ones.
    """
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise UnknownName("template", template, TEMPLATES)
    return TEMPLATES[template]


def user_message(question: str, media: Sequence[Medium] = (), *, where: str = "question") -> Message:
    """Return a user message from text with `<image>` placeholders and the media that belong there, in order.

    Without placeholders each medium gets a separate line in front (published for one image). Without media, `<image>`
    is plain text.

    Args:
        question: The text.
        media: Image or video parts.
        where: Name of the question in error messages.

    Raises:
        DataError: The numbers of placeholders and media differ; the message names `where` and both.

    >>> user_message("Hi")
    {'role': 'user', 'content': [{'type': 'text', 'text': 'Hi'}]}
    """
    if media and IMAGE not in question:
        question = f"{IMAGE}\n" * len(media) + question
    if media and question.count(IMAGE) != len(media):
        raise DataError(
            f"{where}: {question.count(IMAGE)} {IMAGE} placeholders but {len(media)} media",
            expected="one placeholder for each, or none",
        )
    content: list[Part] = split_placeholders(question, iter(media), IMAGE) if media else [text(question)]
    return {"role": "user", "content": content}


def render(
    messages: Sequence[Message],
    template: str | Template,
    system: str | None = None,
    generation_prompt: bool = False,
) -> list[Span]:
    """Return messages as spans in reading order.

    Args:
        messages: A system message or none, then user and assistant in turn.
        template: A template or its name.
        system: Replaces the template's system text; a system message in `messages` replaces both.
        generation_prompt: End with the header of the answer.

    Raises:
        DataError: The messages are not user, assistant, user, ... in turn.
        UnknownName: No template has this name.

    >>> "".join(s.text for s in render([user_message("Hi")], "llava_v1", "S.", generation_prompt=True))
    'S. USER: Hi ASSISTANT:'
    """
    form = get_template(template)
    messages = list(messages)
    system_text = form.system if system is None else system
    if messages and messages[0]["role"] == "system":
        system_text = "".join(part["text"] for part in messages.pop(0)["content"] if part["type"] == "text")
    for i, message in enumerate(messages):
        if message["role"] != ("user", "assistant")[i % 2]:
            raise DataError(f"message {i} is from {message['role']!r}", expected="user and assistant in turn")

    spans = [
        _markup(form.headers["system"]),
        Span(system_text, None, False, False),
        _markup(form.ends["system"] + form.tail),
    ]
    for message in messages:
        role = message["role"]
        answer = role == "assistant"
        learned = answer and message.get("learn", True)
        spans.append(_markup(form.headers[role]))
        content = [_content_span(piece, learned) for piece in _content(message["content"], form, answer)]
        if content or form.ends_empty:
            lead, end = _markup(form.lead, learned), _markup(form.ends[role], learned)
            spans += [lead, *content, end, _markup(form.tail)]
    if generation_prompt:
        spans.append(_markup(form.headers["assistant"]))
    return [span for span in spans if span.text != ""]


@cache
def _markup(value: str, supervised: bool = False) -> Span:
    return Span(value, None, supervised, True)


def _content_span(piece: str | Medium, supervised: bool) -> Span:
    return Span(piece, None, supervised, False) if isinstance(piece, str) else Span(None, piece, False, False)


def _content(parts: Sequence[Part], form: Template, answer: bool) -> Iterator[str | Medium]:
    """Yield text and media of one message as the template normalizes them; empty text is left out."""
    pieces: list[str | Medium] = [part["text"] if part["type"] == "text" else part for part in parts]
    media = [piece for piece in pieces if not isinstance(piece, str)]
    if form.images_only and not answer:
        pieces = list(media)
    elif form.images_first and media:
        words = "".join(piece for piece in pieces if isinstance(piece, str)).strip()
        pieces = [*(item for medium in media for item in (medium, "\n")), words]
        if not words:
            pieces.pop(-2)
    elif form.strip:
        pieces = _stripped(pieces)
    return (piece for piece in pieces if piece != "")


def _stripped(pieces: list[str | Medium]) -> list[str | Medium]:
    """Return the pieces without the blanks at the beginning and the end of the message."""
    while pieces and isinstance(pieces[0], str) and not pieces[0].strip():
        pieces = pieces[1:]
    while pieces and isinstance(pieces[-1], str) and not pieces[-1].strip():
        pieces = pieces[:-1]
    if pieces and isinstance(pieces[0], str):
        pieces = [pieces[0].lstrip(), *pieces[1:]]
    if pieces and isinstance(pieces[-1], str):
        pieces = [*pieces[:-1], pieces[-1].rstrip()]
    return pieces


def prompt_text(
    messages: Sequence[Message],
    template: str | Template,
    system: str | None = None,
    generation_prompt: bool = False,
    images: Sequence[str] | None = None,
) -> str:
    r"""Return the published prompt string, byte for byte.

    Args:
        messages: See `render`.
        template: See `render`.
        system: See `render`.
        generation_prompt: See `render`.
        images: The texts in place of the media; by default `<image>` for each.

    >>> prompt_text([user_message("Hi")], "internlm2-chat", "S.")
    '<|im_start|>system\nS.<|im_end|><|im_start|>user\nHi<|im_end|>'
    """
    spans = render(messages, template, system, generation_prompt)
    stand_ins = iter(images if images is not None else [IMAGE] * sum(s.medium is not None for s in spans))
    return "".join(next(stand_ins) if span.text is None else span.text for span in spans)
