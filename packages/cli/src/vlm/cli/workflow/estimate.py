"""What a dry run of the DAG adds up to: jobs, bytes and licenses, GPU-hours of the training jobs, steps by hand.

>>> estimate_dag(planned_jobs(["v2pe", "--profile", "profiles/slurm"]))["gpu_hours"]      # doctest: +SKIP
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import TypedDict

from vlm.cli.workflow.dag import entry
from vlm.cli.workflow.jobs import DagJob
from vlm.core.errors import VlmError
from vlm.core.fetch.catalogue import Entry, HubSource
from vlm.core.fetch.installed import entry_state
from vlm.eval.benchmark import load_benchmark


class DownloadRow(TypedDict):
    """One entry of the catalogue to fetch; `bytes` is None where the size is unknown."""

    name: str
    bytes: int | None
    licence: str
    terms: str
    state: str


class StageCost(TypedDict):
    """Predicted cost of one training job.

    `why` says why something is unknown. While the number of steps is unknown, `gpu_hours` is None and
    `gpu_hours_per_1000_steps` is all that is known.
    """

    recipe: str
    gpus: int | None
    machine: str | None
    gpu_hours: float | None
    gpu_hours_per_1000_steps: float | None
    why: str


class DagEstimate(TypedDict):
    """What a dry run adds up to. Sums are of what is known; `*_unknown` name the rest."""

    jobs: dict[str, int]
    downloads: list[DownloadRow]
    bytes: int
    bytes_unknown: list[str]
    training: list[StageCost]
    gpu_hours: float
    gpu_hours_unknown: list[str]
    steps: list[str]


def named(jobs: Iterable[DagJob], *verbs: str) -> list[str]:
    """Return the names that commands such as `download` are given before their options, each once."""
    n = len(verbs)
    given = [job.words[n:] for job in jobs if tuple(job.words[:n]) == verbs]
    return list(dict.fromkeys(name for words in given for name in takewhile(lambda w: not w.startswith("-"), words)))


def estimate_dag(jobs: Sequence[DagJob]) -> DagEstimate:
    """Add up jobs by rule, downloads, training, and the steps that only a person can take; ready for JSON."""
    fetched = [entry(name) for name in named(jobs, "download")]
    made = [entry(name) for name in named([job for job in jobs if job.rule.startswith("organize")], "data", "organize")]
    involved = sorted({e.name: e for e in [*fetched, *made]}.values(), key=lambda e: e.name.lower())
    training = [stage_cost(job.words) for job in jobs if job.words[:1] == ["train"]]
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


def stage_cost(words: Sequence[str]) -> StageCost:
    """Predict what a job `vlm train ...` costs, by the plan of its run."""
    from vlm.train.plan.fit import misfit
    from vlm.train.plan.run_plan import RunPlan
    from vlm.train.recipe.recipe import load_recipe

    (name,), processes = values(words, "--recipe"), values(words, "--processes")
    try:
        recipe = load_recipe(name, overrides=tuple(values(words, "--set")))
        plan = RunPlan.resolve(recipe, int(processes[0]) if processes else None)
        found = plan.estimate
    except VlmError as error:
        return {
            "recipe": name,
            "gpus": None,
            "machine": None,
            "gpu_hours": None,
            "gpu_hours_per_1000_steps": None,
            "why": error.found,
        }
    problem = misfit(recipe.name, found)
    unknown = "" if plan.steps else "number of steps unknown until the data are here"
    return {
        "recipe": name,
        "gpus": plan.processes,
        "machine": found.machine,
        "gpu_hours": found.gpu_hours,
        "gpu_hours_per_1000_steps": 1000 * found.seconds * found.gpus / 3600,
        "why": problem.found if problem else unknown,
    }


def values(words: Sequence[str], flag: str) -> list[str]:
    """Return the value of each occurrence of an option."""
    return [words[i + 1] for i, name in enumerate(words) if name == flag]


def by_hand(entries: Iterable[Entry]) -> list[str]:
    """List what a person has to fetch or to pin before the jobs of these entries can run."""
    lines = []
    for e in entries:
        for source in e.by_hand():
            mirror = f" Mirror: {source.mirror}" if source.mirror else ""
            lines.append(f"{e.name}, into {e.folder}: {source.instructions}{mirror}")
        open_ = [s.repo for s in e.source if isinstance(s, HubSource) and not s.revision]
        lines += [
            f"{e.name}: the newest commit of {repo} is taken; for another: vlm download {e.name} --revision COMMIT"
            for repo in open_
        ]
    return lines


def outside(benchmarks: Iterable[str]) -> list[str]:
    """List the benchmarks whose score needs a judge, or a server that is not ours."""
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
