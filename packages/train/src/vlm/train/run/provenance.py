"""What a run folder says of itself: the recipe, data, start and threads of the steps that were taken, in recipe.json.

>>> begun = begin(recipe, out, allow_change=False, processes=1)      # doctest: +SKIP
>>> begun.write(first=0)                                             # doctest: +SKIP

It is written when a step follows, never before, and each checkpoint has a copy. Steps that were taken with another
recipe stay listed under `earlier`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, NonNegativeInt, PositiveInt, ValidationError

from vlm.core.errors import CheckpointError, ConfigError, DataError, VlmError
from vlm.core.home import resolve, write_json
from vlm.core.sample.index import LineIndex
from vlm.models.checkpoint.load import fingerprint
from vlm.models.checkpoint.locate import find_checkpoint
from vlm.train.plan.faults import mixture_rows
from vlm.train.recipe.recipe import Recipe
from vlm.train.run.checkpoint import complete, damage, read_manifest

FILE = "recipe.json"


class Segment(BaseModel):
    """Steps that were taken alike. `steps`: how many there are at the end of them; None while they go on.

    `digest` is the recipe's, `start` the start checkpoint's; `lines` and `data` are records and sha256 of each file of
    data. Equal `threads` and `processes` promise equal bits. Folders of earlier versions have no `data` and neither.
    """

    steps: PositiveInt | None = None
    digest: str
    start: str
    lines: dict[str, NonNegativeInt] = {}
    data: dict[str, str] | None = None
    threads: PositiveInt | None = None
    processes: PositiveInt | None = None
    recipe: dict[str, Any]

    @property
    def number(self) -> tuple[Any, ...]:
        """All that changes numbers."""
        return self.digest, self.start, self.data, self.threads, self.processes


class RunRecord(Segment):
    """The content of recipe.json: how the steps of now are taken, and those before in `earlier`."""

    earlier: list[Segment] = []


UNKNOWN = RunRecord(digest="", start="", recipe={})
"""Of a folder that holds steps but does not say how they were taken."""


@dataclass
class Begun:
    """A run that starts or goes on in `out`: `before` is what its folder says, None for a new one."""

    out: Path
    before: RunRecord | None
    now: RunRecord

    @property
    def changed(self) -> bool:
        """Whether the recipe, the data or the start is not that of the steps before."""
        return self.before is not None and any(differences(self.before, self.now))

    def record(self, first: int) -> RunRecord:
        """Return what holds once step `first` is taken: steps from there on are taken again, and as now."""
        earlier: list[Segment] = []
        for one in [*self.before.earlier, self.before] if self.before else []:
            end, begin = min(one.steps or first, first), earlier[-1].steps or 0 if earlier else 0
            if end > begin:
                kept = Segment(**{**one.model_dump(exclude={"earlier"}), "steps": end})
                if earlier and earlier[-1].number == kept.number:
                    earlier.pop()
                earlier.append(kept)
        if earlier and earlier[-1].number == self.now.number:
            earlier.pop()
        return self.now.model_copy(update={"earlier": earlier})

    def write(self, first: int) -> RunRecord:
        """Write recipe.json if it would say something new, and remove the summary of an earlier end; return it."""
        record = self.record(first)
        (self.out / "summary.json").unlink(missing_ok=True)
        if record != self.before:
            if first and self.before and self.before.threads:
                told(self.before, self.now)
            write_json(self.out / FILE, record.model_dump(mode="json"))
        return record


def told(before: Segment, now: Segment) -> None:
    """Say that the bits of a run may differ from now on."""
    pairs = {"threads": (before.threads, now.threads), "processes": (before.processes, now.processes)}
    if odd := [f"{was} {name} before, {here} now" for name, (was, here) in pairs.items() if was != here]:
        sys.stderr.write(f"{', '.join(odd)}: the results are equal to rounding, not to the last bit\n")


def present(recipe: Recipe, processes: int) -> RunRecord:
    """Return how a run of this recipe would be taken now."""
    paths = {entry.file: resolve(entry.file) for entry in recipe.data}
    indices = {name: LineIndex(path) for name, path in paths.items() if path.is_file()}
    return RunRecord(
        digest=recipe.digest,
        start=fingerprint(find_checkpoint(recipe.model.start)),
        lines={name: len(index) for name, index in indices.items()},
        data={name: index.digest for name, index in indices.items()},
        threads=torch.get_num_threads(),
        processes=processes,
        recipe=recipe.model_dump(mode="json"),
    )


def read_provenance(out: Path) -> RunRecord | None:
    """Return what a run folder says of itself: recipe.json, or where that is damaged the copy in a checkpoint.

    The copy is put in its place, except in a finished stage, whose last steps it may not know.

    None for a folder without steps; UNKNOWN for one with steps of which nothing is said.
    """
    file = out / FILE
    if file.exists():
        try:
            return RunRecord.model_validate_json(file.read_bytes())
        except ValidationError:
            state = "damaged"
    else:
        state = "missing"
    whole = [path for path in complete(out / "checkpoints") if damage(path, contents=False) is None]
    for path in reversed(whole):
        try:
            found = RunRecord.model_validate(read_manifest(path).run)
        except ValidationError:
            continue
        sys.stderr.write(f"{file} is {state}: what it said is taken from {path}\n")
        if not finished(out):
            write_json(file, found.model_dump(mode="json"))
        return found
    if whole or finished(out):
        return UNKNOWN
    if state == "damaged":
        sys.stderr.write(f"{file} is damaged, and there is no checkpoint: the run starts again\n")
    return None


def finished(out: Path) -> bool:
    """Return whether the stage is done: its model is exported last."""
    return (out / "model/config.json").exists()


def begin(recipe: Recipe, out: Path, *, allow_change: bool, processes: int) -> Begun:
    """Compare a run folder with what is asked of it; say nothing new in recipe.json yet.

    Raises:
        ConfigError: another recipe or start checkpoint, or a finished stage that was asked for something else.
        DataError: the content of a data file changed.
        CheckpointError: nothing says what the steps in the folder were trained with.
    """
    begun = Begun(out, read_provenance(out), present(recipe, processes))
    if begun.before is None or not begun.changed or (allow_change and not finished(out)):
        return begun
    raise refusal(begun, recipe)


def refusal(begun: Begun, recipe: Recipe) -> VlmError:
    """Return the error of a run that is not the one in its folder, with a fix that works."""
    out, before = begun.out, begun.before
    assert before is not None
    recipe_changed, data_changed, _ = differences(before, begun.now)
    fix = "use another --run, delete the folder, or pass --allow-change"
    if finished(out):
        saved = [int(p.name.removeprefix("step-")) for p in complete(out / "checkpoints") if damage(p) is None]
        last, total = max(saved, default=0), recipe.total_steps(sum(r["samples"] or 0 for r in mixture_rows(recipe)))
        fix = f"use another --run, or delete {out} to train it again"
        if 0 < last < total:
            fix = (
                f"use another --run; or delete {out}/model and pass --allow-change to go on from step {last} to {total}"
            )
    done = " finished" if finished(out) else ""
    if before == UNKNOWN:
        return CheckpointError(f"{out / FILE} is missing or damaged: nothing says what{done} training it was", fix=fix)
    if recipe_changed:
        lines = "\n".join(changes(before.recipe, begun.now.recipe))
        return ConfigError(f"{out} holds a{done} run of another recipe:\n{lines}", fix=fix)
    if data_changed:
        fix = fix.replace("use another", "restore the files, use another", 1)
        return DataError(
            f"the data is not what {out} was{done or ' started'} with:\n" + "\n".join(data_changed),
            expected="files with the same content as at the start",
            fix=fix,
        )
    return ConfigError(f"{recipe.model.start} is not the checkpoint that {out} was trained from", fix=fix)


def differences(before: Segment, now: Segment) -> tuple[bool, list[str], bool]:
    """Return what differs: the recipe, the data (a line for each file), the start checkpoint."""
    data = []
    for name, n in now.lines.items():
        if before.lines.get(name, n) != n:
            data.append(f"  {name}: {before.lines[name]} -> {n} records")
        elif before.data and now.data and before.data.get(name, now.data[name]) != now.data[name]:
            data.append(f"  {name}: {n} records as before, with another content")
    return before.digest != now.digest, data, before.start != now.start


def changes(before: Any, now: Any, key: str = "") -> list[str]:
    """Return a line for each dotted key that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [c for k in keys for c in changes(before.get(k), now.get(k), f"{key}.{k}".lstrip("."))]
    return [] if before == now else [f"  {key}: {before} -> {now}"]
