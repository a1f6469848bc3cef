"""Confront the tokenizer of a folder with the model's spec and template, before one of them is used. Imports no torch.

>>> check_agreement(processor.spec, processor.tokenizer, folder)        # doctest: +SKIP
"""

import re
from collections.abc import Iterator
from pathlib import Path

from vlm.core.errors import CheckpointError
from vlm.core.sample.chat import Template, get_template
from vlm.core.sample.tokenizer import Tokenizer
from vlm.core.text import printable
from vlm.models.specs import LanguageSpec, ModelSpec

MARKER = re.compile(r"<\|[^|<>]+\|>")
"""A special token in the markup of a template, e.g. `<|im_start|>`."""

VIDEO = "<video>"
"""Mark that transformers adds to the tokenizer of an InternVL; frames replace it before ids are made."""


def check_agreement(spec: ModelSpec, tokenizer: Tokenizer, folder: Path) -> Template:
    """Return the template of a model whose tokenizer, configuration and template fit together.

    More embedding rows than tokens are fine: published tables are padded.

    Args:
        spec: the model.
        tokenizer: the one beside its weights.
        folder: where it comes from, for the message.

    Raises:
        UnknownName: no such template.
        CheckpointError: ids without an embedding row, tokens of images or of the template that the tokenizer does not
            have, or another image context id in the configuration. Names every fault.
    """
    template = get_template(spec.template)
    if faults := list(disagreements(spec, template, tokenizer)):
        raise CheckpointError(
            "\n".join([f"{folder}: tokenizer and model do not belong together", *(f"  {fault}" for fault in faults)]),
            expected="the tokenizer that the weights were trained with, and its template in config.json",
            fix=f"put the tokenizer files of these weights into {folder}, or correct its config.json",
        )
    return template


def disagreements(spec: ModelSpec, template: Template, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield a line for each way in which tokenizer, spec and template do not fit."""
    rows, marks = spec.language.vocab, spec.image_tokens
    tokens = len(tokenizer)
    if tokenizer.token_id(VIDEO) == tokens - 1:
        tokens -= 1
    if tokens > rows:
        yield f"the tokenizer has {tokens:,} tokens, the embedding {rows:,} rows"
    for name in (marks.start, marks.end, marks.context):
        if name is not None and tokenizer.token_id(name) is None:
            yield f"the tokenizer has no {printable(name)}, which marks an image"
    if marks.context is not None:
        found = tokenizer.token_id(marks.context)
        if found is not None and found != marks.context_id:
            yield f"the tokenizer's {printable(marks.context)} is {found}, the configuration's is {marks.context_id}"
    elif 0 <= marks.context_id < rows:
        yield f"images are marked by the id {marks.context_id}, which is a token of the vocabulary"
    for name in template.stop:
        if tokenizer.token_id(name) is None:
            yield f"the tokenizer has no {name}, which ends an answer (template {template.name})"
    texts = [*template.headers.values(), *template.ends.values(), template.lead, template.tail]
    for name in dict.fromkeys(MARKER.findall("".join(texts))):
        if name not in template.stop and tokenizer.token_id(name) is None:
            yield f"the tokenizer has no {name}, a marker of the template {template.name}"


def beyond_range(language: LanguageSpec, positions: int, what: str) -> str | None:
    """Return a sentence about positions beyond those that a model was trained for; None where there are none.

    Args:
        language: the language model.
        positions: highest position + 1.
        what: what has that many, e.g. `max_length`.
    """
    limit, scaling = language.max_positions, language.rope_scaling
    if positions <= limit:
        return None
    how = f"{scaling.kind} scaling by {scaling.factor:g} applies" if scaling else "no rope scaling"
    return f"{what} reaches position {positions:,}, the model was trained for {limit:,} ({how})"
