"""The recipe of `vlm train -m MODEL --data FILE`: made once, written into the run, and read there by every rerun."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.cli.find import find_model, model_name
from vlm.cli.show.say import say
from vlm.core.errors import ConfigError, DataError
from vlm.core.fetch.miniature import miniature_of
from vlm.core.home import resolve
from vlm.core.paths import as_name

if TYPE_CHECKING:
    from vlm.cli.options import TrainOptions
    from vlm.core.rows.source import DataSource
    from vlm.core.rows.write import ImportOptions
    from vlm.train.own.data import OwnSet
    from vlm.train.recipe.recipe import Recipe

MADE_BY, REQUEST = "# Run again: ", "# request: "


def recipe_of(options: "TrainOptions", processes: int | None = None, *, dry_run: bool = False) -> tuple["Recipe", Path]:
    """Return the recipe that options name, or the one made for the model and the data that they name, and its folder.

    Args:
        options: Of `vlm train` or `vlm launch`.
        processes: That share a step; by default one for each GPU here, at least one.
        dry_run: Read the first records of each set only, and write nothing.

    Raises:
        ConfigError: Neither a recipe nor data, or both.
        DataError: Rows that cannot be used.
    """
    from vlm.train.recipe.recipe import load_recipe

    if options.recipe is not None:
        given = {"-m": options.model, "--data": options.data, "--eval-data": options.eval_data, "--lora": options.lora}
        if beside := [name for name, value in given.items() if value]:
            found = f"--recipe beside {', '.join(beside)}"
            raise ConfigError(found, expected="a recipe, or a model and data", fix=f"leave out {' and '.join(beside)}")
        run = str(options.run) if options.run else None
        recipe = load_recipe(options.recipe, run=run, overrides=options.overrides, published=options.published)
        return recipe, resolve(run or f"runs/{recipe.name.split('-')[0]}") / "train" / recipe.name
    if not options.data:
        fix = "vlm train --recipe NAME, or: vlm train -m MODEL --data FILE"
        raise ConfigError("neither --recipe nor --data", expected="one of them", fix=fix)
    if options.published:
        raise ConfigError("--published with --data", expected="--published with --recipe")
    return _own(options, processes, dry_run)


def _own(options: "TrainOptions", processes: int | None, dry_run: bool) -> tuple["Recipe", Path]:
    from vlm.core.config import parse
    from vlm.train.own.data import faults_of_first, is_plain, refuse_faults, refuse_many
    from vlm.train.own.defaults import own_recipe, write_recipe
    from vlm.train.own.fitting import fitted
    from vlm.train.recipe.recipe import Recipe, load_recipe

    quiet = options.quiet or "RANK" in os.environ
    start = find_model(options.model)
    rows, number = options.rows(), len(options.data or ())
    named = [_source(what, quiet) for what in (*(options.data or ()), *(options.eval_data or ()))]
    _refuse_miniatures(named, options.overrides)
    name = as_name("-".join([model_name(start), *(source.name for source in named[:number])])[:80])
    run = str(options.run) if options.run else f"runs/{name}"
    out = resolve(run) / "train" / name
    file = resolve(run) / f"{name}.yaml"
    request = _request(options, start, named, rows)
    if not dry_run and _request_in(file) == request:  # a rerun, or a process of this run: as it was begun
        return load_recipe(str(file), run=run, overrides=options.overrides), out
    if dry_run:
        refuse_faults([fault for source in named for fault in faults_of_first(source, rows)])
    sets = _sets(named, rows, write=not dry_run)
    for source, one in zip(named, sets, strict=True):
        if not dry_run and is_plain(source.table, rows):  # an import has told already
            refuse_many(faults_of_first(source, rows), one.records)
    trained, held_back = sets[:number], sets[number:]
    for one in sets:
        if not quiet:
            say(one.said, err=True)
    outside = [str(folder) for folder in rows.outside]
    count = processes or 1
    about: dict[str, Any] = {"name": name, "sets": trained, "held_back": held_back, "lora": options.lora}
    keys = own_recipe(start, **about, outside=outside, processes=count, overrides=options.overrides)
    way, estimate = fitted(parse(keys, Recipe, where=name), count)
    for key, value in way.items():
        _set(keys, key, value)
    if estimate.problems and not quiet:
        say(f"may not fit: {'; '.join(estimate.problems)}; {estimate.fix}", fg="yellow", err=True)
    if dry_run:
        from vlm.train.recipe.recipe import with_overrides

        return parse(with_overrides(keys, options.overrides), Recipe, where=name), out
    head = f"{MADE_BY[2:]}vlm train {' '.join(options.chosen())}\n{REQUEST[2:]}{request}"
    write_recipe(file, keys, head=f"{head}\nIt holds all that the run needs: vlm train --recipe {file} --run {run}")
    return load_recipe(str(file), run=run, overrides=options.overrides), out


def _refuse_miniatures(sources: list["DataSource"], overrides: tuple[str, ...]) -> None:
    """Refuse files of generated miniatures, unless `mini=true` says that they are meant."""
    from vlm.train.plan.faults import MEANT
    from vlm.train.recipe.recipe import with_overrides

    if with_overrides({}, overrides).get("mini") is not True:
        for source in sources:
            if mini := miniature_of(Path(source.said)):
                raise DataError(f"{source.said} belongs to a generated miniature, {mini}; no real data", fix=MEANT)


def _source(what: str, quiet: bool) -> "DataSource":
    from vlm.core.progress import byte_bar
    from vlm.core.rows.source import find_source

    with byte_bar(what, enabled=not quiet) as report:
        return find_source(what, report=report, say=lambda line: say(line, err=True))


def _sets(sources: list["DataSource"], rows: "ImportOptions", *, write: bool) -> list["OwnSet"]:
    """Return each source as an entry; names that come twice are numbered."""
    from vlm.train.own.data import own_set

    sets: list[OwnSet] = []
    for source in sources:
        taken = {one.entry.name for one in sets}
        name = next(n for n in (source.name, *(f"{source.name}-{i}" for i in range(2, 10**6))) if n not in taken)
        sets.append(own_set(source, rows, name=name, write=write))
    return sets


def _request(options: "TrainOptions", start: Path, sources: list["DataSource"], rows: "ImportOptions") -> str:
    """Return the digest of what was asked for: the model, the content of the data, the options."""
    from vlm.core.rows.write import stamp_of

    stamps = [[source.said, stamp_of(source.table)] for source in sources]
    asked = [str(start), stamps, len(options.data or ()), options.lora, asdict(rows)]
    return hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()[:32]


def _request_in(file: Path) -> str | None:
    if not file.is_file():
        return None
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()[:5]
    return next((line.removeprefix(REQUEST) for line in lines if line.startswith(REQUEST)), None)


def _set(keys: dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    for part in above:
        keys = keys.setdefault(part, {})
    keys[last] = value
