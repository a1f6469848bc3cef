"""Our model behind another evaluation harness: its messages in, greedy answers out, in the batches of our runner."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

from PIL import Image

from vlm.core.errors import ConfigError, DataError
from vlm.core.home import resolve
from vlm.core.sample.records import Message, split_placeholders, text
from vlm.eval.backends.native import Checkpoint, NativeBackend
from vlm.eval.loaders import Item
from vlm.eval.run.batches import answers, in_batches
from vlm.eval.run.plan import Task, documents

Question = tuple[list[Message], int]
"""Messages, and how many tokens the answer may have."""

CHUNK = 512
"""Questions planned at once: enough to sort by length, few enough that their pictures fit on a disk."""


class NativeModel:
    """`model.answer([(messages, 16)])` -> texts. Prompts are built as for `vlm eval`, and so are the batches.

    `stride` "model" is what the checkpoint was trained for; `tiles`: tile budget per image.

    Raises:
        ConfigError, CheckpointError: no such checkpoint, or settings that it cannot have.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        stride: float | str | None = "model",
        positions: str = "exact",
        tiles: int | None = None,
        batch_size: int = 8,
        device: str = "auto",
        dtype: str = "float32",
    ):
        found = resolve(path)
        checkpoint = Checkpoint(found if found.exists() else path, device=device, dtype=dtype)
        rule = {"max_tiles": tiles} if tiles else None
        own = checkpoint.processor.resolve_strides(stride)
        self.backend = NativeBackend(checkpoint, stride=own, positions=positions, image_rule=rule)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self._pictures = Path(mkdtemp(prefix="vlm-harness-"))
        finalize(self, rmtree, self._pictures, True)

    def answer(self, questions: Iterable[Question]) -> list[str]:
        """The answers in order; questions are taken as they are needed.

        Raises:
            DataError: one that could not be answered. A harness would score whatever text stood in its place.
        """
        rest, replies = iter(questions), []
        while chunk := list(islice(rest, CHUNK)):
            replies += self._answered(chunk)
            for picture in self._pictures.iterdir():
                picture.unlink()
        return replies

    def _answered(self, questions: Sequence[Question]) -> list[str]:
        tasks = []
        for number, (messages, budget) in enumerate(questions):
            item = Item(str(number), messages, None, "harness")
            limits = {"max_new_tokens": budget, "min_new_tokens": 1}
            tasks.append(Task(item, str(number), self.backend.cost(messages), limits))
        order = in_batches(tasks, documents(tasks, self.backend), self.batch_size)
        outcomes = {o.key: o for _, batch in answers(self.backend, order) for o in batch}
        for outcome in outcomes.values():
            if outcome.completion is None:
                raise DataError(f"question {outcome.id}: {outcome.outcome}: {outcome.detail}", expected="an answer")
        return [outcomes[task.key].completion or "" for task in tasks]

    def stored(self, picture: Image.Image) -> Path:
        """A file with exactly that picture, until it is answered for. Equal pictures share one, so that a shared
        document is known as such."""
        if not picture.mode.startswith("I"):  # 16 bits are scaled where every image is read
            picture = picture.convert("RGB")
        name = hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()
        path = self._pictures / f"{name}.png"
        if not path.exists():
            picture.save(path, compress_level=1)
        return path


def in_front(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As published: media in front of the text stand in a line each, or where `<image>` marks them in the text. Parts
    in any other order stay as they are."""
    first_text = next((i for i, part in enumerate(parts) if part["type"] == "text"), len(parts))
    media, rest = parts[:first_text], parts[first_text:]
    if any(part["type"] != "text" for part in rest):
        return parts
    words = "".join(part["text"] for part in rest)
    images: Iterator[dict[str, Any]] = iter(media)
    if media and words.count("<image>") == len(media) and all(part["type"] == "image" for part in media):
        return split_placeholders(words, images, "<image>")
    if not words.strip():
        raise DataError("a question without words", expected="some text beside the media")
    lines = [piece for part in media for piece in (part, text("\n"))]
    return [*lines[:-1], text("\n" + words)] if media else [text(words)]


def greedy(settings: dict[str, Any], default: int) -> int:
    """The number of new tokens that the settings of a harness allow.

    Raises:
        ConfigError: sampling or beams. Answers of our runs are greedy, and so must be those compared with them.
    """
    if settings.get("do_sample", True) and float(settings.get("temperature") or 0) > 0:
        raise ConfigError(f"temperature {settings['temperature']}", expected="greedy decoding: temperature 0")
    if int(settings.get("num_beams") or 1) != 1:
        raise ConfigError(f"{settings['num_beams']} beams", expected="greedy decoding: 1")
    return int(settings.get("max_new_tokens") or default)
