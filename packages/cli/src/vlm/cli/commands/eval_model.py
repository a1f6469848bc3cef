"""Which model `vlm eval` asks, by which backend, and where the benchmark's files lie."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vlm.core.errors import ConfigError, DataError, UnknownName

if TYPE_CHECKING:
    from vlm.eval.backends.judge import Judge
    from vlm.eval.backends.native import Backend
    from vlm.eval.benchmark import Benchmark
    from vlm.eval.run.runner import Options
    from vlm.models.sequence.group import SequenceGroup


@dataclass(frozen=True)
class Asked:
    """A model that can be asked: its name in results, its own strides, and the backend for a benchmark and options.

    `follows`: this process only takes part in what the first of its ring asks.
    """

    name: str
    stride: float | None
    backend: "Callable[[Benchmark, Options], Backend]"
    follows: bool = False


def native(path: Path, *, max_length: int | None, group: "SequenceGroup | None" = None, **placement: Any) -> Asked:
    """A checkpoint in this process, or with `group` over a ring; the weights are read once, at the first question.

    `placement`: device, dtype, quantize, offload and attention of `Checkpoint`.
    """
    from vlm.eval.backends.native import Checkpoint, NativeBackend
    from vlm.eval.backends.teacher_forcing import RingBackend, TeacherForcedBackend

    checkpoint = Checkpoint(path, **placement)

    def backend(table: "Benchmark", options: "Options") -> "Backend":
        rule = table.image_override(checkpoint.processor.family)
        if options.tiles:
            rule["max_tiles"] = options.tiles
        settings: dict[str, Any] = {"stride": options.stride, "positions": options.positions, "max_length": max_length}
        if group is not None:
            return RingBackend(checkpoint, image_rule=rule, group=group, **settings)
        kind = TeacherForcedBackend if table.teacher_forced else NativeBackend
        return kind(checkpoint, image_rule=rule, **settings)

    return Asked(model_name(path), checkpoint.processor.spec.strides, backend, group is not None and group.rank > 0)


def server(
    url: str | None,
    model: str | None,
    *,
    key_env: str | None,
    family: str,
    concurrency: int,
    rate: float | None,
    timeout: float,
) -> Asked:
    """A model behind an OpenAI-compatible server.

    Raises:
        FetchError: no answer. ConfigError: no address, no such model or family, or no key where one is named.
    """
    from vlm.eval.backends.endpoint import Endpoint
    from vlm.eval.backends.openai import OpenAIBackend, ServerDown

    if url is None:
        raise ConfigError("--backend openai without --base-url", expected="--base-url http://HOST:PORT/v1")
    check_family(family)
    endpoint = Endpoint(url, key=key_of(key_env, "VLM_API_KEY"), timeout=timeout, rate=rate)
    try:
        found = OpenAIBackend(endpoint, model, family=family, concurrency=concurrency)
    except ServerDown as stop:
        raise stop.error from stop

    def backend(table: "Benchmark", options: "Options") -> "Backend":
        if table.teacher_forced:
            raise ConfigError(f"{table.name} reads what a model makes of a given answer", expected="--backend native")
        return found

    return Asked(found.model.rsplit("/", 1)[-1], None, backend)


def ring(processes: int, tables: "list[Benchmark]") -> "SequenceGroup | None":
    """The processes that hold each sample together, as torchrun or srun started them; None for one. Without them it
    starts them here, and ends when they do.

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
    asked: Asked, table: "Benchmark", folder: Path, options: "Options", target: Path, judge: "Judge | None" = None
) -> dict[str, Any] | None:
    """One benchmark with one stride, under a progress bar; None for a shard that leaves items to others.

    Raises:
        FetchError: a server stopped answering; what was answered is kept. CheckpointError, HardwareError: weights that
            cannot be loaded.
    """
    from vlm.cli.show.evaluation import progress_bar
    from vlm.eval.backends.native import Stopped
    from vlm.eval.backends.teacher_forcing import RingBackend
    from vlm.eval.run.runner import run

    backend, whole = asked.backend(table, options), True
    if asked.follows:
        assert isinstance(backend, RingBackend)
        backend.follow()
        return None
    try:
        with progress_bar(f"{table.title} · {options.folder}") as progress:
            return run(table, backend, target, options, data=folder, progress=progress, judge=judge)
    except Stopped as stop:
        whole = False  # the others of a ring hang in a sample: the launcher ends them
        raise stop.error from stop
    finally:
        if whole and isinstance(backend, RingBackend):
            backend.end()


def make_judge(url: str | None, model: str | None, key_env: str | None, cache: Path) -> "Judge | None":
    """The judge that the options name; None without one."""
    from vlm.eval.backends.judge import Judge

    if (url is None) != (model is None):
        raise ConfigError("half a judge", expected="both --judge-url and --judge-model, or neither")
    return Judge(url, model, cache=cache, key=key_of(key_env, "VLM_JUDGE_KEY")) if url and model else None


def key_of(variable: str | None, usual: str) -> str | None:
    """The key in an environment variable; a variable that was named must be set."""
    if variable is not None and variable not in os.environ:
        raise ConfigError(f"the environment variable {variable} is not set", fix=f"export {variable}=…")
    return os.environ.get(variable or usual)


def check_family(family: str) -> None:
    """Raises UnknownName for a family that no table names; "" is the tables' own."""
    from vlm.core.home import home
    from vlm.eval.benchmark import load_benchmark, tables

    known = {name for bench in tables(home()) for name in load_benchmark(bench, home()).families} if family else {""}
    if family not in known:
        raise UnknownName("family", family, known)


def data_folder(table: "Benchmark", data: Path | None, mini: bool) -> Path:
    """Where the benchmark's files lie; makes the miniature when asked.

    Raises:
        DataError: no files; with the lines that fetch, organize or generate them.
    """
    from vlm.core.home import dataset, resolve

    if mini:
        from vlm.eval.mini import make_mini

        folder = dataset() / "mini" / table.name
        make_mini(table.name, folder)
        return folder
    folder = resolve(data) if data else dataset() / table.folder
    if not folder.is_dir():
        ways = [
            f"vlm download {table.name}",
            f"vlm data organize {table.name}   (archives that were fetched by hand)",
            f"vlm eval {table.name} --mini   (generated miniature, not comparable with published numbers)",
        ]
        raise DataError(
            f"no data for {table.name} in {folder}",
            expected="the published files there, or another folder by --data DIR",
            fix="\n   or: ".join(ways),
        )
    return folder


SKIPPED = {"checkpoints", "eval", "report"}
"""Folders below runs/ that hold no exported model."""


def find_model(model: str | None) -> Path:
    """The named checkpoint, or the newest exported one below runs/.

    Raises:
        ConfigError: nothing named and nothing trained; lists the --model lines that would work.
    """
    from vlm.core.home import home, pretrained, resolve, runs

    if model:
        return next((p for p in (resolve(model), pretrained() / model) if (p / "config.json").exists()), Path(model))
    exported = [p.parent for p in runs().rglob("config.json") if next(p.parent.glob("*.safetensors"), None)]
    exported = [p for p in exported if not SKIPPED & set(p.relative_to(runs()).parts)]
    if exported:
        newest = max(exported, key=lambda p: (p / "config.json").stat().st_mtime)
        typer.echo(f"--model {newest.relative_to(home())} (the newest below runs/)", err=True)
        return newest
    local = sorted(p.parent.relative_to(home()) for p in pretrained().rglob("config.json"))
    raise ConfigError(
        "no --model, and no exported model below runs/",
        expected="one of: " + ", ".join(f"--model {p}" for p in local) if local else "weights below pretrained/",
        fix="`vlm list weights` shows what can be downloaded; then `vlm download NAME` and `--model NAME`",
    )


def model_name(path: Path) -> str:
    """A short name from a checkpoint path: generic folder names are left out.

    >>> model_name(Path("/h/runs/demo/train/2-sft/export"))
    'demo-2-sft'
    """
    generic = {"runs", "train", "export", "exported", "model", "pretrained", "checkpoint", "final", "latest", "hf"}
    parts = [part for part in path.parts if part.lower() not in generic]
    return "-".join(parts[-2:]) if "runs" in path.parts else parts[-1]
