"""Names that the shell completes: recipes, benchmarks, models, entries of the catalogue and others, as they are here.

A parameter is known by its name, where that says too little by the command and its name: `recipe: name`.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, get_args

import typer
from typer.models import ParameterInfo

from vlm.core.config import package_tables
from vlm.core.errors import VlmError

Names = Callable[[], Iterable[str]]


def recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    return [name for name in package_tables("vlm.train", "recipes") if not name.endswith("-base")]


def benchmarks() -> list[str]:
    """Return the names of the benchmarks, one's own too."""
    from vlm.core.home import home
    from vlm.eval.benchmark import tables

    return list(tables(home()))


def benchmarks_or_all() -> list[str]:
    """Return the names of the benchmarks and of their suites, and `all`."""
    from vlm.eval.suites import suites

    return ["all", *suites(), *benchmarks()]


def entries() -> list[str]:
    """Return the names of the catalogue: weights, data and benchmarks."""
    from vlm.core.fetch.catalogue import load_catalogue

    return list(load_catalogue())


def sets() -> list[str]:
    """Return the names of the entries that can be organized."""
    from vlm.core.fetch.catalogue import load_catalogue
    from vlm.core.organize.organize_set import can_organize

    return [entry.name for entry in load_catalogue().values() if can_organize(entry)]


def groups() -> list[str]:
    """Return the groups of the catalogue: its own, its kinds, and everything."""
    from vlm.core.fetch.catalogue import KINDS, load_catalogue

    own = {group for entry in load_catalogue().values() for group in entry.groups}
    return sorted(own | {*KINDS, "everything"})


def models() -> list[str]:
    """Return the models that are here, then those that can be downloaded."""
    from vlm.cli.local_models import local_models, shipped_entries, short_name
    from vlm.core.fetch.catalogue import weights_names

    here = local_models()
    released = [names[0] for e in shipped_entries() if e.automatic for names in weights_names(e).values() if names]
    return list(dict.fromkeys([*(short_name(model, here) for model in here), *released]))


def presets() -> list[str]:
    """Return the shapes of models."""
    return list(package_tables("vlm.models", "presets"))


def machines() -> list[str]:
    """Return the kinds of machines that a plan knows."""
    from vlm.train.plan.machines import machine_table

    return ["cpu", *machine_table()]


def watched() -> list[str]:
    """Return the trainings and evaluations below runs/, and the runs that hold them."""
    from vlm.cli.live import find_work
    from vlm.core.home import runs

    names = [folder.relative_to(runs()).as_posix() for folder in find_work(runs())]
    return sorted({name.split("/")[0] for name in names} | set(names))


COMPLETED: dict[str, Names] = {
    "recipe": recipes,
    "recipe: name": recipes,
    "recipe: names": recipes,
    "data: what": recipes,
    "benchmark": benchmarks,
    "benchmarks": benchmarks_or_all,
    "bench": benchmarks,
    "download: names": entries,
    "data: names": sets,
    "group": groups,
    "model": models,
    "base": models,
    "weights: path": models,
    "weights: a": models,
    "weights: b": models,
    "preset": presets,
    "machine": machines,
    "watch: run": watched,
}
"""Name of a parameter, or command and name -> the function that returns what it may be."""


def complete(app: typer.Typer, verb: str) -> None:
    """Let the shell complete the parameters of a verb's commands that COMPLETED knows."""
    for group in app.registered_groups:
        if group.typer_instance is not None:
            complete(group.typer_instance, verb)
    for command in app.registered_commands:
        assert command.callback is not None
        for name, parameter in inspect.signature(command.callback, eval_str=True).parameters.items():
            names = COMPLETED.get(f"{verb}: {name}") or COMPLETED.get(name)
            infos = [info for info in get_args(parameter.annotation)[1:] if isinstance(info, ParameterInfo)]
            for info in infos if names else ():
                info.autocompletion = _completer(names)  # type: ignore[arg-type]  # not None here


def _completer(names: Names) -> Callable[[Any, list[str], str], list[str]]:
    """Return what Typer calls with the word that is begun; where names cannot be read, nothing is completed."""

    def completed(ctx: Any, args: list[str], incomplete: str) -> list[str]:
        try:
            return [name for name in names() if name.startswith(incomplete)]
        except (VlmError, OSError):
            return []

    return completed
