"""The part of a model card about scores: every evaluation of these very weights on this machine."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vlm.cli.share.text import cell
from vlm.core.errors import VlmError
from vlm.core.home import read_object, runs
from vlm.eval.report.gather.comparability import caveats_of
from vlm.eval.saved.evaluations import Evaluation, find_evaluations
from vlm.models.checkpoint.load import fingerprint


def score_lines(folder: Path) -> list[str]:
    """Return the Markdown of all scores of the weights in a folder."""
    found = find_evaluations(evaluated(folder))
    if not found:
        return ["No evaluation of these weights is on the machine that shared them.", ""]
    lines = ["With 95 % intervals; an item without an answer counts in the total.", ""]
    lines += ["| benchmark | settings | metric | score | scored of total | |", "|---|---|---|---|---|---|"]
    for evaluation in found:
        lines += list(_rows(evaluation))
    return [*lines, ""]


def evaluated(folder: Path) -> list[Path]:
    """Return the folders of evaluations below runs/ whose weights are those of a model."""
    digest, found = "", []
    for summary in sorted(runs().rglob("summary.json")) if runs().is_dir() else []:
        if not summary.with_name("results.jsonl").is_file():
            continue
        with suppress(VlmError):  # a damaged one is nobody's score
            weights = (read_object(summary).get("provenance") or {}).get("weights")
            digest = digest or fingerprint(folder)
            if weights == digest:
                found.append(summary.parent)
    return found


def _rows(evaluation: Evaluation) -> Iterator[str]:
    caveats = "; ".join(caveats_of(evaluation))
    for metric in evaluation.summary["metrics"]:
        value, low, high = metric["value"], metric.get("low"), metric.get("high")
        score = "none" if value is None else f"{value:.2f}"
        score += "" if value is None or low is None or high is None else f" [{low:.2f}, {high:.2f}]"
        notes = "; ".join(filter(None, (caveats, metric.get("note", ""))))
        yield (
            f"| {cell(evaluation.summary['title'])} | {cell(evaluation.label)} | {cell(metric['name'])} | {score} "
            f"| {metric['scored']:,} of {metric['total']:,} | {cell(notes)} |"
        )
