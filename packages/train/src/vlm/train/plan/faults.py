"""What is wrong with a run before any weight is loaded: every fault at once, each with its fix.

>>> refuse("tiny", plan.faults)        # raises one error that lists them all, if there are any  # doctest: +SKIP
"""

from collections.abc import Iterable, Sequence
from typing import Literal, TypedDict

from vlm.core.errors import ConfigError, HardwareError, VlmError
from vlm.core.fetch.miniature import miniature_of
from vlm.core.home import resolve
from vlm.core.sample.index import LineIndex
from vlm.models.specs import ModelSpec
from vlm.train.plan.fit import mesh_problems
from vlm.train.recipe.recipe import DataEntry, Recipe

Part = Literal["recipe", "data", "weights", "hardware", "disk"]
"""The part of a run that a fault belongs to."""


MEANT = "get the real data, or, if the miniature is meant: --set mini=true, or `mini: true` in the recipe"
"""The fix for training on generated data that nobody asked for."""


class Fault(TypedDict):
    """One reason why a run cannot start: the part it belongs to, what was found, and the line or step that fixes it.

    >>> Fault(what="weights", found="no checkpoint at pretrained/x", fix="vlm download x")["fix"]
    'vlm download x'
    """

    what: Part
    found: str
    fix: str


class MixtureRow(TypedDict):
    """One entry of the data mixture; `samples` of an epoch and `share` are None while the count is unknown."""

    name: str
    records: int | None
    repeat: float
    samples: int | None
    share: float | None


def count_records(entry: DataEntry) -> int | None:
    """Count the lines of an entry's file if it is here; else return the recipe's count, or None."""
    return len(LineIndex(resolve(entry.file))) if resolve(entry.file).is_file() else entry.count


def mixture_rows(recipe: Recipe) -> list[MixtureRow]:
    """Return records, repeat, samples of an epoch and share of each entry. Shares are of the known samples."""
    rows: list[MixtureRow] = []
    for entry in recipe.data:
        count, whole = count_records(entry), int(entry.repeat)
        samples = None if count is None else whole * count + round((entry.repeat - whole) * count)
        rows.append({"name": entry.name, "records": count, "repeat": entry.repeat, "samples": samples, "share": None})
    total = sum(row["samples"] or 0 for row in rows)
    for row in rows:
        row["share"] = row["samples"] / total if row["samples"] and total else None
    return rows


def arithmetic_faults(recipe: Recipe, spec: ModelSpec, processes: int) -> list[Fault]:
    """Find numbers of the recipe that contradict each other, or that do not work with that many processes."""
    size, samples = recipe.sequence_parallel.size, recipe.batch.samples
    divisors = ", ".join(str(n) for n in range(1, processes + 1) if processes % n == 0)
    fixes = {
        "sequence_parallel.size": f"{size}, {2 * size}, {3 * size}, ... processes, or --set sequence_parallel.size=N "
        f"with one of {divisors}",
        "batch.samples": f"--set batch.samples={processes // size}, or at most {samples * size} processes",
        "ulysses": "a size that divides the heads, or --set sequence_parallel.kind=ring",
    }
    problems = mesh_problems(recipe, spec, processes)
    found: list[Fault] = [{"what": "recipe", "found": p, "fix": fixes[p.split()[0]]} for p in problems]
    warmup, steps = recipe.optimizer.warmup, recipe.steps
    if steps is not None and 1 <= steps <= warmup:
        late = f"optimizer.warmup {warmup:g} of {steps} steps: the full rate is never reached"
        found.append({"what": "recipe", "found": late, "fix": "warm up for fewer steps, or give a share below 1"})
    return found


def data_faults(recipe: Recipe, mixture: Sequence[MixtureRow]) -> list[Fault]:
    """Find generated miniatures that are not meant, and files with another number of records than the recipe says."""
    found: list[Fault] = []
    for entry in () if recipe.mini else (*recipe.data, *recipe.eval_data):
        if mini := miniature_of(resolve(entry.file)) or miniature_of(resolve(entry.root)):
            text = f"{entry.name}: {mini} holds a generated miniature, no real data"
            found.append({"what": "data", "found": text, "fix": MEANT})
    for entry, row in zip(recipe.data, mixture, strict=True):
        if entry.count is not None and row["records"] != entry.count:
            path = resolve(entry.file)
            text = f"{path} holds {row['records']} records, the recipe says {entry.count}"
            fix = f"get {path.name} again, or correct `count` of {entry.name} on purpose"
            found.append({"what": "data", "found": text, "fix": fix})
    return found


def refuse(name: str, found: Iterable[Fault], *, force: bool = False) -> None:
    """Raise one error that names every fault; do nothing when there are none.

    Args:
        name: the recipe, for the message.
        found: the faults.
        force: accept faults of the hardware, and only those.

    Raises:
        ConfigError: something is wrong with the recipe.
        HardwareError: only the hardware is at fault.
        VlmError: anything else is missing or wrong.
    """
    left = [fault for fault in found if not (force and fault["what"] == "hardware")]
    if not left:
        return
    kinds = {fault["what"] for fault in left}
    kind = ConfigError if "recipe" in kinds else HardwareError if kinds == {"hardware"} else VlmError
    raise kind("\n".join([f"{name} cannot start here:", *listed(left)]), fix="fix these, then rerun the same command")


def listed(faults: Iterable[Fault]) -> list[str]:
    """Return faults as lines of text: what was found, and below it the fix."""
    return [
        line for what, fix, found in by_fix(faults) for line in [*(f"  {what}: {one}" for one in found), f"      {fix}"]
    ]


def by_fix(faults: Iterable[Fault]) -> list[tuple[Part, str, list[str]]]:
    """Group faults that share a fix: (part, fix, the first three found and how many more there are)."""
    groups: dict[tuple[Part, str], list[str]] = {}
    for fault in faults:
        groups.setdefault((fault["what"], fault["fix"]), []).append(fault["found"])
    return [
        (what, fix, [*found[:3], *([f"... and {len(found) - 3} more"] if len(found) > 3 else [])])
        for (what, fix), found in groups.items()
    ]
