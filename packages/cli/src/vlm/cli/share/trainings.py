"""The part of a model card about trainings: recipes, their differences from published ones, data, samples counted."""

import re
from typing import Any

import yaml

from vlm.cli.share.lineage import Lineage, TrainedStage
from vlm.cli.share.text import cell, shown, without_paths
from vlm.core.errors import VlmError
from vlm.core.home import read_object, resolve
from vlm.core.rows.write import MANIFEST
from vlm.eval.report.gather.training import find_stages
from vlm.train.recipe.recipe import load_recipe, recipe_names
from vlm.train.run.provenance import changes

APART = {"name", "title", "sources", "differences", "data", "log", "allow_outside", "hardware", "save_every", "keep"}
"""Keys of a recipe that are told elsewhere, or change no number."""

REASONS = 10
"""Reasons of dropped samples that a card lists."""


def training_lines(lineage: Lineage) -> list[str]:
    """Return the Markdown of all trainings, the first of them first."""
    if not lineage.stages:
        return ["The folder does not say how it was trained.", ""]
    lines = []
    for stage in reversed(lineage.stages):
        lines += [f"### {cell(stage.record.recipe.get('name', stage.folder.name))}", ""]
        lines += [*_recipe_lines(stage), *_data_lines(stage), *_ledger_lines(stage)]
    return lines


def _recipe_lines(stage: TrainedStage) -> list[str]:
    recipe = stage.record.recipe
    lines = [f"{cell(recipe.get('title', ''))}", "", "Differences from the published recipe:", ""]
    found = [
        f"- `{cell(one.get('key'))}`: {cell(one.get('ours'))}; published: {cell(one.get('published'))}. "
        f"{cell(one.get('why'))}"
        for one in recipe.get("differences") or []
    ]
    found += _changes_of_shipped(recipe)
    lines += [*(found or ["- none is recorded"]), ""]
    if stage.record.earlier:
        ends = ", ".join(f"up to step {one.steps}" for one in stage.record.earlier)
        lines += [f"Earlier steps were taken with other settings or data ({ends}).", ""]
    text = yaml.safe_dump(without_paths(recipe), sort_keys=False, allow_unicode=True)
    return [
        *lines,
        "<details><summary>the whole recipe</summary>",
        "",
        "```yaml",
        text.rstrip(),
        "```",
        "",
        "</details>",
        "",
    ]


def _changes_of_shipped(recipe: dict[str, Any]) -> list[str]:
    """Return what was changed in the shipped recipe that a recipe is or was made from, or say that there is none."""
    sources = " ".join(str(source) for source in (recipe.get("sources") or {}).values())
    scaled = re.search(r"ours: (\S+) scaled to", sources)
    name = str(recipe.get("name"))
    base = name if name in recipe_names() else scaled[1] if scaled else ""
    if base not in recipe_names():
        return ["- a recipe of its own: no published one has this name"]
    try:
        known = load_recipe(base).model_dump(mode="json")
    except VlmError:
        return ["- the recipe of this name cannot be read here, so nothing was compared"]
    before, now = ({k: v for k, v in one.items() if k not in APART} for one in (known, recipe))
    lines = [f"- changed here: `{cell(without_paths(line.strip()))}`" for line in changes(before, now)]
    return lines if base == name else [f"- made from `{base}`, which is shipped with `vlm`", *lines]


def _data_lines(stage: TrainedStage) -> list[str]:
    entries = stage.record.recipe.get("data") or []
    lines = ["| data | records | repeated | |", "|---|---|---|---|"]
    for entry in entries:
        file = str(entry.get("file", ""))
        notes = [f"{entry['count']} of them"] if entry.get("count") else []
        records = stage.record.lines.get(file)
        counted = "unknown" if records is None else f"{records:,}"
        notes += imported(file)
        lines.append(
            f"| `{cell(shown(file))}` | {counted} | {entry.get('repeat', 1):g} times | {cell('; '.join(notes))} |"
        )
    return [*lines, ""]


def imported(file: str) -> list[str]:
    """Return where the records of one's own data were read from, how many, and why some were refused."""
    beside = resolve(file).parent / MANIFEST
    if not beside.is_file():
        return []
    try:
        about = read_object(beside)
    except VlmError:
        return []
    if not isinstance(about.get("source"), str) or not isinstance(about.get("read"), int):
        return []
    said = [f"read from {shown(about['source'])} ({about.get('format', 'unknown format')}): {about['read']:,} rows"]
    refused = about.get("refused")
    for why, number in refused.items() if isinstance(refused, dict) else ():
        said.append(f"{number:,} refused: {without_paths(why)}")
    return said


def _ledger_lines(stage: TrainedStage) -> list[str]:
    """Return what became of the samples, and why some were not used."""
    found = [one for one in find_stages([stage.folder]) if one.name == stage.folder.name]
    if not found or not found[0].ledger:
        return ["What became of the samples is not recorded.", ""]
    ledger, reasons = found[0].ledger, found[0].reasons
    counts = ", ".join(f"{ledger[key]:,} {key}" for key in ("used", "dropped", "truncated") if key in ledger)
    lines = [f"Samples: {ledger.get('in', 0):,} drawn: {counts}; {len(found[0].records):,} steps.", ""]
    for (what, why), number in list(reasons.items())[:REASONS]:
        lines.append(f"- {cell(what)}: {number:,}: {cell(why)}")
    if len(reasons) > REASONS:
        lines.append(f"- and {len(reasons) - REASONS} more reasons")
    return [*lines, *([""] if reasons else [])]
