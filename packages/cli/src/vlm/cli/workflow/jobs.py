"""The jobs that Snakemake would run, asked of Snakemake itself in this process.

>>> [job.rule for job in planned_jobs(["convllava", "--profile", "profiles/slurm"])]      # doctest: +SKIP
['download', 'organize_published', 'train_stage', ...]

A dry run logs one record for each job, with the event JOB_INFO of Snakemake's logger interface; its fields are read, no
text of the screen.
"""

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from vlm.core.errors import VlmError


class DagJob(NamedTuple):
    """One job of the DAG: its rule, and the words of its command after `vlm` (none for a target)."""

    rule: str
    words: list[str]


class _JobRecords(logging.Filter):
    """A filter that keeps the jobs and errors among Snakemake's records, and lets none through to the screen."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[DagJob] = []
        self.errors: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep a job or an error."""
        if getattr(record, "event", None) == "job_info":
            self.jobs.append(make_job(record.__dict__["rule_name"], record.__dict__["shellcmd"]))
        elif record.levelno >= logging.ERROR:
            self.errors.append(record.getMessage())
        return False


def make_job(rule: str, shell: str | None) -> DagJob:
    """Return the job of a rule and its shell command, without a launcher before `vlm` and without redirection."""
    words = shlex.split(shell.split(" > ")[0]) if shell else []
    return DagJob(rule, words[words.index("vlm") + 1 :] if "vlm" in words else [])


@contextmanager
def _recorded() -> Iterator[_JobRecords]:
    from snakemake.logging import logger

    kept = _JobRecords()
    logger.addFilter(kept)
    try:
        yield kept
    finally:
        logger.removeFilter(kept)


def planned_jobs(options: Sequence[str]) -> list[DagJob]:
    """Return the jobs that `snakemake OPTIONS` would run in the working directory; run nothing.

    Raises:
        VlmError: the DAG does not resolve, with Snakemake's errors.
    """
    from snakemake.cli import args_to_api, parse_args

    with _recorded() as kept:
        parser, args = parse_args([*options, "--dry-run", "--nocolor"])
        done = args_to_api(args, parser)
    if not done:
        raise VlmError("the DAG does not resolve:\n" + "\n".join(kept.errors)[-3000:].strip())
    return kept.jobs
