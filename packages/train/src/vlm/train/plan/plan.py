"""What a recipe costs and what it lacks here, from meta-device models and headers alone: nothing is loaded."""

import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from vlm.core.errors import CheckpointError
from vlm.core.fetch.catalogue import Entry, find_file, load_catalogue
from vlm.core.home import home, resolve
from vlm.core.organize.organize import ORGANIZERS, can_organize
from vlm.models.checkpoint.locate import find_checkpoint
from vlm.models.checkpoint.read_config import read_layout
from vlm.models.specs import ModelSpec, load_preset
from vlm.models.vlm import make_model
from vlm.train.parameters.lora import prepare
from vlm.train.plan.fit import Estimate, estimate, smallest_change
from vlm.train.plan.machines import get_machine
from vlm.train.plan.preflight import Fault, mixture
from vlm.train.recipe.recipe import DataEntry, Hardware, Model, Recipe, training_spec
from vlm.train.run.checkpoint import free_gb

GB = 1e9


@dataclass(frozen=True)
class Plan:
    """Exact parameter counts, bytes of states per process, steps, and what is missing (with the line that mends it)."""

    recipe: str
    parameters: dict[str, int]
    trainable: dict[str, int]
    tokens_per_image: int
    processes: int
    zero_stage: int
    gb_weights: float
    gb_gradients: float
    gb_optimizer: float
    samples: int | None
    steps: int | None
    tokens_per_step: int
    lacking: list[dict[str, str]]

    @property
    def gb_states(self) -> float:
        """Weights, gradients and optimizer states of one process, without activations."""
        return self.gb_weights + self.gb_gradients + self.gb_optimizer

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "gb_states": self.gb_states}


def spec_of(recipe: Recipe) -> ModelSpec:
    """The spec of the start checkpoint when it is here, else of the preset, with what the recipe sets anew."""
    try:
        spec = read_layout(find_checkpoint(recipe.model.start)).spec
    except CheckpointError:
        spec = load_preset(recipe.model.preset)
    return training_spec(recipe.model, spec)


def make_plan(recipe: Recipe, *, processes: int = 1) -> Plan:
    """Plan a recipe for a number of processes (published hardware: `recipe.hardware.gpus`)."""
    spec = spec_of(recipe)
    with torch.device("meta"):
        model = make_model(spec)
        trainable = prepare(model, recipe)
    parts = {"encoder": model.encoder, "projector": model.projector, "language_model": model.language_model}
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    total, trained = sum(parameters.values()), sum(trainable.values())
    stage, half = recipe.zero_stage, recipe.precision == "bfloat16"
    width = 2 if half else 4
    states = 12 if half else 8  # AdamW: two moments, and float32 weights beside bfloat16 ones
    samples = sample_count(recipe)
    steps = recipe.steps
    if steps is None and samples is not None and recipe.epochs is not None:
        steps = max(1, int(recipe.epochs * samples / recipe.batch.samples))
    return Plan(
        recipe=recipe.name,
        parameters=parameters,
        trainable=trainable,
        tokens_per_image=model.tokens_per_tile,
        processes=processes,
        zero_stage=stage,
        gb_weights=total * width / (processes if stage == 3 else 1) / GB,
        gb_gradients=trained * width / (processes if stage >= 2 else 1) / GB,
        gb_optimizer=trained * states / (processes if stage >= 1 else 1) / GB,
        samples=samples,
        steps=steps,
        tokens_per_step=recipe.batch.samples * recipe.max_length,
        lacking=lacking(recipe),
    )


def estimate_on(
    recipe: Recipe,
    machine: str,
    *,
    nodes: int = 1,
    gpus_per_node: int = 1,
    steps: int | None = None,
    tokens_per_sample: float | None = None,
) -> Estimate:
    """Bytes, FLOPs and hours on a named machine; where it does not fit, with the smallest change that does.

    Raises UnknownName for a machine that the table lacks.
    """
    spec, kind = spec_of(recipe), get_machine(machine)
    found = estimate(
        recipe,
        spec,
        kind,
        machine,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        steps=steps,
        tokens_per_sample=tokens_per_sample,
    )
    if not found.problems:
        return found
    return replace(found, fix=smallest_change(recipe, spec, kind, machine, nodes, gpus_per_node))


def sample_count(recipe: Recipe) -> int | None:
    """Samples of an epoch; None where the count of a file is unknown."""
    counts = [row["samples"] for row in mixture(recipe)]
    return None if None in counts else sum(counts)


def lacking(recipe: Recipe, *, gpus: int | None = None, here: int | None = None) -> list[Fault]:
    """What this machine lacks for the recipe: weights, data, hardware; each with the line that mends it.

    A launch says how many GPUs it asks for in all, and how many of them `here` (0: the machines are others, whose GPUs
    nobody can count from here). Without, all that the recipe needs must be here.
    """
    found = []
    try:
        read_layout(find_checkpoint(recipe.model.start))
    except CheckpointError as error:
        found.append({"what": "weights", "found": error.found, "fix": weights_fix(recipe.model, error.found)})
    absent = [entry for entry in recipe.data if not resolve(entry.file).exists()]
    catalogue = load_catalogue() if absent else {}  # once: a recipe has up to 45 sets
    for entry in absent:
        fix = data_fix(entry, catalogue)
        found.append({"what": "data", "found": f"{resolve(entry.file)} is not here", "fix": fix})
    if recipe.hardware is not None:
        found += lacking_hardware(recipe.hardware, gpus, here)
    free = free_gb(home())
    if free < 1:
        found.append({"what": "disk", "found": f"{free:.1f} GB free", "fix": f"free room in {home()}"})
    return found


def lacking_hardware(need: Hardware, gpus: int | None, here: int | None) -> list[Fault]:
    """Too few GPUs, here or asked for, or GPUs here with too little memory."""
    have, here = torch.cuda.device_count(), need.gpus if here is None else here
    memory = min((torch.cuda.get_device_properties(i).total_memory for i in range(have)), default=0) / GB
    found = []
    if here and (have < here or memory < need.memory_gb * 0.95):
        found.append(f"{have} CUDA devices here ({os.cpu_count()} CPU cores)")
    if gpus is not None and gpus < need.gpus:
        found.append(f"{gpus} GPUs asked for")
    fix = f"run on {need.gpus} GPUs of {need.memory_gb} GB ({need.note}), or --force with a smaller batch"
    return [{"what": "hardware", "found": one, "fix": fix} for one in found]


def weights_fix(model: Model, found: str) -> str:
    """The line that makes or fetches a start checkpoint, or the encoder that it names."""
    *run, _, stage, last = ["", "", *model.start.split("/")]
    if last == "model":
        return f"vlm train --recipe {stage} --run {'/'.join(run[2:])}"
    if names := [name for name in load_catalogue() if found.endswith(f"/{name}")]:
        return f"vlm download {names[0]}"
    return f"vlm weights make {model.preset} --out {model.start} --tokenizer FOLDER --encoder FOLDER --language FOLDER"


def data_fix(entry: DataEntry, catalogue: dict[str, Entry]) -> str:
    """The line that fetches and makes a training set, by the file that the recipe reads."""
    known = find_file(entry.file, catalogue)
    if known is None:
        return "put it there, or correct `data` in the recipe"
    line = f"vlm download {' '.join(known.needs if known.name in ORGANIZERS and known.needs else (known.name,))}"
    return f"{line} && vlm data organize {known.name}" if can_organize(known) else line
