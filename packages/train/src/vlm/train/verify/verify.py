"""A recipe beside what somebody published: a launch script, a table of a README, or a meta file of data sets.

>>> report = verify("v2pe-32k", Path("shell/internlm2_2b/baseline.sh"))
>>> report.contradictions          # keys on which both say something else, and no `differences` entry says so
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlm.core.errors import ConfigError
from vlm.core.home import home
from vlm.models.specs import load_preset
from vlm.train.recipe.recipe import Recipe, load_recipe, recipe_names, training_spec
from vlm.train.verify.arguments import NEUTRAL, PATHS, claims
from vlm.train.verify.markdown import read_table
from vlm.train.verify.shell import Script, read_script

UNTOLD = {"name", "title", "sources", "differences", "hardware", "data", "model", "max_lost", "stride_choices"}
"""Keys of a recipe that no script speaks about, or that are compared in another way."""


@dataclass(frozen=True)
class Finding:
    """One key on which a source says something. `noted`: the `why` of our difference, None where none is noted."""

    key: str
    ours: Any
    theirs: Any
    said: str
    noted: str | None = None


@dataclass
class Report:
    """What a comparison found; `contradictions` are those that no difference explains. `recipe` is None where a script
    was only read."""

    recipe: str | None
    source: str
    agree: list[str] = field(default_factory=list)
    contradictions: list[Finding] = field(default_factory=list)
    noted: list[Finding] = field(default_factory=list)
    dead_paths: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    unforwarded: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    only_ours: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def verify(name: str, against: Path, *, label: str | None = None) -> Report:
    """Compare a recipe with a script (.sh), a README (.md, the table column or row `label`) or a meta file (.json).

    Raises:
        ConfigError: a file that is not there or of another kind, or a table without such a label.
    """
    recipe, against = load_recipe(name), Path(against)
    report = Report(recipe.name, str(against))
    if against.suffix == ".sh":
        script = read_script(against)
        compare(report, recipe, claims(script, recipe.hardware.gpus if recipe.hardware else None))
        lint(report, script)
        report.only_ours = only_ours(recipe, report)
    elif against.suffix == ".md":
        compare(report, recipe, read_table(against, recipe.name, label))
    elif against.suffix == ".json":
        compare_data(report, recipe, against)
    else:
        raise ConfigError(f"{against}: {against.suffix or 'no ending'}", expected="a file .sh, .md or .json")
    return report


def verify_script(path: Path) -> Report:
    """Read a script, and compare it with the shipped recipe that is nearest to it, if any is near."""
    if name := nearest(path):
        return verify(name, path)
    report = Report(None, str(path))
    lint(report, read_script(path))
    return report


def nearest(script: Path) -> str | None:
    """The shipped recipe that agrees with a script on most keys, contradictions counted against it; None if none does
    on more than it contradicts."""
    said = read_script(script)

    def score(name: str) -> tuple[int, str]:
        recipe, report = load_recipe(name), Report(name, str(script))
        compare(report, recipe, claims(said, recipe.hardware.gpus if recipe.hardware else None))
        return len(report.agree) - 3 * len(report.contradictions) - len(report.noted), name

    published = [n for n in recipe_names() if not n.startswith(("quickstart", "smol", "mini"))]
    best, name = max(score(name) for name in published)
    return name if best > 0 else None


def compare(report: Report, recipe: Recipe, said: dict[str, tuple[Any, str]]) -> None:
    """Sort each (key, what is said, by what words) into agreed, noted and contradicting."""
    for key, (theirs, words) in said.items():
        ours = value_of(recipe, key)
        if same(ours, theirs):
            report.agree.append(key)
            continue
        why = noted(recipe, key)
        (report.noted if why else report.contradictions).append(Finding(key, ours, theirs, words, why))


def value_of(recipe: Recipe, key: str) -> Any:
    """What the recipe says for a dotted key; below `model.spec` what the checkpoint's preset and the recipe make."""
    if key.startswith("model.spec."):
        value: Any = training_spec(recipe.model, load_preset(recipe.model.preset)).model_dump()
        key = key.removeprefix("model.spec.")
    elif key == "model.start":
        return Path(recipe.model.start).name
    else:
        value = recipe.model_dump()
    for part in key.split("."):
        if isinstance(value, (list, tuple)):
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        return set(ours) == set(theirs)
    if isinstance(ours, (int, float)) and isinstance(theirs, (int, float)) and not isinstance(ours, bool):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return bool(ours == theirs)


def noted(recipe: Recipe, key: str) -> str | None:
    """Why the recipe differs in a key, if it says so."""
    for d in recipe.differences:
        if key == d.key or key.startswith(d.key + ".") or key in d.set:
            return d.why
    return None


def lint(report: Report, script: Script) -> None:
    """What is wrong with a script whatever the recipe."""
    report.unused = [f"{name}={script.variables.get(name, '')}" for name in script.idle]
    report.unforwarded = script.unforwarded
    known = NEUTRAL | PATHS | claims.known
    report.unknown = [f"--{name} {value}" for name, value in script.flags.items() if name not in known]
    report.broken = script.broken + [f"--{name} is given twice" for name in script.repeated]
    roots = [*list(script.path.resolve().parents)[:4], Path.cwd(), home()]
    given = {"": script.program if script.program.endswith(".py") else ""}
    given |= {f"--{name} ": script.flags[name] for name in script.flags if name in PATHS and "output" not in name}
    for name, path in given.items():
        if path and not any((root / path).exists() for root in roots):
            report.dead_paths.append(f"{name}{path}")


def only_ours(recipe: Recipe, report: Report) -> list[str]:
    """Keys that the recipe sets and the script leaves out."""
    told = {*report.agree, *(f.key for f in [*report.noted, *report.contradictions])}
    set_here = recipe.model_dump(exclude_defaults=True, exclude=UNTOLD)
    flat = [key for k, v in set_here.items() for key in ([f"{k}.{j}" for j in v] if isinstance(v, dict) else [k])]
    return sorted({key for key in flat if not any(t == key or t.startswith(key + ".") for t in told)})


def compare_data(report: Report, recipe: Recipe, path: Path) -> None:
    """Sets of a meta file (name -> annotation, length, repeat_time) and entries, matched by annotation file."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        theirs = {Path(m["annotation"]).name: (m.get("length"), m.get("repeat_time", 1)) for m in meta.values()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: {error!r}", expected="name -> {annotation, length, repeat_time}") from error
    ours = {Path(d.file).name: (d.count, d.repeat) for d in recipe.data}
    for name in sorted(ours.keys() | theirs.keys()):
        if name in ours and name in theirs and same_numbers(ours[name], theirs[name]):
            report.agree.append(f"data.{name}")
        else:
            mine, other = ours.get(name), theirs.get(name)
            report.contradictions.append(Finding(f"data.{name}", mine, other, "length, repeat_time", None))


def same_numbers(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    return all(a is None or b is None or same(a, b) for a, b in zip(ours, theirs, strict=True))
