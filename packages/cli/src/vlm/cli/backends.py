"""The model that `vlm eval` asks: a checkpoint in this process or over a ring, or a server; and the judge."""

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vlm.cli.find import model_name
from vlm.cli.options import JudgeOptions, PlacementOptions, ServerOptions
from vlm.cli.show.say import say
from vlm.core.errors import ConfigError, UnknownName
from vlm.core.extras import uncollected
from vlm.core.paths import as_name

if TYPE_CHECKING:
    from vlm.eval.backends.base import Backend, Drawing
    from vlm.eval.backends.judge import Judge
    from vlm.eval.benchmark import Benchmark
    from vlm.eval.run.runner import Options
    from vlm.eval.run.summary import Summary
    from vlm.models.sequence.group import SequenceGroup
    from vlm.models.specs import ModelSpec


@dataclass(frozen=True)
class AskedModel:
    """A model that answers: its name in results, its own stride, and its backend for a benchmark and options.

    `follows`: this process only takes part in what the first process of its ring asks. `spec`: of a checkpoint here.
    """

    name: str
    stride: float | None
    backend: "Callable[[Benchmark, Options], Backend]"
    follows: bool = False
    spec: "ModelSpec | None" = None


def native(
    path: Path,
    placement: PlacementOptions,
    *,
    attention: str,
    max_length: int | None,
    group: "SequenceGroup | None" = None,
    drawing: "Drawing | None" = None,
) -> AskedModel:
    """Return a checkpoint in this process, or with `group` over a ring; weights are read at the first question."""
    from vlm.eval.backends.native import Checkpoint, NativeBackend
    from vlm.eval.backends.teacher_forcing import RingBackend, TeacherForcedBackend

    with uncollected():
        import vlm.models.answers  # noqa: F401  # all that answering needs, in one go

        checkpoint = Checkpoint(path, attention=attention, **asdict(placement))

    def backend(table: "Benchmark", options: "Options") -> "Backend":
        rule = table.image_override(checkpoint.processor.family)
        if checkpoint.processor.spec.image_rule.kind == "whole":  # a benchmark's limit is one of 448-pixel tiles
            rule.pop("max_tiles", None)
        if options.tiles:
            rule["max_tiles"] = options.tiles
        if table.teacher_forced and (placement.kv_dtype != "auto" or placement.kv_offload):
            raise ConfigError(
                f"--kv-dtype or --kv-offload with {table.name}, which is one forward pass and keeps no keys and values",
                fix="leave them out",
            )
        settings: dict[str, Any] = {"stride": options.stride, "positions": options.positions, "max_length": max_length}
        if group is not None:
            return RingBackend(checkpoint, image_rule=rule, group=group, **settings)
        if table.teacher_forced:
            return TeacherForcedBackend(checkpoint, image_rule=rule, **settings)
        return NativeBackend(checkpoint, image_rule=rule, drawing=drawing, **settings)

    spec = checkpoint.processor.spec
    return AskedModel(model_name(path), spec.strides, backend, group is not None and group.rank > 0, spec)


def server(options: ServerOptions, model: str | None, *, family: str, drawing: "Drawing | None" = None) -> AskedModel:
    """Return a model behind an OpenAI-compatible server.

    Raises:
        FetchError: no answer. ConfigError: no address, no such model or family, or no key where one is named.
    """
    from vlm.eval.backends.endpoint import Endpoint
    from vlm.eval.backends.openai import OpenAIBackend, ServerDown

    if options.base_url is None:
        raise ConfigError("--backend openai without --base-url", expected="--base-url http://HOST:PORT/v1")
    check_family(family)
    endpoint = Endpoint(
        options.base_url,
        key=key_of(options.api_key_env, "VLM_API_KEY"),
        timeout=options.timeout,
        rate=options.rate,
    )
    try:
        found = OpenAIBackend(
            endpoint,
            model,
            family=family,
            concurrency=options.concurrency,
            newline=options.newline,
            drawing=drawing,
        )
    except ServerDown as stop:
        raise stop.error from stop

    def backend(table: "Benchmark", options: "Options") -> "Backend":
        if table.teacher_forced:
            raise ConfigError(
                f"{table.name} reads the model's probabilities of a given answer", expected="--backend native"
            )
        return found

    return AskedModel(as_name(found.model.rsplit("/", 1)[-1]), None, backend)


def ring(processes: int, tables: "list[Benchmark]") -> "SequenceGroup | None":
    """Return the processes that hold each sample together, as torchrun or srun started them; None for one process.

    When nothing started them, they are started here, and this process ends when they do.

    Raises:
        ConfigError: a benchmark that is not teacher-forced, or another number of processes.
    """
    from vlm.train.launch.launch import end_with_launcher, launch
    from vlm.train.launch.slurm import adopt

    if processes == 1:
        return None
    if others := [table.name for table in tables if not table.teacher_forced]:
        raise ConfigError(
            f"--processes {processes} with {', '.join(others)}, where a model answers by itself",
            expected="a teacher-forced benchmark (MM-NIAH-long-…)",
            fix="--shard I/N shares the items among processes",
        )
    adopt(processes)
    if "RANK" not in os.environ:
        raise typer.Exit(launch([sys.executable, "-m", "vlm.cli.main", *sys.argv[1:]], processes))
    end_with_launcher()
    from vlm.train.run.processes import meshed, world

    return meshed(world(), processes).sequence


def run_one(
    asked: AskedModel, table: "Benchmark", folder: Path, options: "Options", target: Path, judge: "Judge | None" = None
) -> "Summary | None":
    """Run one benchmark with one stride, with a progress bar; return None for a shard that leaves items to others.

    Raises:
        FetchError: a server stopped answering; what was answered is kept. CheckpointError, HardwareError: weights that
            cannot be loaded.
    """
    from vlm.cli.show.evaluation import progress_bar
    from vlm.eval.backends.base import Stopped
    from vlm.eval.backends.teacher_forcing import RingBackend
    from vlm.eval.run.runner import run_evaluation

    backend, whole = asked.backend(table, options), True
    if asked.follows:
        assert isinstance(backend, RingBackend)
        backend.follow()
        return None
    try:
        with progress_bar(f"{table.title} · {options.folder}") as progress:
            return run_evaluation(table, backend, target, options, data=folder, progress=progress, judge=judge)
    except Stopped as stop:
        whole = False  # the other processes hang in a sample: the launcher ends them
        raise stop.error from stop
    finally:
        if note := getattr(backend, "note", ""):
            say(f"{asked.name}: {note}", err=True)
        if whole and isinstance(backend, RingBackend):
            backend.end()


def make_judge(options: JudgeOptions, cache: Path) -> "Judge | None":
    """Return the judge that the options name; None without one. `cache`: folder of its replies."""
    from vlm.eval.backends.judge import Judge

    url, model = options.judge_url, options.judge_model
    if (url is None) != (model is None):
        raise ConfigError("half a judge", expected="both --judge-url and --judge-model, or neither")
    key = key_of(options.judge_key_env, "VLM_JUDGE_KEY")
    return Judge(url, model, cache=cache, key=key) if url and model else None


def key_of(variable: str | None, usual: str) -> str | None:
    """Return the key in an environment variable; a variable that was named must be set."""
    if variable is not None and variable not in os.environ:
        raise ConfigError(f"the environment variable {variable} is not set", fix=f"export {variable}=…")
    return os.environ.get(variable or usual)


def check_family(family: str) -> None:
    """Raise UnknownName for a family that no table names; "" is the tables' own."""
    from vlm.core.home import home
    from vlm.eval.benchmark import ASKED_LIKE, load_benchmark, tables

    named = (load_benchmark(bench, home()).families for bench in tables(home())) if family else ()
    known = {name for families in named for name in families} | ASKED_LIKE.keys() if family else {""}
    if family not in known:
        raise UnknownName("family", family, known)


def check_backend(backend: str, base_url: str | None, native_only: dict[str, Any]) -> None:
    """Raise ConfigError for options of the other backend: none is ignored."""
    if backend not in ("native", "openai"):
        raise UnknownName("backend", backend, ("native", "openai"))
    if backend == "native" and base_url:
        raise ConfigError("--base-url with the native backend", expected="--backend openai")
    usual: dict[str, Any] = {"positions": "exact", "device": "auto", "dtype": "float32", "attention": "auto"}
    usual |= {"processes": 1, "workers": 1, "kv_dtype": "auto", "kv_offload": False}
    given = [f"--{key.replace('_', '-')}" for key, value in native_only.items() if value != usual.get(key)]
    if backend == "openai" and given:
        raise ConfigError(
            f"{', '.join(given)} with --backend openai", expected="settings of the server, to be set there"
        )
