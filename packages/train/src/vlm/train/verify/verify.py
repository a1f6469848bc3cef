"""Compare a recipe with what was published: a launch script, a table of a README, or a meta file of data sets.

>>> report = verify("v2pe-32k", Path("shell/internlm2_2b/baseline.sh"))                  # doctest: +SKIP
>>> report.contradictions     # keys on which both disagree and no `differences` entry says why
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

UNSTATED = {"name", "title", "sources", "differences", "hardware", "data", "model", "max_lost", "stride_choices"}
"""Keys of a recipe that no script states, or that are compared in another way."""


@dataclass(frozen=True)
class Finding:
    """One key that a source states: our value, theirs, their words, and the `why` of our difference if any."""

    key: str
    ours: Any
    theirs: Any
    said: str
    noted: str | None = None


@dataclass
class VerifyReport:
    """What a comparison found.

    Attributes:
        recipe: its name, None where a script was only read.
        source: the file.
        agree: keys with the same value.
        contradictions: keys with another value that no difference explains.
        noted: keys with another value that a difference explains.
        dead_paths: paths of a script that do not exist.
        unused: variables of a script that reach no command.
        unforwarded: variables that a caller may set and that do not reach the program.
        unknown: arguments that we do not know.
        broken: parts of a script that make no sense.
        only_ours: keys that the recipe sets and the source leaves out.
    """

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
        """Return all findings for JSON."""
        return asdict(self)


def verify(name: str, against: Path, *, label: str | None = None) -> VerifyReport:
    """Compare a recipe with what was published.

    Args:
        name: of the recipe.
        against: a launch script (.sh), a README with a table (.md) or a meta file of data sets (.json).
        label: column or row of the README's table; default the one that names the recipe.

    Raises:
        ConfigError: the file does not exist or is of another kind, or its table has no such label.
    """
    recipe, against = load_recipe(name), Path(against)
    report = VerifyReport(recipe.name, str(against))
    if against.suffix == ".sh":
        script = read_script(against)
        compare_claims(report, recipe, claims(script, recipe.hardware.gpus if recipe.hardware else None))
        lint(report, script)
        report.only_ours = only_ours(recipe, report)
    elif against.suffix == ".md":
        compare_claims(report, recipe, read_table(against, recipe.name, label))
    elif against.suffix == ".json":
        compare_data(report, recipe, against)
    else:
        raise ConfigError(f"{against}: {against.suffix or 'no ending'}", expected="a file .sh, .md or .json")
    return report


def verify_script(path: Path) -> VerifyReport:
    """Read a launch script, and compare it with the shipped recipe that is nearest to it, if any is near.

    Raises:
        ConfigError: there is no such file, or it starts no Python program.
    """
    if name := nearest(path):
        return verify(name, path)
    report = VerifyReport(None, str(path))
    lint(report, read_script(path))
    return report


def nearest(script: Path) -> str | None:
    """Return the shipped recipe that agrees best with a script: agreements minus contradictions; None if none does."""
    said = read_script(script)

    def score(name: str) -> tuple[int, str]:
        recipe, report = load_recipe(name), VerifyReport(name, str(script))
        compare_claims(report, recipe, claims(said, recipe.hardware.gpus if recipe.hardware else None))
        return len(report.agree) - 3 * len(report.contradictions) - len(report.noted), name

    published = [n for n in recipe_names() if not n.startswith(("quickstart", "smol", "mini"))]
    best, name = max(score(name) for name in published)
    return name if best > 0 else None


def compare_claims(report: VerifyReport, recipe: Recipe, said: dict[str, tuple[Any, str]]) -> None:
    """Sort claims, key -> (value, the words that say it), into agreeing, noted and contradicting ones."""
    for key, (theirs, words) in said.items():
        ours = value_of(recipe, key)
        if same(ours, theirs):
            report.agree.append(key)
            continue
        why = noted(recipe, key)
        (report.noted if why else report.contradictions).append(Finding(key, ours, theirs, words, why))


def value_of(recipe: Recipe, key: str) -> Any:
    """Return the recipe's value of a dotted key; below `model.spec` that of the preset with the recipe's changes."""
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
    """Return whether two values are equal: lists in any order, numbers to 1e-6."""
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        return set(ours) == set(theirs)
    if isinstance(ours, (int, float)) and isinstance(theirs, (int, float)) and not isinstance(ours, bool):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return bool(ours == theirs)


def noted(recipe: Recipe, key: str) -> str | None:
    """Return why the recipe differs in a key, None if it does not say."""
    for d in recipe.differences:
        if key == d.key or key.startswith(d.key + ".") or key in d.set:
            return d.why
    return None


def lint(report: VerifyReport, script: Script) -> None:
    """Note what is wrong with a script, whatever the recipe."""
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


def only_ours(recipe: Recipe, report: VerifyReport) -> list[str]:
    """Return the keys that the recipe sets and the script leaves out."""
    stated = {*report.agree, *(f.key for f in [*report.noted, *report.contradictions])}
    set_here = recipe.model_dump(exclude_defaults=True, exclude=UNSTATED)
    flat = [key for k, v in set_here.items() for key in ([f"{k}.{j}" for j in v] if isinstance(v, dict) else [k])]
    return sorted({key for key in flat if not any(t == key or t.startswith(key + ".") for t in stated)})


def compare_data(report: VerifyReport, recipe: Recipe, path: Path) -> None:
    """Compare the sets of a meta file (name -> annotation, length, repeat_time), matched by annotation file."""
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
    """Return whether two rows of numbers are equal where both are known."""
    return all(a is None or b is None or same(a, b) for a, b in zip(ours, theirs, strict=True))
