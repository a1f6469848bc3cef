"""What a record costs one model, in tokens of its own tokenizer, template and image rule; no picture is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

from PIL import Image

from vlm.core.errors import ConfigError
from vlm.core.sample.chat import Span, render, user_message
from vlm.core.sample.encode import ImageTokenIds, SampleEncoder, picture_part
from vlm.core.sample.records import Message, text
from vlm.core.sample.tiling import ImageRule
from vlm.core.sample.tokenizer import Tokenizer, load_tokenizer


class Sized(NamedTuple):
    """An image of which only the size in pixels is known yet: (width, height)."""

    size: tuple[int, int]


@dataclass(frozen=True)
class Measured:
    """A record as the model will see it.

    `total` counts all tokens, `image_tokens` those of images with the tokens around them. `images` and `texts` are the
    places of each image and of each text asked for, as (first token, one behind the last).
    """

    total: int
    image_tokens: int
    images: list[tuple[int, int]]
    texts: list[tuple[int, int]]


@dataclass(frozen=True)
class Ruler:
    r"""The rules of one model, picklable. `names` are the tokens before and behind an image (None: no token).

    >>> ruler = Ruler(Path("pretrained/X"), "internlm2-chat", rule, 256)        # doctest: +SKIP
    >>> ruler.measure("<image>\nHi?", [(448, 448)], "Yes").total                # doctest: +SKIP
    """

    tokenizer: Path
    template: str
    image_rule: ImageRule
    tokens_per_tile: int
    names: tuple[str | None, str | None] = ("<img>", "</img>")
    system: str | None = None

    @cached_property
    def _encoder(self) -> "_Encoder":
        tokenizer = _loaded(self.tokenizer)
        ids = [tokenizer.token_id(name) for name in self.names]
        if absent := [name for name, i in zip(self.names, ids, strict=True) if name and i is None]:
            raise ConfigError(
                f"the tokenizer in {self.tokenizer} has no {', '.join(absent)}", fix="name the model's own tokenizer"
            )
        tokens = ImageTokenIds(ids[0], -1, ids[1])
        return _Encoder(tokenizer, self.template, self.image_rule, self.tokens_per_tile, tokens, self.system)

    def __getstate__(self) -> dict[str, Any]:  # workers load the tokenizer themselves
        return {name: value for name, value in self.__dict__.items() if name != "_encoder"}

    def tokens(self, value: str) -> int:
        """Return the number of tokens of a text inside a longer one."""
        return len(self._encoder.tokenizer.tokenize(value, start=False))

    def image_cost(self, size: tuple[int, int]) -> int:
        """Return the tokens of an image of (width, height) pixels, with those around it."""
        return self.image_rule.count(*size) * self.tokens_per_tile + sum(name is not None for name in self.names)

    def measure(
        self, question: str, sizes: Sequence[tuple[int, int]], answer: str, texts: Sequence[str] = ()
    ) -> Measured:
        """Count the tokens of a whole sample: template, question with `<image>` placeholders, answer and its end.

        Args:
            question: The text with placeholders.
            sizes: (width, height) in pixels of each image.
            answer: The answer.
            texts: Texts to find in the question, each at its first occurrence.

        Raises:
            DataError: The numbers of placeholders and sizes differ.
        """
        # a count needs the size of a picture alone
        media = [picture_part(cast(Image.Image, Sized(size))) for size in sizes]
        asked = user_message(question, media)
        return self._encoder.measured([asked, {"role": "assistant", "content": [text(answer)]}], texts)


class _Encoder(SampleEncoder):
    """An encoder that also finds the places of texts, by marking them as supervised."""

    def measured(self, messages: list[Message], texts: Sequence[str]) -> Measured:
        spans = render(messages, self.template, self.system)
        tiles, _, _ = self._images([span.medium for span in spans if span.medium is not None], pixels=False)
        brackets = self.image_tokens.start is not None
        ids, _, _, image_spans = self._tokens(spans, tiles)
        images = [(first - brackets, first + count + brackets) for first, count, _ in image_spans]
        found = []
        for wanted in texts:
            supervised = self._tokens(_marked(spans, wanted), tiles)[1]
            first = supervised.index(True)
            found.append((first, first + sum(supervised)))
        return Measured(len(ids), sum(end - start for start, end in images), images, found)


def _marked(spans: Sequence[Span], wanted: str) -> list[Span]:
    """Return the spans with nothing supervised but the first occurrence of `wanted`, from the blank before it."""
    marked: list[Span] = []
    todo = True
    for span in spans:
        if span.text is None or not todo or wanted not in span.text:
            marked.append(span._replace(supervised=False))
            continue
        start = span.text.index(wanted)
        start -= start > 0 and span.text[start - 1] == " "  # byte-level tokens begin with their blank
        end = span.text.index(wanted) + len(wanted)
        cuts = ((span.text[:start], False), (span.text[start:end], True), (span.text[end:], False))
        marked += [span._replace(text=part, supervised=hit) for part, hit in cuts if part]
        todo = False
    return marked


def _loaded(path: Path) -> Tokenizer:
    return load_tokenizer(path.parent if path.is_file() else path)
