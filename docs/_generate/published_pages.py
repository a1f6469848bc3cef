"""One page with every weight, folder, stage, script and benchmark of the three READMEs, and the command that does it.

Made from the catalogue, the recipes, the suites and the tables of `vlm eval|recipe from-script`.
"""

from typing import NamedTuple

from markdown_pieces import code, escape, table

from vlm.cli.published import evaluation, training
from vlm.cli.published.lines import read_lines
from vlm.core.config import package_tables
from vlm.core.fetch.catalogue import Entry, find_file, load_catalogue, weights_names, with_needs
from vlm.core.fetch.installed import is_built
from vlm.eval.benchmark import load_benchmark
from vlm.eval.suites import suites
from vlm.train.recipe.recipe import load_recipe


class System(NamedTuple):
    """A published system: its group in the catalogue, starts of its recipes, suites, a model, and its target."""

    title: str
    group: str
    recipes: tuple[str, ...]
    suites: tuple[str, ...]
    model: str
    target: str


class Row(NamedTuple):
    """What a README names, where it lies or what it is here, and the command that does it."""

    kind: str
    published: str
    here: str
    command: str


SYSTEMS = (
    System(
        "V2PE", "v2pe", ("v2pe-", "internvl2-2b-"), ("v2pe-general", "v2pe-long", "mmlongbench"), "V2PE-32K", "v2pe"
    ),
    System(
        "InternVL-Chat-V1-2",
        "internvl-chat-v1-2",
        ("internvl-chat-v1-2",),
        ("internvl-chat-v1-2",),
        "InternVL-Chat-V1-2",
        "internvl_chat_v1_2",
    ),
    System("ConvLLaVA", "convllava", ("convllava-",), ("convllava", "refcoco-all"), "ConvLLaVA-sft-768", "convllava"),
)
KINDS = {
    "weights": "Weights",
    "folder": "Folders of data",
    "stage": "Training stages",
    "script": "Evaluation scripts",
    "benchmark": "Benchmarks",
    "workflow": "Everything at once",
}


def pages() -> dict[str, str]:
    """Return the page."""
    text = ["# The published READMEs, line by line\n"]
    text.append(
        "Made from the catalogue, the recipes and the suites. A line of a script is translated by\n"
        "[`vlm eval|recipe from-script`](../from-scripts.md).\n"
    )
    for system in SYSTEMS:
        text.append(f"## {system.title}\n")
        found = rows(system)
        for kind, title in KINDS.items():
            of_kind = [row for row in found if row.kind == kind]
            lines = [(escape(r.published), escape(r.here), code(r.command)) for r in of_kind]
            text.append(f"### {title}\n\n" + table(("published", "here", "command"), lines))
    return {"reference/published.md": "\n".join(text)}


def rows(system: System) -> list[Row]:
    """Return all rows of one system."""
    return [*weights(system), *folders(system), *stages(system), *scripts(system), *benchmarks(system), *runs(system)]


def recipes(system: System) -> list[str]:
    """Return the recipes of a system."""
    return [name for name in package_tables("vlm.train", "recipes") if name.startswith(system.recipes)]


def weights(system: System) -> list[Row]:
    """Return each checkpoint of the system's entries, also those inside of one repository."""
    entries = [e for e in load_catalogue().values() if e.kind == "weights" and system.group in e.groups]
    return [
        Row("weights", names[-1], folder, f"vlm download {names[0]}")
        for entry in entries
        for folder, names in weights_names(entry).items()
    ]


def folders(system: System) -> list[Row]:
    """Return the folders of the data that the system's recipes read, with all that these are made from."""
    catalogue = load_catalogue()
    files = dict.fromkeys(data.file for name in recipes(system) for data in load_recipe(name).data)
    found = dict.fromkeys(entry.name for file in files if (entry := find_file(file, catalogue)))
    return [
        Row("folder", entry.name, entry.folder, data_command(entry))
        for entry in with_needs([catalogue[name] for name in found], catalogue)
        if entry.kind != "weights"
    ]


def data_command(entry: Entry) -> str:
    """Return the command that fills an entry's folder: what is fetched by hand is then organized."""
    organize = entry.organize and (is_built(entry) or not entry.automatic)
    return f"vlm data organize {entry.name}" if organize else f"vlm download {entry.name}"


def stages(system: System) -> list[Row]:
    """Return each recipe of the system, with the published script that it is."""
    scripts = {recipe: script for script, recipe in training.SCRIPTS.items()}
    return [
        Row("stage", scripts.get(name, load_recipe(name).title), name, f"vlm launch --recipe {name}")
        for name in recipes(system)
    ]


def lines(system: System) -> list[str]:
    """Return the lines that start the system's evaluation scripts."""
    if system.group == "convllava":
        return ["sh scripts/eval-lmms.sh CKPT", "sh scripts/refcoco.sh CKPT", "sh scripts/evaluation.sh CKPT"]
    named = {bench.lower() for suite in system.suites for bench in suites()[suite].benchmarks}
    one = [task for task, bench in evaluation.TASKS.items() if bench.lower() in named]
    found = [f"GPUS=8 sh scripts/evaluate.sh CKPT {task}" for task in one]
    if system.group == "v2pe":
        flags = "--rope_pos_id_version v2pe_fix --rope_pos_id_stride 64"
        found = [f"{line} --dynamic {flags}" for line in found]
        found += [f"STRIDE=64 sh scripts/evaluate_{name}.sh CKPT {flags}" for name in ("auto", "milebench", "mmniah")]
        found.append(f"GPUS=8 sh scripts/evaluate_mmniah_long.sh CKPT {flags}")
        gpus = dict(zip(evaluation.GROUPS, (1, 2, 2, 4, 4), strict=True))
        found += [
            f"STRIDE=64 GROUP={group} GPUS_PER_TASK={n} sh scripts/evaluate_longvqa.sh CKPT {flags}"
            for group, n in gpus.items()
        ]
    return found


def scripts(system: System) -> list[Row]:
    """Return the system's evaluation scripts, translated."""
    return [
        Row("script", line, "", command)
        for line in lines(system)
        for command in evaluation.translate(read_lines(line.replace("CKPT", system.model))[0]).commands
    ]


def benchmarks(system: System) -> list[Row]:
    """Return each benchmark of the system's suites."""
    return [
        Row(
            "benchmark", load_benchmark(bench).title, f"{bench} (`{suite}`)", f"vlm eval {bench} --model {system.model}"
        )
        for suite in system.suites
        for bench in suites()[suite].benchmarks
    ]


def runs(system: System) -> list[Row]:
    """Return what runs all of it."""
    start = "snakemake --profile slurm"
    return [
        Row("workflow", "what was released, evaluated", "with that of the other systems", f"{start} released"),
        Row("workflow", "what is trained here, evaluated", "with that of the other systems", f"{start} trained"),
        Row("workflow", "all of the system", "", f"{start} {system.target}"),
    ]
