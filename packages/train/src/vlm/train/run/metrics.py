"""One JSON line for each step, and the ledger of samples that are not used as they are."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from vlm.core.errors import DataError
from vlm.core.home import read_json, write_atomic


class Log:
    """Append-only JSONL that can be cut back to a checkpoint: lines of later steps are removed.

    A line that cannot be read, as a power failure or a damaged disk leaves it, is none; `damaged` counts them.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def _lines(self) -> list[tuple[bytes, dict[str, Any] | None]]:
        """Return each line that has an end, and its content if it has a step."""
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        return [(line + b"\n", content_of(line)) for line in lines]

    def cut(self, steps: int) -> None:
        """Keep the lines of steps before `steps`; a file without lines is none, because others cannot load it."""
        kept = [line for line, content in self._lines() if content is not None and content["step"] < steps]
        if kept:
            write_atomic(self.path, b"".join(kept))
        else:
            self.path.unlink(missing_ok=True)

    def write(self, **values: Any) -> None:
        """Append a line of these keys and values."""
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(values, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        """Wait until all lines are on the disk."""
        if self.path.exists():
            with self.path.open("rb") as f:
                os.fsync(f.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Return all whole lines; none where there is no file."""
        return [content for _, content in self._lines() if content is not None]

    def count(self, steps: int) -> int:
        """Count the lines of steps before `steps`."""
        return sum(line["step"] < steps for line in self.read())

    @property
    def damaged(self) -> int:
        """Number of lines that cannot be read."""
        return sum(content is None for _, content in self._lines())


def content_of(line: bytes) -> dict[str, Any] | None:
    """Return the content of a line of a log; None where it is no object with a step."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = content.get("step") if isinstance(content, dict) else None
    return content if isinstance(step, int) and step >= 0 else None


Stage = Literal["read", "media", "encode", "pack", "plan"]
"""Where a sample was lost: its record, its files, its tokens, the limits of a pack, or the number of steps."""


class Lost(NamedTuple):
    """A sample that is not used as it is: `name:line` of its file, what happened to it, where, and why."""

    id: str
    what: Literal["dropped", "truncated", "unseen"]
    stage: Stage
    reason: str


class LostLine(TypedDict):
    """One line of ledger.jsonl: a `Lost` sample and its step."""

    step: int
    id: str
    what: Literal["dropped", "truncated", "unseen"]
    stage: Stage
    reason: str


class Ledger:
    """Every sample that was not used as it is. The counts add up: in = used + dropped + truncated + replaced.

    `used` are those used as they are; truncated ones are trained on too. None is ever replaced, so that count is 0.
    """

    def __init__(self, folder: Path, counts: dict[str, int] | None = None, *, writes: bool = True):
        self.log, self.writes = Log(folder / "ledger.jsonl"), writes
        self.counts = dict.fromkeys(("in", "used", "dropped", "truncated", "replaced"), 0) | (counts or {})

    def add(self, step: int, n_samples: int, lost: list[Lost]) -> None:
        """Count the samples of a step. All ranks count, one writes."""
        self.counts["in"] += n_samples
        self.counts["used"] += n_samples - len(lost)
        for one in lost:
            self.counts[one.what] += 1
            if self.writes:
                self.log.write(step=step, **one._asdict())

    def add_unseen(self, total: int, names: list[str]) -> None:
        """Name the samples that no step of the run takes, after its last one; they are in none of the counts."""
        self.log.cut(total)
        for name in names:
            why = "the end of the last pass does not fill a step"
            self.log.write(step=total, **Lost(name, "unseen", "plan", why)._asdict())


@dataclass(frozen=True)
class Account:
    """Ledger of one stage of training, checked against its metrics.

    `reasons`: (what, stage, reason) -> samples; `open` says where the counts do not add up, empty if they do.
    """

    recipe: str
    steps: int
    counts: dict[str, int]
    reasons: dict[tuple[str, str, str], int]
    entries: list[LostLine]
    open: list[str]


def read_account(folder: Path) -> Account:
    """Read the account of a stage (`RUN/train/RECIPE`), finished or not.

    >>> read_account(Path("runs/quickstart/train/quickstart-v2pe-sft")).counts["dropped"]     # doctest: +SKIP
    0

    Samples that came in are counted from the steps and the recipe, those trained on from metrics.jsonl, those lost from
    ledger.jsonl; the three must agree, also with summary.json once that exists.

    Raises:
        DataError: no run in that folder.
    """
    if not (folder / "recipe.json").exists():
        raise DataError(
            f"no training run in {folder}", expected="a folder with recipe.json", fix="name RUN/train/RECIPE"
        )
    logs = [Log(folder / name) for name in ("metrics.jsonl", "ledger.jsonl")]
    try:
        recipe, samples = samples_of_steps(read_json(folder / "recipe.json"))
        steps, entries = logs[0].read(), logs[1].read()
        done = max((line["step"] + 1 for line in [*steps, *entries] if line.get("what") != "unseen"), default=0)
        what = Counter(str(e["what"]) for e in entries)
        trained = sum(line["samples"] for line in steps)
        reasons = Counter((e["what"], e.get("stage", ""), short(e["reason"], e["id"])) for e in entries)
        taken = sum(samples(step) for step in range(done))
    except (KeyError, TypeError, AttributeError) as error:
        found = f"{folder} is damaged: a line of its files lacks {error}"
        raise DataError(found, fix="rerun the training: it goes on from its last checkpoint") from error
    counts = {
        "in": taken,
        "used": trained - what["truncated"],
        **{k: what[k] for k in ("dropped", "truncated", "replaced")},
    }
    problems = [f"{log.damaged} lines of {log.path.name} cannot be read" for log in logs if log.damaged]
    if counts["in"] != sum(counts.values()) - counts["in"]:
        problems.append("in is not used + dropped + truncated + replaced")
    summary = folder / "summary.json"
    if summary.exists():
        said = read_json(summary)
        final = said.get("ledger") if isinstance(said, dict) else None
        final = final if isinstance(final, dict) else {}
        differ = [k for k in ("in", "dropped", "truncated") if final.get(k) != counts[k]]
        problems += [f"summary.json says {k} {final.get(k)}, the logs say {counts[k]}" for k in differ]
    return Account(recipe, done, counts, dict(reasons.most_common()), entries, problems)  # type: ignore[arg-type]


def samples_of_steps(run: Any) -> tuple[str, Callable[[int], int]]:
    """Return the name of the recipe in a recipe.json, and a function from a step to the samples that it took."""
    sizes = [(part["steps"], part["recipe"]["batch"]["samples"]) for part in run.get("earlier", ())]
    last = run["recipe"]["batch"]["samples"]
    return run["recipe"]["name"], lambda step: next((n for end, n in sizes if step < end), last)


def short(reason: str, id: str) -> str:
    """Return the first line of a reason without names, lines and paths, so that equal faults count as one."""
    line = re.sub(r"^\S+\.jsonl:\d+: ", "", reason.splitlines()[0]).replace(id, "")
    return re.sub(r"(/[^\s:]+)+", "FILE", line)
