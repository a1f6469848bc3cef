"""The table of the workflow's rules: their jobs, times and memory."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypedDict

from vlm.eval.report.gather.workflow import RuleJob


class RuleRow(TypedDict):
    """A rule of one run: jobs, wall seconds in all and of the longest job, CPU seconds, largest memory in MB."""

    run: str
    rule: str
    jobs: int
    seconds: float | None
    longest: float | None
    longest_job: str
    cpu_seconds: float | None
    max_rss_mb: float | None


def rule_rows(jobs: Sequence[RuleJob]) -> list[RuleRow]:
    """Sum the jobs of each run and rule, the slowest rule of a run first."""
    groups: dict[tuple[str, str], list[RuleJob]] = defaultdict(list)
    for job in jobs:
        groups[job.run, job.rule].append(job)
    rows: list[RuleRow] = []
    for (run, rule), part in groups.items():
        seconds = [job.seconds for job in part if job.seconds is not None]
        cpu = [job.cpu_seconds for job in part if job.cpu_seconds is not None]
        memory = [job.max_rss_mb for job in part if job.max_rss_mb is not None]
        longest = max(part, key=lambda job: job.seconds or 0)
        rows.append(
            {
                "run": run,
                "rule": rule,
                "jobs": len(part),
                "seconds": sum(seconds) if seconds else None,
                "longest": max(seconds, default=None),
                "longest_job": longest.name,
                "cpu_seconds": sum(cpu) if cpu else None,
                "max_rss_mb": max(memory, default=None),
            }
        )
    return sorted(rows, key=lambda row: (row["run"], -(row["seconds"] or 0), row["rule"]))
