"""How far an evaluation is, in a file for whoever looks: `vlm view` shows it while the evaluation runs."""

import json
import time
from pathlib import Path

from vlm.core.home import new_file

PAUSE = 1.0
"""Least seconds between two writes."""

FILE = "progress.json"


class ProgressFile:
    """Writes items done, items in all and the mean score so far, at most once a second and at the end.

    `first` of the items were answered before this command, which has run for `seconds`.

    >>> told = ProgressFile(Path("runs/eval/m/POPE/default"))         # doctest: +SKIP
    >>> told(8, 500, 0.75)                                            # doctest: +SKIP
    """

    def __init__(self, folder: Path):
        self.path, self.began, self.written = folder / FILE, time.monotonic(), 0.0
        self.first: int | None = None

    def __call__(self, done: int, total: int, score: float | None) -> None:
        """Say how far it is. `score` is from 0 to 1, None while nothing is scored."""
        now = time.monotonic()
        if self.first is None:
            self.first = done
        elif done < total and now - self.written < PAUSE:
            return
        self.written = now
        seconds = round(now - self.began, 3)
        content = {"done": done, "total": total, "score": score, "first": self.first, "seconds": seconds}
        with new_file(self.path, held=True, flush=False) as temporary:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
