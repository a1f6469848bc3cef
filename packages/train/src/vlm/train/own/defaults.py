"""The recipe of a fine-tuning on one's own data: that of the family, scaled to the data and to this machine.

data = own_recipe(Path("pretrained/InternVL2-2B"), name="mine", sets=[own], records=own.records)
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from vlm.core.errors import ConfigError
from vlm.core.home import home, split_lines, write_atomic
from vlm.models.checkpoint.layout import read_layout
from vlm.models.specs import ModelSpec, load_preset
from vlm.train.own.data import MAX_LOST, OwnSet
from vlm.train.recipe.recipe import merged, raw_recipe, shipped, with_overrides

FINE_TUNING = {
    "convllava-768": "convllava-stage3",
    "convllava-1024": "convllava-stage3-1024",
    "convllava-1536": "convllava-stage3-1536",
    "internvl-chat-v1-2": "internvl-chat-v1-2-finetune",
    "internvl2-2b": "internvl2_5-2b-finetune",
    "internvl2_5-1b": "internvl2_5-1b-finetune",
    "internvl2_5-2b": "internvl2_5-2b-finetune",
    "internvl2_5-8b": "internvl2_5-8b-finetune",
    "internvl3-1b": "internvl3-1b-finetune",
    "internvl3-2b": "internvl3-2b-finetune",
    "internvl3-8b": "internvl3-8b-finetune",
    "mini-v2pe": "mini-v2pe-digits",
    "quickstart-convllava": "quickstart-convllava-stage3",
    "quickstart-internvl-chat-v1-2": "quickstart-internvl-chat-v1-2-sft",
    "quickstart-v2pe": "quickstart-v2pe-finetune",
    "smol-convllava": "smol-convllava-stage3",
    "smol-internvl-chat-v1-2": "smol-internvl-chat-v1-2-sft",
    "smol-v2pe": "smol-v2pe-sft",
    "tiny-convllava": "quickstart-convllava-stage3",
    "tiny-internvl-chat-v1-2": "quickstart-internvl-chat-v1-2-sft",
    "tiny-internvl2": "quickstart-v2pe-finetune",
    "tiny-internvl3": "quickstart-v2pe-finetune",
}
"""Shape of a model -> the recipe whose settings a fine-tuning starts from. InternVL2 was published with that of 2.5."""

LORA = "internvl-chat-v1-2-finetune-lora"
"""The recipe whose adapters `--lora` takes: those of InternVL's own fine-tuning, which names layers of any family."""

PASSES, SEEN = 10, 2000
"""A small set is seen up to 10 times, until 2,000 samples were trained on; a large one as often as in the recipe."""
STEPS_A_PASS = 4
"""A pass over a small set has at least so many steps."""
SAVES = 5
"""Checkpoints of a run, at most as far apart as in the recipe."""


def nearest_preset(spec: ModelSpec) -> str:
    """Return the preset of `FINE_TUNING` that a model has the shape of, or that is nearest in its family."""

    def distance(name: str) -> tuple[float, ...]:
        other = load_preset(name)
        sizes = ((spec.language.width, other.language.width), (spec.language.depth, other.language.depth))
        apart = sum(abs(math.log(mine / its)) for mine, its in sizes)
        alike = (spec.image_rule.size == other.image_rule.size, spec.language == other.language)
        return other.family != spec.family, apart, *(not same for same in (*alike, _tower(spec) == _tower(other)))

    return min(FINE_TUNING, key=distance)


def _tower(spec: ModelSpec) -> dict[str, Any]:
    return {key: value for key, value in spec.vision.model_dump().items() if key != "drop_path"}


def own_recipe(
    start: Path,
    *,
    name: str,
    sets: Sequence[OwnSet],
    held_back: Sequence[OwnSet] = (),
    lora: bool = False,
    outside: Sequence[str] = (),
    processes: int = 1,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the keys of a complete recipe.

    Args:
        start: Folder of the model.
        name: Of the recipe.
        sets: The data.
        held_back: Data whose loss is measured and that is not trained on.
        lora: Train adapters, not the weights.
        outside: Folders outside of the sets that records may name.
        processes: That share a step.
        overrides: `key=value` that the command line will set; only what depends on them is taken from here.

    Raises:
        CheckpointError: No checkpoint that can be read.
        ConfigError: No record.
    """
    spec = read_layout(start).spec
    preset = nearest_preset(spec)
    source = FINE_TUNING[preset]
    base = raw_recipe(shipped(source))
    records = sum(one.records for one in sets)
    if not records:
        raise ConfigError("no record to train on", expected="at least one")
    batch, epochs = scaled(base, records, lora=lora, processes=processes)
    length = with_overrides({"epochs": epochs, "batch": {"samples": batch}}, overrides)
    try:
        steps = int(length.get("steps") or length["epochs"] * records / length["batch"]["samples"])
    except (TypeError, ValueError, ZeroDivisionError, KeyError):
        steps = 1  # the recipe's own check names what is wrong
    why = f"ours: {source} scaled to {records:,} records on this machine"
    drop_path = base["model"].get("spec", {}).get("vision")
    changes: dict[str, Any] = {
        "name": name,
        "title": f"{start.name} on {', '.join(one.entry.name for one in sets)}",
        "model": {"start": _below_home(start), "preset": preset, "spec": {"vision": drop_path} if drop_path else {}},
        "data": [one.entry.model_dump(mode="json", exclude_defaults=True) for one in sets],
        "batch": {"samples": batch},
        "epochs": epochs,
        "save_every": max(1, min(base.get("save_every", 500), steps // SAVES)),
        "keep": 2,
        "max_lost": MAX_LOST,
        **strides_of(spec),
    }
    if held_back:
        changes["eval_data"] = [one.entry.model_dump(mode="json", exclude_defaults=True) for one in held_back]
    if outside:
        changes["allow_outside"] = list(outside)
    if lora:
        adapters = raw_recipe(shipped(LORA))
        changes |= {"trainable": [], "lora": adapters["lora"]}
    if not torch.cuda.is_available():
        changes |= {"precision": "float32", "zero": {"stage": 0}}
    made = merged({k: v for k, v in base.items() if k not in ("steps", "differences", "hardware")}, changes)
    made["model"] = changes["model"]
    if lora:  # rates of parts that are frozen then
        made["optimizer"] = {key: value for key, value in made["optimizer"].items() if key != "groups"}
    longest = min(base["max_length"], spec.language.max_positions)
    made["max_length"] = longest
    changed = (
        "batch.samples",
        "epochs",
        "save_every",
        "keep",
        "max_lost",
        "zero",
        "strides",
        "stride_choices",
        "max_length",
    )
    made["sources"] = {**base["sources"], **dict.fromkeys(changed, why)}
    return made


def scaled(base: dict[str, Any], records: int, *, lora: bool, processes: int) -> tuple[int, float]:
    """Return the samples of a step and the passes of a run over that many records.

    >>> scaled({"batch": {"samples": 128}, "epochs": 1}, 20, lora=False, processes=1)
    (4, 10.0)
    >>> scaled({"batch": {"samples": 128}, "epochs": 1}, 665_298, lora=False, processes=8)
    (128, 1.0)
    """
    most = 16 if lora else int(base["batch"]["samples"])  # the published scripts take 16 with adapters
    batch = max(processes, min(most, 1 << max(0, (records // STEPS_A_PASS).bit_length() - 1)))
    if base.get("steps"):  # a miniature: as many samples as there
        return batch, max(1.0, round(base["steps"] * base["batch"]["samples"] / records, 2))
    return batch, max(float(base["epochs"]), min(float(PASSES), float(SEEN // records)))


def strides_of(spec: ModelSpec) -> dict[str, Any]:
    """Return the positions that a model was trained with, as a recipe says them."""
    if spec.stride_choices:
        return {"strides": "random", "stride_choices": list(spec.stride_choices)}
    return {"strides": spec.strides}


def write_recipe(path: Path, keys: dict[str, Any], *, head: str) -> None:
    """Write a recipe as YAML with a comment in front; it is all that a run needs."""
    lines = "".join(f"# {line}\n" for line in split_lines(head))
    write_atomic(path, lines + yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=110))


def _below_home(path: Path) -> str:
    path = path.absolute()
    return path.relative_to(home()).as_posix() if path.is_relative_to(home()) else str(path)
