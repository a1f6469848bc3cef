"""Snakemake's terminal as stages: `snakemake --logger vlm`. Its own log stays in .snakemake/log, which is named.

Snakemake finds loggers by this package's name. A stage is a rule: a line when its first job starts, one when its last
job is done. A training, which takes long, has lines of its own. Errors are shown as Snakemake shows them.
"""

import logging
import sys
from collections import Counter
from typing import Any, NamedTuple

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from vlm.core.progress import duration
from vlm.core.text import printable, printable_lines

NAMES = {
    "download": "download",
    "organize": "organize",
    "organize_published": "organize published sets",
    "tokenizer": "make the tokenizer",
    "haystack": "build haystacks",
    "miniature": "draw miniature benchmarks",
    "start_checkpoint": "make start checkpoints",
    "train_stage": "train",
    "evaluate_shard": "evaluate shards",
    "evaluate_model": "evaluate",
    "report": "write the report",
    "report_system": "write reports of systems",
}
"""Rule -> what its stage is called; other rules keep their names."""

ALONE = ("train_stage",)
"""Rules of which each job has lines of its own."""


class StartedJob(NamedTuple):
    """A job that runs: its rule, what it is called, its log, and when it was started."""

    rule: str
    name: str
    log: str
    started: float


class LogHandler(LogHandlerBase):
    """What Snakemake says, in a line or two for each stage."""

    def __post_init__(self) -> None:
        self.jobs: dict[int, StartedJob] = {}
        self.counts: dict[str, int] = {}
        self.done: Counter[str] = Counter()
        self.began: dict[str, float] = {}
        self.first = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, if it is one that a person waits for."""
        try:
            event, said = getattr(record, "event", None), record.__dict__
            if self.common_settings.dryrun or record.levelno >= logging.ERROR:
                if event != LogEvent.WORKFLOW_STARTED:
                    self.show(self.format(record))
            elif event == LogEvent.RUN_INFO:
                self.plan(said.get("stats") or {}, record.created)
            elif event == LogEvent.JOB_INFO:
                self.start(said, record.created)
            elif event == LogEvent.JOB_FINISHED:
                self.finish(said.get("job_id"), record.created)
            elif event is None and self.worth_saying(record):
                self.show(record.getMessage())
        except Exception:  # noqa: BLE001  # as every handler of logging does: a line that fails must not end the run
            self.handleError(record)

    def worth_saying(self, record: logging.LogRecord) -> bool:
        """Return whether a message without an event is for a person: warnings, and the two that say how it ended."""
        text = str(record.msg or "")
        return record.levelno >= logging.WARNING or text.startswith(("Complete log", "Nothing to be done"))

    def plan(self, stats: dict[str, Any], now: float) -> None:
        """Say what there is to do."""
        self.counts = {str(rule): int(n) for rule, n in stats.items() if rule not in ("total", "all")}
        self.first = now
        stages = ", ".join(f"{named(rule)} {n}" for rule, n in self.counts.items())
        self.show(f"{sum(self.counts.values())} jobs: {stages}")

    def start(self, said: dict[str, Any], now: float) -> None:
        """Say that a stage begins, or a job that has lines of its own."""
        rule = str(said.get("rule_name"))
        words = said.get("wildcards") or {}
        name = printable(" ".join(map(str, words.values() if isinstance(words, dict) else words)))
        log = printable(", ".join(map(str, said.get("log") or ())))
        self.jobs[int(said["jobid"])] = StartedJob(rule, name, log, now)
        if rule not in self.began:
            self.began[rule] = now
            if rule not in ALONE and rule in self.counts:
                self.show(f"{self.at()} {named(rule)} ...")
        if rule in ALONE:
            self.show(f"{self.at()} {named(rule)} {name} ... (log: {log})")

    def finish(self, number: Any, now: float) -> None:
        """Say that a stage is done, or a job that has lines of its own."""
        job = self.jobs.pop(number, None) if isinstance(number, int) else None
        if job is None:
            return
        self.done[job.rule] += 1
        if job.rule in ALONE:
            self.show(f"{self.at()} {named(job.rule)} {job.name}: done in {duration(now - job.started)}")
        elif job.rule in self.counts and self.done[job.rule] >= self.counts[job.rule]:
            self.show(f"{self.at()} {named(job.rule)}: done in {duration(now - self.began[job.rule])}")

    def at(self) -> str:
        """Return how many jobs of how many are done."""
        done = sum(n for rule, n in self.done.items() if rule in self.counts)
        total = str(sum(self.counts.values()))
        return f"[{done:>{len(total)}}/{total}]"

    def show(self, text: str) -> None:
        """Print lines where Snakemake prints them."""
        stream = sys.stdout if self.common_settings.stdout else sys.stderr
        stream.write(printable_lines(text.rstrip()) + "\n")
        stream.flush()

    @property
    def writes_to_stream(self) -> bool:
        """Whether it takes the place of Snakemake's own lines on the terminal."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """Whether it writes a file: Snakemake writes its own as ever."""
        return False

    @property
    def has_filter(self) -> bool:
        """Whether Snakemake should not filter what it gets."""
        return False

    @property
    def has_formatter(self) -> bool:
        """Whether Snakemake should not format its errors."""
        return False

    @property
    def needs_rulegraph(self) -> bool:
        """Whether it needs the graph of rules."""
        return False


def named(rule: str) -> str:
    """Return what a stage is called."""
    return NAMES.get(rule, rule)
