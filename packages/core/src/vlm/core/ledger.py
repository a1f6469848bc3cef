"""What of a set cannot be used, record by record, and counts that close: in = used + dropped."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vlm.core.home import write_atomic


@dataclass(frozen=True)
class DroppedRecord:
    """One record or file that is not used. `id`: `file:line` or a file; `stage`: read, media or convert."""

    id: str
    stage: str
    reason: str


@dataclass(frozen=True)
class Count:
    """Records of one file; `renamed` of the used ones had a path corrected."""

    records: int
    used: int
    dropped: int
    renamed: int = 0


@dataclass
class SetAccount:
    """What a step made of the folder: files (name -> bytes) and links (name -> target) of this run or an earlier one,
    losses, counts per annotation file, and what it lacked."""

    files: dict[str, int] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    losses: list[DroppedRecord] = field(default_factory=list)
    counts: dict[str, Count] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def add(self, other: "SetAccount") -> None:
        """Take over all that `other` holds."""
        self.files |= other.files
        self.links |= other.links
        self.losses += other.losses
        self.counts |= other.counts
        self.missing += other.missing


def write_ledger(path: Path, losses: Iterable[DroppedRecord]) -> None:
    """One JSON object a line, at once or not at all; an empty file says that nothing was lost."""
    write_atomic(path, "".join(json.dumps(asdict(loss), ensure_ascii=False) + "\n" for loss in losses))
