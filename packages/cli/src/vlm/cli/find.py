"""Resolve what a command line names on this machine: catalogue entries, checkpoints, benchmark files, token rules."""

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.cli.local_models import (
    GENERIC,
    LocalModel,
    chosen_model,
    downloadable,
    local_models,
    matches,
    shipped_entries,
    short_name,
)
from vlm.cli.show.say import say
from vlm.core.config import package_tables
from vlm.core.errors import CheckpointError, ConfigError, DataError, UnknownName, VlmError
from vlm.core.fetch.catalogue import (
    HUB_ID,
    Entry,
    find_benchmark,
    find_entry,
    find_file,
    find_group,
    hub_entry,
    weights_names,
    with_needs,
)
from vlm.core.fetch.installed import is_built
from vlm.core.fetch.miniature import is_marked, is_miniature
from vlm.core.home import dataset, home, pretrained, resolve, runs
from vlm.core.paths import as_name, is_name
from vlm.core.reading import is_folder
from vlm.core.text import printable
from vlm.models.checkpoint.locate import is_file

if TYPE_CHECKING:
    from vlm.cli.options import BenchmarkFiles, EntryChoice, LongSetOptions
    from vlm.core.synth.long.record_cost import Ruler
    from vlm.eval.benchmark import Benchmark


def find_entries(catalogue: dict[str, Entry], names: list[str] | None, choice: "EntryChoice") -> list[Entry]:
    """Return the entries that names and options choose, each once.

    A recipe, a benchmark, and a set that is made from others bring what they need, in front of them.

    Raises:
        UnknownName: with the nearest names.
    """
    entries: list[Entry] = []
    for name in names or []:
        entry = _entry_or_repository(name, catalogue)
        entries += with_needs([entry], catalogue) if is_built(entry) and entry.organize else [entry]
    entries += find_group(choice.group, catalogue) if choice.group else []
    if choice.recipe:
        entries += with_needs(_entries_of_recipe(choice.recipe, catalogue), catalogue)
    if choice.benchmark:
        entries += with_needs(find_benchmark(choice.benchmark, catalogue), catalogue)
    return list({entry.name: entry for entry in entries}.values())


def _entry_or_repository(name: str, catalogue: dict[str, Entry]) -> Entry:
    """Return the entry of a name; for `NAMESPACE/NAME` that the catalogue does not have, one of that repository."""
    try:
        return find_entry(name, catalogue)
    except UnknownName:
        if not HUB_ID.fullmatch(name):
            raise
        return hub_entry(name)


def _entries_of_recipe(name: str, catalogue: dict[str, Entry]) -> list[Entry]:
    """Return the entries that hold the start weights of a recipe, or the parts they are made from, and its data."""
    from vlm.train.recipe.recipe import load_recipe  # a tenth of a second that other commands need not pay

    recipe = load_recipe(name)
    start = recipe.model.start
    weights = [
        e
        for e in catalogue.values()
        if e.kind == "weights" and (f"{start}/".startswith(f"{e.folder}/") or Path(start).name in e.groups)
    ]
    data = [entry for data in recipe.data if (entry := find_file(data.file, catalogue))]
    return weights + data


def find_benchmark_files(table: "Benchmark", files: "BenchmarkFiles") -> Path:
    """Return the folder of a benchmark's files; make the miniature when it is asked for.

    Raises:
        DataError: no files (names the commands that get or generate them), or a miniature without `--mini`.
        ConfigError: options of a published benchmark with a person's own file, or that file is gone; `--mini` with
            the folder of real data.
    """
    if table.file:
        from vlm.eval.own import check_file

        if files.mini or files.data:
            raise ConfigError(
                f"{'--mini' if files.mini else '--data'} with {table.name}", expected="neither: its file is the data"
            )
        return check_file(table)
    if files.mini and not files.data:
        from vlm.eval.mini import make_mini

        folder = dataset() / "mini" / table.name
        make_mini(table.name, folder)
        return folder
    folder = resolve(files.data) if files.data else dataset() / table.folder
    _refuse_what_is_not_asked(table, folder, files)
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


def refuse_published_folder(folder: Path) -> None:
    """Refuse to generate data where published data belong.

    Raises:
        ConfigError: the folder is, contains or lies in that of a catalogue entry or a benchmark.
    """
    from vlm.eval.benchmark import load_benchmark, tables

    taken = {entry.path for entry in shipped_entries()}
    for name in tables(home()):
        table = load_benchmark(name, home())
        if table.counts and not table.file:
            taken.add(dataset() / table.folder)
    real = folder.resolve()
    for place in sorted(path.resolve() for path in taken):
        if real == place or place in real.parents or real in place.parents:
            raise ConfigError(
                f"{folder} is a place of published data",
                expected="another folder: a miniature must not pass for real data",
                fix="leave out --out: it is made below dataset/mini",
            )


def _refuse_what_is_not_asked(table: "Benchmark", folder: Path, files: "BenchmarkFiles") -> None:
    """Refuse a miniature that nobody asked for, and real data where a miniature was asked for.

    A folder that `--data` names may hold a part of one's own, with the true counts in its `mini.json`.
    """
    if files.mini:
        if folder.is_dir() and not is_marked(folder):
            raise ConfigError(
                f"--mini with --data {folder}, which holds no miniature",
                expected="a folder that `vlm data mini` made",
                fix="leave out --mini to evaluate on what is there, or --data to make a miniature",
            )
    elif is_miniature(folder) or (table.counts and not files.data and is_marked(folder)):
        where = f" --data {files.data or folder}"
        raise DataError(
            f"{folder} holds a miniature, not the data of {table.title}",
            expected="the published data, unless --mini is given",
            fix=f"for a miniature: vlm eval {table.name} --mini (made in dataset/mini), or --mini{where}\n   or: "
            f"remove {folder}, then vlm download {table.name}",
        )


def find_model(model: str | None) -> Path:
    """Return the folder of a model: a folder, a released name, a stage or a run; or the one that is meant by default.

    A folder may hold the model deeper down: a stage's, a run's. Without a name it is the one that `vlm use` has
    chosen, or the only one here. What a name led to is said in a line.

    Raises:
        ConfigError: nothing named, and none chosen among several; a name of several models. Both list what there is.
        CheckpointError: a released model that is not here, with the line that downloads it; a folder without a model.
        UnknownName: nothing has this name; names the nearest.
    """
    if model is None:
        return _default_model()
    for folder in (Path(model).expanduser().absolute(), resolve(model), pretrained() / model):
        if is_file(folder / "config.json"):
            return folder
    models = local_models()
    here, ours = (Path(os.path.abspath(p)) for p in (model, resolve(model)))  # noqa: PTH100  # any text may come
    folder = here if is_folder(here) else ours
    inside = [m for m in models if m.folder.is_relative_to(folder) and folder not in (home(), runs(), pretrained())]
    found = inside or matches(model, models)
    if len(found) == 1:
        say(f"--model {found[0].place}", err=True)
        return found[0].folder
    if found:
        raise ConfigError(f"{printable(model)} names {len(found)} models", expected=_one_of(found, models))
    if entry := downloadable(model):
        raise CheckpointError(
            f"{printable(model)} is not here: no config.json in {entry.folder}",
            expected=_one_of(models, models) if models else None,
            fix=f"vlm download {entry.name}",
        )
    if is_folder(folder):
        raise CheckpointError(
            f"no config.json in {folder}",
            expected="a checkpoint folder, or a run with a trained model",
            fix="`vlm list models` shows what is here",
        )
    names = {name for m in models for name in (*m.released, *m.stage, *m.run)}
    hub = f"; of the hub: `vlm download {model}`" if HUB_ID.fullmatch(model) else ""
    error = UnknownName("model", printable(model), names | _released_names(), fix=MODELS + hub)
    if error.near and not matches(error.near[0], models) and (entry := downloadable(error.near[0])):
        error = UnknownName("model", printable(model), names | _released_names(), fix=f"vlm download {entry.name}")
    raise error


MODELS = "`vlm list models` shows what is here, `vlm list weights` what can be downloaded"


def _default_model() -> Path:
    """Return the model that is meant where none is named."""
    models = local_models()
    chosen = chosen_model()
    if chosen is not None or len(models) == 1:
        model = LocalModel(chosen) if chosen is not None else models[0]
        say(f"--model {model.place} ({'vlm use' if chosen else 'the only model here'})", err=True)
        return model.folder
    if models:
        raise ConfigError(
            f"no --model, and {len(models)} models are here",
            expected=_one_of(models, models),
            fix="name one of them with --model, or choose it for all commands: `vlm use MODEL`",
        )
    expected = "weights in pretrained/, or a trained run"
    raise ConfigError("no --model, and no model is here", expected=expected, fix=MODELS)


def _one_of(found: list[LocalModel], models: list[LocalModel]) -> str:
    """Return the `--model` options that name each of some models, the first twenty of many."""
    names = [f"--model {printable(short_name(m, models))}" for m in found[:20]]
    return "one of: " + ", ".join(names) + (f" and {len(found) - 20} more" if len(found) > 20 else "")


def _released_names() -> set[str]:
    """Return the names of the models that can be downloaded."""
    weights = [weights_names(entry).values() for entry in shipped_entries() if entry.automatic]
    return {names[0] for entry in weights for names in entry}


def model_name(path: Path) -> str:
    """Return a short name for a checkpoint path: generic folder names are left out, a step keeps what it is a step of.

    >>> model_name(Path("/h/runs/demo/train/2-sft/export"))
    'demo-2-sft'
    >>> model_name(Path("/h/exp1/checkpoint-500"))
    'exp1-checkpoint-500'
    """
    parts = [part for part in path.parts if part.lower() not in GENERIC]
    step = re.fullmatch(r"(checkpoint|step|iter|epoch|global_step)s?[-_]?\d+", parts[-1]) if parts else None
    return as_name(
        "-".join(part for part in parts[-2 if step or "runs" in path.parts else -1 :] if part != path.anchor)
    )


def check_result_name(name: str | None) -> None:
    """Raise ConfigError for a `--name` that is no name of one folder; None is one that is still to be found."""
    if name is not None and not is_name(name):
        raise ConfigError(
            f"--name {printable(name)}", expected="the name of one folder, at most 200 bytes", fix="--name NAME"
        )


def find_ruler(options: "LongSetOptions") -> "Ruler":
    """Return what tokens are counted with: the rules of a checkpoint folder or of a preset.

    Raises:
        ConfigError: a preset without a tokenizer. Others: as `find_model`, for neither a model nor a preset.
    """
    from vlm.core.synth.long.record_cost import Ruler
    from vlm.models.specs import load_preset

    model, tokenizer, max_tiles = options.model, options.tokenizer, options.max_tiles
    found = None
    try:
        found = find_model(model)
    except VlmError:
        presets = package_tables("vlm.models", "presets")
        if model.lower() not in map(str.lower, presets):
            if get_close_matches(model.lower(), map(str.lower, presets), cutoff=0.8):  # nearer than a released model
                raise UnknownName("preset", model, presets) from None
            raise
    if found:
        from vlm.models.checkpoint.layout import read_layout

        spec = read_layout(found).spec
    else:
        spec = load_preset(model)
    folder = resolve(tokenizer) if tokenizer else found
    if folder is None:
        raise ConfigError(
            f"the preset {model} has no tokenizer",
            fix="add --tokenizer DIR with tokenizer.model or tokenizer.json, or name a checkpoint",
        )
    rule = spec.image_rule.changed(max_tiles=max_tiles) if max_tiles else spec.image_rule
    names = (spec.image_tokens.start, spec.image_tokens.end)
    ruler = Ruler(folder, spec.template, rule, spec.tokens_per_tile, names, spec.system)
    ruler.tokens("")  # a wrong tokenizer fails now, not in a worker
    return ruler
