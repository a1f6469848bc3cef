# Names that several rules share. Nothing is computed here.
from contextlib import ExitStack

from vlm.cli.workflow.guards import (
    cancel_strays,
    evaluation,
    exclusive,
    launch,
    many_processes,
    plain_errors,
    preflight,
    train_options,
    write_rule_graph,
    write_snakemake_report,
)
from vlm.cli.workflow.dag import (
    benchmark_data,
    checkpoint_marker,
    downloads_of,
    needs,
    ready,
    table_of,
)

RUN = config["run"]
STAGES = config["stages"]
START = config["start"]
MODELS = config["evaluate"]
SITE = config.get("site", {})
SYSTEMS = ["v2pe", "internvl_chat_v1_2", "convllava", "internvl3"]
ORIGINS = {
    "released": "model",
    "trained": "recipe",
}  # target -> key of its models in the configuration
FLAGS = {"default": "--stride none", "shuffled": "--stride none --shuffle-images"}
guards = ExitStack()  # entered by `onstart`, left when Snakemake ends


def one_of(names):
    """Return a wildcard constraint: one of these names; nothing matches an empty list."""
    return "|".join(names) or "(?!)"


wildcard_constraints:
    kind="pretrained|dataset",
    name="[A-Za-z0-9_.-]+",
    folder="[A-Za-z0-9_.+/-]+",
    entry="[A-Za-z0-9_.+-]+",
    recipe=one_of(STAGES),
    model=one_of(MODELS),
    bench="[A-Za-z0-9_+-]+",
    variant="default|shuffled|stride[0-9.]+",
    shard="[0-9]+",
    shards="[0-9]+",


def checkpoint_of(model):
    """Return the folder of the weights that are evaluated: a stage of this run, or a published checkpoint."""
    entry = MODELS[model]
    return (
        f"{RUN}/train/{entry['recipe']}/model" if "recipe" in entry else entry["model"]
    )


def marker_of(folder):
    """Return the file whose existence means that a folder of weights is complete."""
    made = folder.startswith(RUN) or folder.split("/")[-1] in START
    return f"{folder}/config.json" if made else checkpoint_marker(folder)


def data_of(bench):
    """Return the file that a benchmark needs: of its miniature, the configuration, or its catalogue entry."""
    if bench in config["miniatures"]:
        return f"dataset/mini/{bench}/mini.json"
    return config["benchmark_data"].get(bench) or benchmark_data(bench)


def training_data(recipe):
    """Return the files that a stage waits for: paths as they are, names by the catalogue."""
    names = STAGES[recipe]["data"]
    return [name if "/" in name else ready(name) for name in names]


def evaluations(model):
    """Return the result files of one model: benchmark x variant."""
    return [
        f"{RUN}/eval/{model}/{bench}/{variant}/summary.json"
        for bench, variants in MODELS[model]["benchmarks"].items()
        for variant in variants
    ]


def part_of(name):
    """Return the stages and the models of a system, of what was `released`, or of what is `trained` here."""
    if name in ORIGINS:
        key = ORIGINS[name]
        return [r for r in STAGES if key == "recipe"], [
            m for m, e in MODELS.items() if key in e
        ]
    stages = [r for r, stage in STAGES.items() if stage["system"] == name]
    return stages, [m for m, entry in MODELS.items() if entry["system"] == name]


def stages_of(*parts):
    """Return the trained models of some parts."""
    return [
        f"{RUN}/train/{r}/model/config.json" for part in parts for r in part_of(part)[0]
    ]


def evaluations_of(*parts):
    """Return the result files of some parts."""
    return [
        path
        for part in parts
        for model in part_of(part)[1]
        for path in evaluations(model)
    ]


def shards_of(wildcards):
    """Return the file that marks each shard as done; nothing where one job does it all."""
    n = config.get("shards", {}).get(
        wildcards.bench, MODELS[wildcards.model].get("shards", 1)
    )
    folder = (
        f"{RUN}/eval/{wildcards.model}/{wildcards.bench}/{wildcards.variant}/shards"
    )
    return [f"{folder}/{i}-of-{n}/timing.json" for i in range(n)] if n > 1 else []


def gathers(wildcards):
    """Return whether a job only gathers the answers of shards: without a GPU."""
    return "shard" not in wildcards.keys() and bool(shards_of(wildcards))


def processes_of(wildcards):
    """Return the processes of the ring that an evaluation job is; 1 without a ring."""
    return 1 if gathers(wildcards) else config["processes"].get(wildcards.bench, 1)


def gpus_of(wildcards):
    """Return the GPUs of an evaluation job: the greater of its model's and its benchmark's; one a process of a ring."""
    own = MODELS[wildcards.model].get("gpus", 0)
    if gathers(wildcards) or not own:
        return 0
    ring = processes_of(wildcards)
    return ring if ring > 1 else max(own, config["gpus"].get(wildcards.bench, 0))


def asked(wildcards):
    """Return the options that all jobs of an evaluation share."""
    model, bench = MODELS[wildcards.model], wildcards.bench
    flags = [
        FLAGS.get(wildcards.variant)
        or f"--stride {wildcards.variant.removeprefix('stride')}",
        f"--mini --data dataset/mini/{bench}" if bench in config["miniatures"] else "",
        model.get("flags", ""),
        "--device map" if gpus_of(wildcards) > (n := processes_of(wildcards)) else "",
        f"--processes {n}" if n > 1 else "",
        model.get("options", {}).get(bench, ""),
    ]
    return " ".join(flag for flag in flags if flag)
