"""A small byte-level BPE tokenizer, trained on the texts of given records, in the layout that transformers reads."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm.core.errors import ConfigError, DataError, only_vlm_errors
from vlm.core.home import split_lines, write_atomic, write_json
from vlm.core.sample.chat import get_template
from vlm.core.sample.records import iter_jsonl
from vlm.core.synth.haystack import QUESTION, SHORTLY
from vlm.core.synth.sentences import SENTENCES

SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
"""Special tokens with ids 0 to 7; `<unk>` also pads, as in InternLM2-based checkpoints: no text contains it."""

BYTES = 256


def train_tokenizer(
    out: Path,
    files: Sequence[Path],
    *,
    vocab_size: int = 1024,
    extra: Sequence[Path] = (),
    haystack: bool = True,
    template: str | None = None,
) -> int:
    """Train a tokenizer and return the size of its vocabulary.

    Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    Args:
        out: The folder to write to.
        files: JSONL records in the published schema; the turns are the text.
        vocab_size: Upper limit; small texts give fewer tokens.
        extra: JSON, JSONL or plain-text files whose every string counts as text (questions of benchmarks).
        haystack: Also learn from the sentences and the question of image haystacks.
        template: Also learn the words that open the turns of this chat template, as often as there are turns.

    Raises:
        ConfigError: The vocabulary cannot hold the bytes and special tokens.
        UnknownName: No such template.
        DataError: A file is missing, or there is no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if vocab_size < BYTES + len(SPECIAL):
        raise ConfigError(f"vocabulary of {vocab_size}", expected=f"at least {BYTES + len(SPECIAL)}")
    texts = [text for path in files for text in record_texts(path)]
    if template:
        texts += [text for text in openings(template) for _ in range(len(texts) // 2)]
    texts += [text for path in extra for text in file_texts(path)]
    if haystack:
        texts += [*SENTENCES, QUESTION["hidden"] + SHORTLY]
    if not any(texts):
        raise DataError("no text to learn from", fix="give at least one FILE.jsonl")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = [("<s>", SPECIAL.index("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=bos)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    config = {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": list(SPECIAL[3:]),
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 20,
    }
    write_json(out / "special_tokens_map.json", {**names, "additional_special_tokens": list(SPECIAL[3:])})
    write_json(out / "tokenizer_config.json", config)
    content = json.loads(tokenizer.to_str())
    # as strings: libraries of the published pins (tokenizers 0.15) read no pairs
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    write_atomic(out / "tokenizer.json", json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    return tokenizer.get_vocab_size()


def record_texts(path: Path) -> Iterator[str]:
    """Yield the turns of each record, without the placeholders of images and videos.

    Raises:
        DataError: A record has no `conversations`.
    """
    for line, record in iter_jsonl(path):
        turns = record.get("conversations")
        if not isinstance(turns, list):
            raise DataError(f"{path}:{line}: no `conversations`", fix="name other files with --benchmark-text")
        with only_vlm_errors(f"{path}:{line}"):
            texts = [turn["value"].replace("<image>", "").replace("<video>", "") for turn in turns]
        yield from texts


def openings(template: str) -> list[str]:
    """Return what stands in front of a question and of an answer, without the special tokens.

    >>> openings("llava_v1"), openings("internlm2-chat")
    (['USER: ', ' ASSISTANT: '], ['user\\n', 'assistant\\n'])
    """
    form = get_template(template)
    found = [form.headers["user"] + form.lead, form.ends["user"] + form.headers["assistant"] + form.lead]
    for special in SPECIAL:
        found = [text.replace(special, "") for text in found]
    return found


def file_texts(path: Path) -> Iterator[str]:
    """Yield every string in a JSON or JSONL file, or the lines of any other file.

    Raises:
        DataError: The file cannot be read.
    """
    if path.suffix == ".jsonl":
        for _, record in iter_jsonl(path):
            yield from _strings(record)
        return
    try:
        text = path.read_text(encoding="utf-8")
        yield from _strings(json.loads(text)) if path.suffix == ".json" else split_lines(text)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value.replace("<image>", "")
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
