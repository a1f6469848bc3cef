"""Typed outcomes of an evaluation, their content keys, and the append-only log that survives a kill.

A log holds *answers*, not scores: the key of an answer covers weights, media, prompt and decode settings. Scores are
always computed afresh from the answers, so a mended scorer never meets a stale score and never costs a new generation.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from vlm.core.errors import DataError

Kind = Literal["ok", "truncated", "oom", "error", "refused"]

KINDS: dict[Kind, str] = {
    "ok": "answered, with a stop token",
    "truncated": "answered, but the token budget ended before a stop token; scored as it stands",
    "oom": "out of memory even when run alone; not scored",
    "error": "an exception, named in `why`; not scored",
    "refused": "longer than the model or the --max-length limit; never run, not scored",
}

RETRY: set[Kind] = {"oom", "error"}
"""Kinds that depend on the machine or the disk; `retry_failed` computes them again."""


@dataclass(frozen=True)
class Outcome:
    """What happened to one item. `completion` is None unless the model answered; `detail` says what went wrong.

    `tokens` and `max_position`: length and last position of the prompt, where the backend encodes it here.
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
        return self.completion is not None


def content_key(**parts: Any) -> str:
    """sha256 (hex) of the JSON of `parts`; equal parts give equal keys on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@cache
def scorer_hash() -> str:
    """sha256 of the scorers' sources: a changed scorer changes the `key` of every row it scored."""
    here = Path(__file__).parent.parent
    rooms = ("scorers", "measures")
    files = (p for room in rooms for kind in ("py", "json") for p in here.glob(f"{room}/**/*.{kind}"))
    sources = sorted([here / "run" / "score.py", *files])
    return content_key(sources=[[p.relative_to(here).as_posix(), file_hash(str(p))] for p in sources])


@cache
def file_hash(path: str) -> str:
    """sha256 of a file, or of all files below a folder of frames; "missing" when there is none.

    Cached for the process: the files of a benchmark do not change while it is evaluated.
    """
    root = Path(path)
    if root.is_dir():
        return content_key(frames=[[p.name, file_hash(str(p))] for p in sorted(root.iterdir()) if p.is_file()])
    if not root.is_file():
        return "missing"
    with root.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class OutcomeLog:
    """An append-only JSONL file. Usage: `with OutcomeLog(path) as log: log.append(outcomes)`.

    A kill can tear at most the last line. The reader passes over a torn last line, the writer cuts it off.
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
        self._file.close()

    def append(self, outcomes: Iterable[Outcome]) -> None:
        """Write the outcomes and return only when they are on the disk."""
        self._file.write("".join(json.dumps(asdict(o), ensure_ascii=False) + "\n" for o in outcomes).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def read_outcomes(paths: Iterable[Path], *, keep: Callable[[Outcome], bool] = lambda _: True) -> dict[str, Outcome]:
    """Key -> outcome of all logs; an answer wins over a failure, else the later line wins.

    Raises:
        DataError: a line other than the last cannot be read; names file and line.
    """
    known: dict[str, Outcome] = {}
    for path in paths:
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], 1):  # the piece after the last newline is empty or torn
            try:
                outcome = Outcome(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"{path}:{number}: not an outcome: {error}", fix="remove that line and run again"
                ) from error
            if keep(outcome) and (outcome.answered or not _answered(known, outcome.key)):
                known[outcome.key] = outcome
    return known


def _answered(known: dict[str, Outcome], key: str) -> bool:
    return key in known and known[key].answered
