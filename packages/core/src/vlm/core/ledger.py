"""The records of a set that cannot be used, and counts that add up: in = used + dropped."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vlm.core.home import write_atomic


@dataclass(frozen=True)
class DroppedRecord:
    """One record or file that is not used.

    `id` is `file:line` or a file; `stage` is read, media or convert; `reason` says what is wrong.
    """

    id: str
    stage: str
    reason: str


@dataclass(frozen=True)
class Count:
    """Records of one annotation file; in `renamed` of the used ones a path was corrected."""

    records: int
    used: int
    dropped: int
    renamed: int = 0


@dataclass
class SetAccount:
    """The result of a step in the folder of a set, from this run or an earlier one.

    `files` maps names to bytes, `links` names to targets, `counts` annotation files to their records; `losses` are the
    dropped records, and `missing` names the inputs that the step did not find.
    """

    files: dict[str, int] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    losses: list[DroppedRecord] = field(default_factory=list)
    counts: dict[str, Count] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def add(self, other: "SetAccount") -> None:
        """Add everything that `other` holds."""
        self.files |= other.files
        self.links |= other.links
        self.losses += other.losses
        self.counts |= other.counts
        self.missing += other.missing


NOTHING = DroppedRecord("", "none", "no record was dropped")
"""The only line of a ledger without losses: a file of no lines is one that `datasets` and others cannot load."""


def write_ledger(path: Path, losses: Iterable[DroppedRecord]) -> None:
    """Write dropped records as JSONL, atomically; one line that says so where none was dropped."""
    losses = list(losses) or [NOTHING]
    write_atomic(path, "".join(json.dumps(asdict(loss), ensure_ascii=False) + "\n" for loss in losses))
