"""Tokenizers behind one small interface: `tokenizer.model` (sentencepiece) or `tokenizer.json`, without transformers.

The sentencepiece adapter reproduces the slow tokenizers that all three systems were trained with, which fast
conversions do not: spaces next to special tokens differ with the `legacy` flag.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE

from vlm.core.errors import CheckpointError, VlmError
from vlm.core.home import read_object, split_lines
from vlm.core.text import printable

Token = tuple[int, int]
"""(id, index of the first character it covers)."""


class Tokenizer(ABC):
    """Text to ids and back. Special tokens are recognized only where the caller asks for it.

    >>> tokenizer = load_tokenizer("pretrained/InternVL2-2B")                   # doctest: +SKIP
    >>> tokenizer.encode("a<|im_end|>"), tokenizer.encode_plain("a<|im_end|>")  # doctest: +SKIP
    """

    def __init__(self, added: dict[str, dict[str, Any]], config: dict[str, Any], size: int):
        self.specials: dict[str, int] = {text: int(token["id"]) for text, token in added.items()}
        if negative := [text for text, token in self.specials.items() if token < 0]:
            raise ValueError(f"the token {negative[0]!r} has the id {self.specials[negative[0]]}")
        self._flags = added
        self._size = max([size, *(i + 1 for i in self.specials.values())])
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = (
            self.token_id(_content(config.get(f"{name}_token"))) for name in ("bos", "eos", "pad", "unk")
        )
        self.add_bos: bool = config.get("add_bos_token", True) and self.bos_id is not None

    @abstractmethod
    def tokenize(self, text: str, start: bool = True, *, places: bool = True) -> list[Token]:
        """Return plain text as tokens; never a special token.

        Args:
            text: The text.
            start: The text opens the string: no special token comes before it.
            places: Without it only the ids are right, which takes a third of the time.
        """

    @abstractmethod
    def token_id(self, token: str | None) -> int | None:
        """Return the id of one token; None when it is not in the vocabulary."""

    @abstractmethod
    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of ids. Left out are negative ids (image placeholders) and rows that no token has."""

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        # an added token may take the blanks beside it; the longest of overlapping tokens wins
        tokens = sorted(self._flags.items(), key=lambda item: -len(item[0]))
        parts = (
            r"\s*" * bool(t.get("lstrip")) + re.escape(text) + r"\s*" * bool(t.get("rstrip")) for text, t in tokens
        )
        return re.compile("|".join(parts)) if tokens else None

    def split(self, text: str, keep: Collection[str] | None = None) -> list[int | str]:
        """Return special tokens (all, or those in `keep`) as ids, and the text between them as strings."""
        pieces: list[int | str] = []
        end = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            token = match.group() if match.group() in self.specials else match.group().strip()
            if keep is None or token in keep:
                pieces += [text[end : match.start()], self.specials[token]]
                end = match.end()
        return [p for p in [*pieces, text[end:]] if p != ""]

    def encode(self, text: str) -> list[int]:
        """Return the ids with special tokens recognized, without a beginning-of-sequence token."""
        ids: list[int] = []
        for i, piece in enumerate(self.split(text)):
            ids += [piece] if isinstance(piece, int) else [token for token, _ in self.tokenize(piece, start=i == 0)]
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of text in which nothing is special: `<|im_end|>` becomes the pieces of its letters."""
        return [token for token, _ in self.tokenize(text)]

    def __len__(self) -> int:
        """Return the rows that an embedding table needs: the highest id + 1."""
        return self._size


class SentencePieceTokenizer(Tokenizer):
    """`tokenizer.model` as the slow Llama and InternLM2 tokenizers read it.

    `legacy=True` (and InternLM2): every stretch between special tokens gets the model's own leading blank.
    `legacy=False`: only the start of the string gets one.
    """

    # a control character that no vocabulary merges with its neighbors: text after it gets no leading blank
    _ANCHOR = "\x01"

    def __init__(self, model_file: Path, added: dict[str, dict[str, Any]], config: dict[str, Any]):
        from sentencepiece import SentencePieceProcessor

        self._model = SentencePieceProcessor(model_file=str(model_file))
        super().__init__(added, config, self._model.get_piece_size())
        self.legacy = config.get("legacy") is not False
        self._anchor = self._model.encode(self._ANCHOR)
        # specials that the model itself would recognize inside plain text (Yi holds <|im_end|> as a piece)
        own = [s for s, i in self.specials.items() if i in self._model.encode(s)]
        self._own = re.compile("|".join(f"(?<={re.escape(s[0])})(?={re.escape(s[1:])})" for s in own)) if own else None

    def token_id(self, token: str | None) -> int | None:
        """Return the id of an added token or of a piece; None when it is neither."""
        if token is None or token in self.specials:
            return self.specials.get(token or "")
        i = self._model.piece_to_id(token)
        return i if self._model.id_to_piece(i) == token else None

    def tokenize(self, text: str, start: bool = True, *, places: bool = True) -> list[Token]:
        """Return plain text as the slow tokenizers cut it, with their rule for leading blanks."""
        tokens: list[Token] = []
        # cut behind the first letter of each such special, so that it is spelled out
        cuts = [0, *(m.start() for m in self._own.finditer(text))] if self._own else [0]
        for begin, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
            part = text[begin:end]
            if begin or not (start or self.legacy):
                tokens += self._continued(part, begin, places)
            elif self.legacy:
                tokens += self._offsets(part, begin, places)
            else:
                # the non-legacy code writes the leading blank itself
                tokens += [(i, max(at, 0)) for i, at in self._continued(" " + part, -1, places)] if part else []
        return tokens

    def _offsets(self, text: str, begin: int, places: bool) -> list[Token]:
        if not places:
            return [(i, begin) for i in self._model.encode(text)]
        found = self._model.encode_as_offset_mapping(text)
        return [(i, begin + at[0]) for i, at in zip(found["ids"], found["offsets"], strict=True)]

    def _continued(self, text: str, begin: int, places: bool) -> list[Token]:
        return self._offsets(self._ANCHOR + text, begin - 1, places)[len(self._anchor) :]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of ids, each stretch between special tokens decoded on its own."""
        names = {i: text for text, i in self.specials.items()}
        pieces = self._model.get_piece_size()
        text, run, start = "", [], True
        for i in [*(int(i) for i in ids if 0 <= i < pieces or i in names), None]:
            if i is not None and i not in names:
                run.append(i)
                continue
            if run and (start or self.legacy):
                text += self._model.decode(run)
            elif run:
                text += self._model.decode(self._anchor + run).removeprefix(self._ANCHOR)
            run, start = [], start and i == self.bos_id
            text += names[i] if i is not None and not skip_special else ""
        return text


class FastTokenizer(Tokenizer):
    """`tokenizer.json`, run by the `tokenizers` library. `spec` is the content of the file."""

    def __init__(self, spec: dict[str, Any], config: dict[str, Any]):
        added = {t["content"]: t for t in spec.get("added_tokens") or []}
        self._full = RustTokenizer.from_str(json.dumps(spec))
        # one special token stays known, to stand in front of text that follows a special token
        self._anchor = next((text for text, t in added.items() if not t["rstrip"]), None)
        plain = {**spec, "added_tokens": [added[self._anchor]] if self._anchor else [], "post_processor": None}
        self._plain = RustTokenizer.from_str(json.dumps(plain))
        super().__init__(added, config, self._full.get_vocab_size(with_added_tokens=True))
        if "add_bos_token" not in config:
            self.add_bos = self.bos_id is not None and self._full.encode("").ids[:1] == [self.bos_id]

    def token_id(self, token: str | None) -> int | None:
        """Return the id of one token; None when it is not in the vocabulary."""
        return None if token is None else self._full.token_to_id(token)

    def tokenize(self, text: str, start: bool = True, *, places: bool = True) -> list[Token]:
        """Return plain text as tokens; a special token in it is spelled out."""
        if self._anchor and self._anchor in text:
            cut = text.index(self._anchor) + 1
            rest = self.tokenize(text[cut:], start=False, places=places)
            return self.tokenize(text[:cut], start, places=places) + [(i, cut + at) for i, at in rest]
        before = "" if start or not self._anchor else self._anchor
        found = self._plain.encode(before + text, add_special_tokens=False)
        if not places:
            return [(i, 0) for i in found.ids[bool(before) :]]
        tokens = [(i, max(at[0] - len(before), 0)) for i, at in zip(found.ids, found.offsets, strict=True)]
        return tokens[bool(before) :]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of ids, without special tokens unless `skip_special` is False."""
        return self._full.decode([int(i) for i in ids if i >= 0], skip_special_tokens=skip_special)


def _content(token: Any) -> str | None:
    """Return a token as configuration files write it: a string or {"content": ...}."""
    value: str | None = token["content"] if isinstance(token, dict) else token
    return value


def _read(path: Path) -> dict[str, Any]:
    return read_object(path, CheckpointError, fix="download the file again") if path.exists() else {}


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has files that `load_tokenizer` reads."""
    slow = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    return slow or any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the tokenizer of a model folder: `tokenizer.model` if it is there (as published), else `tokenizer.json`.

    Without both, `vocab.json` and `merges.txt` are Qwen2's slow tokenizer. Reads `tokenizer_config.json`,
    `special_tokens_map.json` and `added_tokens.json` beside it.

    Raises:
        CheckpointError: Neither file is there, or one cannot be read.

    >>> load_tokenizer("pretrained/InternVL2-2B").encode("Hello")    # doctest: +SKIP
    """
    folder = Path(folder)
    config = {**_read(folder / "special_tokens_map.json"), **_read(folder / "tokenizer_config.json")}
    model, spec = folder / "tokenizer.model", folder / "tokenizer.json"
    try:
        if model.is_file():
            return SentencePieceTokenizer(model, _added_tokens(folder, config, model), config)
        if spec.is_file():
            return FastTokenizer(_read(spec), config)
        if (folder / "merges.txt").is_file() and (folder / "vocab.json").is_file():
            return FastTokenizer(qwen2_spec(folder, config), config)
    except VlmError:
        raise
    except Exception as error:  # both libraries raise bare exceptions, and our reading meets any kind of value
        found = f"tokenizer in {folder} cannot be read: {type(error).__name__}: {printable(error)}"
        raise CheckpointError(found, fix="download it again") from error
    raise CheckpointError(
        f"no tokenizer in {folder}",
        expected="tokenizer.model, tokenizer.json, or vocab.json and merges.txt",
        fix="download the checkpoint again, or copy the tokenizer files beside its config.json",
    )


QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern that Qwen2 cuts text with before it merges bytes, from its published tokenizer.json."""


def qwen2_spec(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the `tokenizer.json` of a Qwen2 tokenizer that is stored as vocabulary, merges and added tokens."""
    lines = split_lines((folder / "merges.txt").read_text(encoding="utf-8"))
    pairs = (line.partition(" ") for line in lines if line and not line.startswith("#version"))
    backend = RustTokenizer(BPE(_read(folder / "vocab.json"), [(first, second) for first, _, second in pairs]))
    backend.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    spec: dict[str, Any] = json.loads(backend.to_str())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    found = {int(i): {**flags, "special": True, **t} for i, t in config.get("added_tokens_decoder", {}).items()}
    for name, i in _read(folder / "added_tokens.json").items():
        found.setdefault(i, {**flags, "special": True, "content": name})
    spec["added_tokens"] = [{**found[i], "id": i} for i in sorted(found)]
    return spec


def _added_tokens(folder: Path, config: dict[str, Any], model: Path) -> dict[str, dict[str, Any]]:
    """Return every added or special token with its id and flags, from whichever of the three files names it."""
    from sentencepiece import SentencePieceProcessor

    vocabulary = SentencePieceProcessor(model_file=str(model))
    added = {t["content"]: {**t, "id": int(i)} for i, t in config.get("added_tokens_decoder", {}).items()}
    for name, i in _read(folder / "added_tokens.json").items():
        added.setdefault(name, {"id": i})
    named = [config.get(f"{name}_token") for name in ("bos", "eos", "unk", "pad")]
    for token in [*named, *config.get("additional_special_tokens", [])]:
        text = _content(token)
        if text and text not in added and vocabulary.id_to_piece(vocabulary.piece_to_id(text)) == text:
            added[text] = {"id": vocabulary.piece_to_id(text)}
    return added


def as_tokenizer(tokenizer: Any) -> Tokenizer:
    """Return our tokenizer for one of transformers: read again from its files, or made from its Rust backend.

    One of ours is returned as it is.

    Raises:
        CheckpointError: The tokenizer has neither files nor a backend, or has tokens that its files do not have.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    vocab_file = getattr(tokenizer, "vocab_file", None)
    if vocab_file and Path(vocab_file).name == "tokenizer.model":
        ours = load_tokenizer(Path(vocab_file).parent)
        if absent := {token for token in tokenizer.get_added_vocab() if ours.token_id(token) is None}:
            raise CheckpointError(
                f"{vocab_file} has no {', '.join(sorted(absent))}, added in memory",
                fix="save_pretrained the tokenizer and use load_tokenizer(folder)",
            )
        return ours
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(
            f"{type(tokenizer).__name__} has no tokenizer.model and no Rust backend",
            fix="save_pretrained it and use load_tokenizer(folder)",
        )
    config = {f"{name}_token": getattr(tokenizer, f"{name}_token", None) for name in ("bos", "eos", "pad", "unk")}
    return FastTokenizer(json.loads(backend.to_str()), config)
