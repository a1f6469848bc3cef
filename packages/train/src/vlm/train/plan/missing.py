"""What is missing here for a recipe: weights, data, hardware, disk space; each with the line that gets it."""

import os

import torch

from vlm.core.errors import CheckpointError
from vlm.core.fetch.catalogue import Entry, find_file, load_catalogue
from vlm.core.home import free_gb, home, resolve
from vlm.core.organize.organize_set import ORGANIZERS, can_organize
from vlm.train.plan.faults import Fault
from vlm.train.recipe.recipe import DataEntry, Hardware, Model, Recipe

GB = 1e9


def missing_files(recipe: Recipe, start: CheckpointError | None) -> list[Fault]:
    """List the start checkpoint and the annotation files that are not here.

    Args:
        recipe: the stage.
        start: why the start checkpoint cannot be used, None if it can.
    """
    found: list[Fault] = []
    if start is not None:
        found.append({"what": "weights", "found": start.found, "fix": weights_fix(recipe.model, start.found)})
    absent = [entry for entry in (*recipe.data, *recipe.eval_data) if not resolve(entry.file).exists()]
    catalogue = load_catalogue() if absent else {}  # once: a recipe has up to 45 sets
    for entry in absent:
        fix = data_fix(entry, catalogue)
        found.append({"what": "data", "found": f"{resolve(entry.file)} is not here", "fix": fix})
    return found


def missing_hardware(need: Hardware | None, gpus: int | None, here: int | None) -> list[Fault]:
    """List what is missing in hardware: too few GPUs, here or in a launch, or GPUs with too little memory.

    Args:
        need: what the published run used, None if the recipe names nothing.
        gpus: GPUs that a launch asks for in all; None when there is no launch.
        here: how many of them must be on this machine. 0: all are elsewhere, where nobody can count them from here.
            None: all that the recipe needs.
    """
    if need is None:
        return []
    have, here = torch.cuda.device_count(), need.gpus if here is None else here
    memory = min((torch.cuda.get_device_properties(i).total_memory for i in range(have)), default=0) / GB
    found = []
    if here and (have < here or memory < need.memory_gb * 0.95):
        found.append(f"{have} CUDA devices here ({os.cpu_count()} CPU cores)")
    if gpus is not None and gpus < need.gpus:
        found.append(f"{gpus} GPUs asked for")
    fix = f"run on {need.gpus} GPUs of {need.memory_gb} GB ({need.note}), or --force with a smaller batch"
    return [{"what": "hardware", "found": one, "fix": fix} for one in found]


def missing_disk() -> list[Fault]:
    """Report a disk of the home with less than 1 GB free."""
    free = free_gb(home())
    return [{"what": "disk", "found": f"{free:.1f} GB free", "fix": f"free space in {home()}"}] if free < 1 else []


def weights_fix(model: Model, found: str) -> str:
    """Return the line that trains, fetches or makes a start checkpoint, or fetches the encoder that it names."""
    *run, _, stage, last = ["", "", *model.start.split("/")]
    if last == "model":
        return f"vlm train --recipe {stage} --run {'/'.join(run[2:])}"
    if names := [name for name in load_catalogue() if found.endswith(f"/{name}")]:
        return f"vlm download {names[0]}"
    parts = {str(part): name for part, name in model.parts.items()} or dict.fromkeys(
        ("tokenizer", "encoder", "language"), "FOLDER"
    )
    others = "".join(f" --{part} {name}" for part, name in parts.items() if part != "tokenizer")
    line = f"vlm weights make {model.preset} --out {model.start} --tokenizer {parts.get('tokenizer', 'FOLDER')}{others}"
    folders = [entry.folder for entry in load_catalogue().values()]
    absent = dict.fromkeys(
        name.split("/")[1]
        for name in model.parts.values()
        if not resolve(name).exists() and "/".join(name.split("/")[:2]) in folders
    )
    return f"vlm download {' '.join(absent)} && {line}" if absent else line


def data_fix(entry: DataEntry, catalogue: dict[str, Entry]) -> str:
    """Return the line that fetches and organizes a training set, found by the file that the recipe reads."""
    if entry.file.startswith("dataset/own/"):
        return "it is made from your data when the training starts"
    known = find_file(entry.file, catalogue)
    if known is None:
        return "put it there, or correct `data` in the recipe"
    line = f"vlm download {' '.join(known.needs if known.name in ORGANIZERS and known.needs else (known.name,))}"
    return f"{line} && vlm data organize {known.name}" if can_organize(known) else line
