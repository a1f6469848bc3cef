"""Resolve what a command line names on this machine: catalogue entries, checkpoints, benchmark files, token rules."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.cli.show.say import say
from vlm.core.errors import ConfigError, DataError
from vlm.core.fetch.catalogue import Entry, find_benchmark, find_entry, find_file, find_group, with_needs
from vlm.core.fetch.installed import is_built
from vlm.core.home import dataset, home, pretrained, resolve, runs
from vlm.core.paths import as_name, is_name
from vlm.core.text import printable

if TYPE_CHECKING:
    from vlm.cli.options import BenchmarkFiles, EntryChoice, LongSetOptions
    from vlm.core.synth.long.record_cost import Ruler
    from vlm.eval.benchmark import Benchmark

SKIPPED = {"checkpoints", "eval", "report"}
"""Folders below runs/ that hold no exported model."""


def find_entries(catalogue: dict[str, Entry], names: list[str] | None, choice: "EntryChoice") -> list[Entry]:
    """Return the entries that names and options choose, each once.

    A recipe, a benchmark, and a set that is made from others bring what they need, in front of them.

    Raises:
        UnknownName: with the nearest names.
    """
    entries: list[Entry] = []
    for name in names or []:
        entry = find_entry(name, catalogue)
        entries += with_needs([entry], catalogue) if is_built(entry) and entry.organize else [entry]
    entries += find_group(choice.group, catalogue) if choice.group else []
    if choice.recipe:
        entries += with_needs(_entries_of_recipe(choice.recipe, catalogue), catalogue)
    if choice.benchmark:
        entries += with_needs(find_benchmark(choice.benchmark, catalogue), catalogue)
    return list({entry.name: entry for entry in entries}.values())


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
        DataError: no files; names the commands that fetch, organize or generate them.
    """
    if files.mini:
        from vlm.eval.mini import make_mini

        folder = dataset() / "mini" / table.name
        make_mini(table.name, folder)
        return folder
    folder = resolve(files.data) if files.data else dataset() / table.folder
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


def find_model(model: str | None) -> Path:
    """Return the folder of the named checkpoint, or of the newest exported one below runs/.

    Raises:
        ConfigError: nothing named and nothing trained; lists the --model lines that would work.
    """
    if model:
        return next((p for p in (resolve(model), pretrained() / model) if (p / "config.json").exists()), Path(model))
    exported = [p.parent for p in runs().rglob("config.json") if next(p.parent.glob("*.safetensors"), None)]
    exported = [p for p in exported if not SKIPPED & set(p.relative_to(runs()).parts)]
    if exported:
        newest = max(exported, key=lambda p: (p / "config.json").stat().st_mtime)
        say(f"--model {newest.relative_to(home())} (the newest below runs/)", err=True)
        return newest
    local = sorted(p.parent.relative_to(home()) for p in pretrained().rglob("config.json"))
    raise ConfigError(
        "no --model, and no exported model below runs/",
        expected="one of: " + ", ".join(f"--model {p}" for p in local) if local else "weights below pretrained/",
        fix="`vlm list weights` shows what can be downloaded; then `vlm download NAME` and `--model NAME`",
    )


def model_name(path: Path) -> str:
    """Return a short name for a checkpoint path: generic folder names are left out, a step keeps what it is a step of.

    >>> model_name(Path("/h/runs/demo/train/2-sft/export"))
    'demo-2-sft'
    >>> model_name(Path("/h/exp1/checkpoint-500"))
    'exp1-checkpoint-500'
    """
    generic = {"runs", "train", "export", "exported", "model", "pretrained", "checkpoint", "final", "latest", "hf"}
    parts = [part for part in path.parts if part.lower() not in generic]
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
        ConfigError: a preset without a tokenizer. UnknownName: neither a checkpoint nor a preset.
    """
    from vlm.core.synth.long.record_cost import Ruler
    from vlm.models.specs import load_preset

    model, tokenizer, max_tiles = options.model, options.tokenizer, options.max_tiles
    found = next((p for p in (resolve(model), pretrained() / model) if (p / "config.json").exists()), None)
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
    rule = spec.image_rule.model_copy(update={"max_tiles": max_tiles}) if max_tiles else spec.image_rule
    names = (spec.image_tokens.start, spec.image_tokens.end)
    ruler = Ruler(folder, spec.template, rule, spec.tokens_per_tile, names, spec.system)
    ruler.tokens("")  # a wrong tokenizer fails now, not in a worker
    return ruler
