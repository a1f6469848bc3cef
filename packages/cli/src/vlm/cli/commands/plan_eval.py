"""`vlm plan --eval BENCHMARK`: whether an evaluation fits a device, and what does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm.cli.show.say import say, say_json
from vlm.core.errors import CheckpointError, ConfigError, UnknownName

if TYPE_CHECKING:
    from vlm.models.specs import ModelSpec

PRESETS = {
    "InternVL2-2B": "internvl2-2b",
    "V2PE-32K": "internvl2-2b",
    "V2PE-256K": "internvl2-2b",
    "InternVL-Chat-V1-2": "internvl-chat-v1-2",
    "InternVL-Chat-V1-2-Plus": "internvl-chat-v1-2",
    "ConvLLaVA-sft-768": "convllava-768",
    "ConvLLaVA-sft-1024": "convllava-1024",
    "ConvLLaVA-sft-1536": "convllava-1536",
}
"""Released models -> their shapes, which a plan needs before the weights are here."""

MACHINE = "a100-80"
"""Machine where none is named: that of the published runs."""


@dataclass(frozen=True)
class EvaluationQuestion:
    """What is asked of a plan: a benchmark, a model, a machine, how the model is spread, and lengths of one's own."""

    benchmark: str
    model: str | None
    machine: str | None
    gpus: int
    processes: int
    dtype: str
    kv_dtype: str
    tokens: int | None
    images: int | None


def plan_evaluation(asked: EvaluationQuestion, *, as_json: bool) -> None:
    """Show what the longest prompt of a benchmark takes on a machine.

    Raises:
        HardwareError: it does not fit; with what does. UnknownName: no such benchmark, model or machine.
        ConfigError: a spread or a length that cannot be.
    """
    from vlm.core.home import home
    from vlm.eval.benchmark import load_benchmark
    from vlm.eval.longest import longest_prompt
    from vlm.train.plan.evaluation import PromptSize, Share, estimate_evaluation, evaluation_misfit
    from vlm.train.plan.machines import get_machine

    table = load_benchmark(asked.benchmark, home())
    name, spec = shape_of(asked.model)
    longest = longest_prompt(table, spec, tokens=asked.tokens, images=asked.images)
    prompt = PromptSize(longest.tokens, longest.tiles, longest.new_tokens, table.teacher_forced)
    share = Share(asked.dtype, asked.gpus, asked.processes, asked.kv_dtype)
    where = asked.machine or MACHINE
    found, machine = estimate_evaluation(spec, prompt, share), get_machine(where)
    if as_json:
        say_json(
            {
                "benchmark": table.name,
                "model": name,
                "machine": where,
                "memory_gb": machine.memory_gb,
                "fits": found.gb_needed <= machine.memory_gb,
                "longest": longest.source,
                **found.as_dict(),
            }
        )
    else:
        fits = "fits" if found.gb_needed <= machine.memory_gb else "does not fit"
        say(f"{table.name} with {name} {fits}: {found.gb_needed:.1f} of {machine.memory_gb:g} GB", bold=True)
        parts = " + ".join(f"{part} {gb:.2f}" for part, gb in found.gb.items() if gb)
        say(f"  the fullest of {share.devices} x {where}: {parts} GB")
        say(f"  longest prompt: {prompt.tokens:,} tokens, {prompt.tiles:,} tiles ({longest.source})")
        say(f"  vlm eval {table.name} --model {name}{share.options}")
    if found.gb_needed > machine.memory_gb:
        raise evaluation_misfit(f"{table.name} with {name}", found, machine, where, spec)


def shape_of(model: str | None) -> "tuple[str, ModelSpec]":
    """Return the name and the shape of a model: one that is here, a released one, or a preset.

    Raises:
        UnknownName: nothing has this name. ConfigError: nothing named, and none chosen.
    """
    from vlm.cli.find import find_model
    from vlm.core.config import package_tables
    from vlm.models.checkpoint.layout import read_layout
    from vlm.models.specs import load_preset

    try:
        folder = find_model(model)
        return model or folder.name, read_layout(folder).spec
    except (CheckpointError, UnknownName):
        given = (model or "").rsplit("/", 1)[-1].lower()
        known = PRESETS | {preset: preset for preset in package_tables("vlm.models", "presets")}
        name = next((name for name in known if given == name.lower()), None)
        if name is None:
            raise
        return name, load_preset(known[name])


def refuse_evaluation_options(asked: Mapping[str, object], *, usual: Mapping[str, object], without: str) -> None:
    """Raise ConfigError for options that mean nothing there. `without`: what they are given with."""
    given = [f"--{key.replace('_', '-')}" for key, value in asked.items() if value != usual.get(key)]
    if given:
        raise ConfigError(f"{', '.join(given)} {without}", fix="leave it out")
