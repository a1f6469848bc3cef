"""Typed outcomes of items, and the append-only log that survives a kill.

    with OutcomeLog(folder / "outcomes.jsonl") as log:
        log.append([Outcome(key, "item-1", "ok", completion="a cat")])
    known = read_outcomes([folder / "outcomes.jsonl"])              # key -> outcome

A log holds answers, not scores: the key of an answer covers weights, media, prompt and decode settings. Scores are
always computed from the answers, so a corrected scorer needs no new generation.
"""

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from vlm.core.errors import DataError
from vlm.core.home import naming

Kind = Literal["ok", "truncated", "unanswered", "oom", "error", "refused"]

KINDS: dict[Kind, str] = {
    "ok": "answered, with a stop token",
    "truncated": "answered, but the token budget ended before a stop token; scored as it is",
    "unanswered": "a reply without an answer: reasoning without an end, or no text; not scored",
    "oom": "out of memory even when run alone; not scored",
    "error": "an exception, named in `why`; not scored",
    "refused": "longer than the model or the --max-length limit; never run, not scored",
}

RETRY: set[Kind] = {"oom", "error"}
"""Kinds that depend on the machine or the disk; `retry_failed` computes them again."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one item. `completion` is None unless the model answered; `detail` says what went wrong.

    `tokens` and `max_position`: length and last position of the prompt, where it is encoded in this process.
    """

    key: str
    id: str
    outcome: Kind
    completion: str | None = None
    detail: str = ""
    tokens: int | None = None
    max_position: float | None = None

    @property
    def answered(self) -> bool:
        """Whether the model answered; an empty text is an answer."""
        return self.completion is not None


class OutcomeLog:
    """An append-only JSONL file. Usage: `with OutcomeLog(path) as log: log.append(outcomes)`.

    A kill can tear at most the last line. The reader ignores a torn last line, the writer cuts it off.
    """

    def __init__(self, path: Path):
        self.path = Path(path)

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        self._file.seek(0)
        data = self._file.read()
        self._file.truncate(data.rfind(b"\n") + 1)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what a full disk did not take is not said twice
            self._file.close()

    def append(self, outcomes: Iterable[Outcome]) -> None:
        """Write the outcomes; return only when they are on disk."""
        with naming(self.path):
            self._file.write("".join(json.dumps(asdict(o), ensure_ascii=False) + "\n" for o in outcomes).encode())
            self._file.flush()
            os.fsync(self._file.fileno())


def read_outcomes(paths: Iterable[Path], *, keep: Callable[[Outcome], bool] = lambda _: True) -> dict[str, Outcome]:
    """Read all logs into key -> outcome; an answer wins over a failure, else the later line wins.

    Args:
        paths: The logs, the latest last.
        keep: Returns whether to read an outcome.

    Raises:
        DataError: A line other than the last cannot be read; names file and line.
    """
    known: dict[str, Outcome] = {}
    for path in paths:
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], 1):  # the piece after the last newline is empty or torn
            try:
                outcome = Outcome(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"{path}:{number}: not an outcome: {error}", fix="remove that line, then rerun the same command"
                ) from error
            if keep(outcome) and (outcome.answered or not _answered(known, outcome.key)):
                known[outcome.key] = outcome
    return known


def _answered(known: dict[str, Outcome], key: str) -> bool:
    return key in known and known[key].answered
