"""What is wrong with a run before any weight is loaded: every fault at once, each with what mends it."""

from collections.abc import Iterable
from typing import Any

from vlm.core.errors import ConfigError, HardwareError, VlmError
from vlm.core.home import resolve
from vlm.core.sample.index import LineIndex
from vlm.train.recipe.recipe import DataEntry, Recipe

Fault = dict[str, str]
"""`what` (recipe, data, weights, hardware, disk), `found`, `fix`."""


def records(entry: DataEntry) -> int | None:
    """Lines of the file that is here, else the number that the recipe says, else None."""
    return len(LineIndex(resolve(entry.file))) if resolve(entry.file).is_file() else entry.count


def mixture(recipe: Recipe) -> list[dict[str, Any]]:
    """For each entry: records, repeat, samples of an epoch (None if unknown) and share of the known ones."""
    rows: list[dict[str, Any]] = []
    for entry in recipe.data:
        count, whole = records(entry), int(entry.repeat)
        samples = None if count is None else whole * count + round((entry.repeat - whole) * count)
        rows.append({"name": entry.name, "records": count, "repeat": entry.repeat, "samples": samples})
    total = sum(row["samples"] or 0 for row in rows)
    return [{**row, "share": row["samples"] / total if row["samples"] and total else None} for row in rows]


def arithmetic_faults(recipe: Recipe, processes: int) -> list[Fault]:
    """Numbers of the recipe that do not go together, or not with that many processes."""
    from vlm.train.plan.fit import mesh_problems
    from vlm.train.plan.plan import spec_of

    size, samples = recipe.sequence_parallel.size, recipe.batch.samples
    divisors = ", ".join(str(n) for n in range(1, processes + 1) if processes % n == 0)
    fixes = {
        "sequence_parallel.size": f"{size}, {2 * size}, {3 * size}, ... processes, or --set sequence_parallel.size=N "
        f"with one of {divisors}",
        "batch.samples": f"--set batch.samples={processes // size}, or at most {samples * size} processes",
        "ulysses": "a size that divides the heads, or --set sequence_parallel.kind=ring",
    }
    problems = mesh_problems(recipe, spec_of(recipe), processes)
    found = [{"what": "recipe", "found": p, "fix": fixes[p.split()[0]]} for p in problems]
    warmup, steps = recipe.optimizer.warmup, recipe.steps
    if steps is not None and 1 <= steps <= warmup:
        late = f"optimizer.warmup {warmup:g} of {steps} steps: the full rate is never reached"
        found.append({"what": "recipe", "found": late, "fix": "warm up for fewer steps, or give a share below 1"})
    return found


def pattern_faults(recipe: Recipe) -> list[Fault]:
    """Patterns of `trainable`, `lora.targets` and `optimizer.groups` that match nothing in the model."""
    from vlm.train.parameters.optim import parameter_groups
    from vlm.train.plan.fit import meta_model
    from vlm.train.plan.plan import spec_of

    try:
        parameter_groups(meta_model(spec_of(recipe), recipe), recipe.optimizer)
    except ConfigError as error:
        return [{"what": "recipe", "found": error.found, "fix": "correct the patterns"}]
    return []


def data_faults(recipe: Recipe) -> list[Fault]:
    """Files that are here with another number of records than the recipe says."""
    found = []
    for entry in recipe.data:
        count = records(entry)
        if entry.count is not None and count != entry.count:
            path = resolve(entry.file)
            found.append(
                {
                    "what": "data",
                    "found": f"{path} holds {count} records, the recipe says {entry.count}",
                    "fix": f"get {path.name} again, or correct `count` of {entry.name} knowingly",
                }
            )
    return found


def faults(recipe: Recipe, processes: int) -> list[Fault]:
    """All that is wrong with the recipe itself or its data, as a run on that many processes would find it."""
    return arithmetic_faults(recipe, processes) + pattern_faults(recipe) + data_faults(recipe)


def refuse(name: str, found: Iterable[Fault], *, force: bool = False) -> None:
    """Raise one error that names every fault. `force` lets hardware pass, nothing else.

    Raises:
        ConfigError: something is wrong with the recipe. HardwareError: hardware alone. VlmError: anything else.
    """
    left = [fault for fault in found if not (force and fault["what"] == "hardware")]
    if not left:
        return
    kinds = {fault["what"] for fault in left}
    kind = ConfigError if "recipe" in kinds else HardwareError if kinds == {"hardware"} else VlmError
    raise kind("\n".join([f"{name} cannot start here:", *listed(left)]), fix="mend these, then the same command")


def listed(faults: Iterable[Fault]) -> list[str]:
    """Faults as lines: what was found, and below it what mends it."""
    return [
        line for what, fix, found in by_fix(faults) for line in [*(f"  {what}: {one}" for one in found), f"      {fix}"]
    ]


def by_fix(faults: Iterable[Fault]) -> list[tuple[str, str, list[str]]]:
    """(what, fix, the first three found) of faults that one line mends."""
    mended: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        mended.setdefault((fault["what"], fault["fix"]), []).append(fault["found"])
    return [
        (what, fix, [*found[:3], *([f"... and {len(found) - 3} more"] if len(found) > 3 else [])])
        for (what, fix), found in mended.items()
    ]
