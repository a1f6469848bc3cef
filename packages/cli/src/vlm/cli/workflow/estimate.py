"""What a dry run of the DAG amounts to: jobs by rule, bytes and licenses, GPU-hours of the training jobs, and the steps
that only a person can take."""

import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from contextlib import redirect_stdout
from itertools import takewhile, zip_longest
from typing import Any, NamedTuple

from vlm.cli.workflow.dag import entry
from vlm.core.errors import VlmError
from vlm.core.fetch.catalogue import Entry, HubSource
from vlm.core.fetch.installed import entry_state
from vlm.eval.benchmark import load_benchmark

HEAD = re.compile(r"^(?:local)?(?:rule|checkpoint) (\w+):$", re.MULTILINE)
SHELL = re.compile(r"^ *Shell command: (.*)$", re.MULTILINE)


class Job(NamedTuple):
    """One job of a dry run: its rule, and the words of its `vlm` command (none for a target)."""

    rule: str
    words: list[str]


def read_jobs(said: str) -> list[Job]:
    """The jobs that `snakemake -n --printshellcmds` printed; what stands before `vlm` (`srun …`) is left out."""
    jobs = []
    heads = [*HEAD.finditer(said)]
    for head, following in zip_longest(heads, heads[1:]):
        shell = SHELL.search(said, head.end(), following.start() if following else len(said))
        words = shlex.split(shell[1].split(" > ")[0]) if shell else []
        jobs.append(Job(head[1], words[words.index("vlm") + 1 :] if "vlm" in words else []))
    return jobs


def given(jobs: Iterable[Job], *verbs: str) -> list[str]:
    """The names that commands such as `download` were given before their flags, each once."""
    n = len(verbs)
    named = [job.words[n:] for job in jobs if tuple(job.words[:n]) == verbs]
    return list(dict.fromkeys(name for words in named for name in takewhile(lambda w: not w.startswith("-"), words)))


def estimate(jobs: list[Job]) -> dict[str, Any]:
    """`jobs` by rule, `downloads` and their `bytes`, `training` with GPU-hours, and `steps` by hand; ready for JSON.

    Sums are those of what is known; `bytes_unknown` and `gpu_hours_unknown` name the rest.
    """
    fetched = [entry(name) for name in given(jobs, "download")]
    made = [entry(name) for name in given([job for job in jobs if job.rule.startswith("organize")], "data", "organize")]
    involved = sorted({e.name: e for e in [*fetched, *made]}.values(), key=lambda e: e.name.lower())
    training = [plan(job) for job in jobs if job.words[:1] == ["train"]]
    benchmarks = sorted({job.words[1] for job in jobs if job.words[:1] == ["eval"]})
    return {
        "jobs": dict(Counter(job.rule for job in jobs)),
        "downloads": [
            {"name": e.name, "bytes": e.size, "licence": e.license, "terms": e.terms, "state": entry_state(e)}
            for e in sorted(fetched, key=lambda e: (-(e.size or 0), e.name.lower()))
        ],
        "bytes": sum(e.size or 0 for e in fetched),
        "bytes_unknown": [e.name for e in fetched if e.size is None],
        "training": training,
        "gpu_hours": sum(stage["gpu_hours"] or 0 for stage in training),
        "gpu_hours_unknown": [stage["recipe"] for stage in training if stage["gpu_hours"] is None],
        "steps": [*by_hand(involved), *outside(benchmarks)],
    }


def plan(job: Job) -> dict[str, Any]:
    """What `vlm plan` says of a training job; where the number of steps is unknown `gpu_hours` is None, `why` says why,
    and `gpu_hours_per_1000_steps` is all there is."""
    from typer.main import get_command

    from vlm.cli.commands.plan import app

    words = job.words
    recipe = words[words.index("--recipe") + 1]
    options = [part for flag in ("--processes", "--set") for part in flagged(words, flag)]
    said, why = io.StringIO(), ""
    try:
        with redirect_stdout(said):
            get_command(app).main([recipe, *options, "--json"], standalone_mode=False)
    except VlmError as error:  # it does not fit: the numbers are printed all the same
        why = error.found
    cost = json.loads(said.getvalue() or "{}")
    expected = cost.get("estimate", {})
    step = expected.get("seconds")
    return {
        "recipe": recipe,
        "gpus": cost.get("processes"),
        "machine": expected.get("machine"),
        "gpu_hours": expected.get("gpu_hours"),
        "gpu_hours_per_1000_steps": 1000 * step * expected["gpus"] / 3600 if step else None,
        "why": why or ("" if cost.get("steps") else "number of steps unknown until the data are here"),
    }


def flagged(words: list[str], flag: str) -> list[str]:
    """Each occurrence of a flag with its value."""
    return [word for i, name in enumerate(words) if name == flag for word in words[i : i + 2]]


def by_hand(entries: Iterable[Entry]) -> list[str]:
    """What a person has to fetch or to pin before the jobs of these entries can run."""
    lines = []
    for e in entries:
        for source in e.by_hand():
            mirror = f" Mirror: {source.mirror}" if source.mirror else ""
            lines.append(f"{e.name}, into {e.folder}: {source.instructions}{mirror}")
        open_ = [s.repo for s in e.source if isinstance(s, HubSource) and not s.revision]
        lines += [
            f"{e.name}: choose a commit of {repo} on the hub: vlm download {e.name} --revision COMMIT" for repo in open_
        ]
    return lines


def outside(benchmarks: Iterable[str]) -> list[str]:
    """Benchmarks whose score needs a judge or a server that is not ours."""
    lines = []
    for name in benchmarks:
        table = load_benchmark(name)
        if table.judge:
            lines.append(
                f"{table.name}: a judge scores it; --judge-url and --judge-model belong in the model's `flags`"
            )
        if table.server_scored and table.submission:
            lines.append(f"{table.name}: send {table.submission.file} to {table.submission.server}")
    return lines
