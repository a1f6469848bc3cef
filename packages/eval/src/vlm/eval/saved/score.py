"""Score saved predictions: match them to the items of a benchmark, and write the files that an evaluation writes.

    summary = score_predictions(load_benchmark("POPE"), [Path("pope.jsonl")], out, data=folder, name="theirs")

A prediction is scored as it is, and nothing is guessed for the others: an item whose prediction is missing, ambiguous
or no text is not answered, counts in the total, and says why. Items, predictions and rows lie on the disk beyond some
thousands, so that memory hardly grows with them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.core.home import locked, write_json
from vlm.core.spill import Spilled
from vlm.eval.backends.judge import Judge
from vlm.eval.benchmark import Benchmark
from vlm.eval.keys import content_key, file_hash
from vlm.eval.loaders import Item, load_items
from vlm.eval.measures.reply import why_unanswered
from vlm.eval.measures.rows import ANSWERED
from vlm.eval.run.batches import unanswered_detail
from vlm.eval.run.outcomes import KINDS, Kind, Outcome
from vlm.eval.run.overwrite import refuse_overwrite
from vlm.eval.run.plan import Task
from vlm.eval.run.provenance import provenance
from vlm.eval.run.results import write_results
from vlm.eval.run.runner import Options, data_facts
from vlm.eval.run.summary import ImportedFile, ImportFacts, Summary, SummaryHead
from vlm.eval.saved.match import Matched, id_text, match_predictions, named
from vlm.eval.saved.predictions import SHOWN, Examples, Prediction, ReadPredictions, read_predictions

PROBLEMS = {
    "missing": "items without a prediction; not answered",
    "conflict": "items with several, different predictions; not answered",
    "duplicate": "items with several, equal predictions; one counts",
    "extra": "predictions of no item; not used",
    "bad record": "records without a reply or an id; not used",
    "mistyped id": "ids that fit only as another type (3, 3.0, ' 3'); used",
    "other reference": "predictions whose file names another right answer than the benchmark; scored against ours",
    "empty": "empty replies; scored as published, wrong in the strict column",
    "no answer": "replies that hold none, such as reasoning without an end; not scored",
    "not answered": "rows that our own results mark as oom, error or refused; kept so",
    "null": "null, or an empty cell (but of VLMEvalKit, where it is an empty reply); not answered",
    "NaN": "not a number; not answered",
    "not text": "numbers, lists and the like; not answered",
    "number cell": "numbers in a spreadsheet; read as text",
}
"""Kind of problem -> what happens to it."""


@dataclass(frozen=True)
class PredictionSource:
    """What the results name instead of a model: the digest of the files, and how they were read."""

    fingerprint: str
    settings: dict[str, Any]


def score_predictions(
    benchmark: Benchmark,
    paths: Sequence[Path],
    out_dir: Path,
    *,
    data: Path,
    name: str,
    judge: Judge | None = None,
    replace: bool = False,
    edition: str = "",
) -> Summary:
    """Write results.jsonl and summary.json to `out_dir` as an evaluation does, and return the summary.

    Its `imported` names the files with their digests, their format, how they were matched, and the problems found.

    Args:
        benchmark: The table.
        paths: Files and folders of predictions, of any known format.
        out_dir: Folder to write to.
        data: Folder with the benchmark's files.
        name: What the results call the model.
        judge: For tables with a judge.
        replace: Give up results of other predictions in the same folder.
        edition: Of a person's own file: see `Options`.

    Raises:
        ConfigError: The folder holds results of other predictions.
        DataError: No predictions, an unknown format, or predictions of other items; nothing is written.

    >>> files = [Path("pope.jsonl")]
    >>> score_predictions(load_benchmark("pope"), files, Path("out"), data=folder, name="theirs")  # doctest: +SKIP
    """
    items = load_items(benchmark, data, allow_missing=None)  # what was answered needs no picture any more
    found = read_predictions(paths, list(dict.fromkeys(item.group for item in items)))
    matched = match_predictions(items, found.predictions)
    problems = {kind: Examples() for kind in PROBLEMS}
    _note_predictions(found, matched, problems)
    files: list[ImportedFile] = [{"file": path.name, "sha256": file_hash(str(path))} for path in map(Path, paths)]
    digests = [file["sha256"] for file in files]
    source = PredictionSource(content_key(predictions=digests), {"backend": "imported", "files": files})
    outcomes: Spilled[Outcome] = Spilled()
    for item, numbers in zip(items, matched.by_item(), strict=True):
        outcomes.append(_outcome(item, [found.predictions[number] for number in numbers], problems))
    if not any(outcome.answered for outcome in outcomes):
        reasons = ", ".join(f"{kind} {seen.n}" for kind, seen in problems.items() if seen.n)
        raise DataError(f"no prediction can be scored: {reasons}", expected="texts", fix="correct the file")
    imported: ImportFacts = {
        "files": files,
        "format": found.format,
        "joined": matched.how,
        "predictions": len(found.predictions) + found.bad.n,
        "problems": {kind: {"n": seen.n, "examples": seen.first} for kind, seen in problems.items() if seen.n},
    }
    facts = data_facts(data, items=len(items), available=len(items), limit=None)
    variant = Options.model_validate({"edition": edition}).variant
    head: SummaryHead = {"model": name, "variant": variant, "data": facts, "imported": imported}

    def tasks() -> Iterator[Task]:
        return (Task(item, outcome.key, 0.0, {}) for item, outcome in zip(items, outcomes, strict=True))

    with locked(out_dir, f"vlm eval score {benchmark.name}"):
        if not replace:
            refuse_overwrite(source, tasks(), out_dir)
        write_json(out_dir / "run.json", provenance(source.fingerprint, {"imported": imported}, data))
        return write_results(benchmark, source, zip(tasks(), outcomes, strict=True), out_dir, head, judge)


def _note_predictions(found: ReadPredictions, matched: Matched, problems: dict[str, Examples]) -> None:
    """Note the predictions that are of no item, and those whose ids or references are not quite those of the items."""
    for number in matched.extra:
        p = found.predictions[number]
        nameless = p.ids and all(id_text(given) is None for given in p.ids.values())
        problems["bad record" if nameless else "extra"].add(f"{p.where}: {named(p)}")
    for where in found.bad.first:
        problems["bad record"].add(where)
    problems["bad record"].n += found.bad.n - len(found.bad.first)
    for number in matched.retyped:
        p = found.predictions[number]
        problems["mistyped id"].add(f"{p.where}: {named(p)}")
    for number in matched.references.others:
        p = found.predictions[number]
        problems["other reference"].add(f"{p.where}: {p.reference!r:.60}")


def _without_answer(item: Item, why: str, reply: str) -> Outcome:
    detail = unanswered_detail(why, reply, {})
    return Outcome(content_key(imported=reply, id=item.id), item.id, "unanswered", detail=detail)


def _outcome(item: Item, given: Sequence[Prediction], problems: dict[str, Examples]) -> Outcome:
    """Return the outcome of one item; problems with its predictions are added to `problems`."""

    def unanswered(kind: str, detail: str) -> Outcome:
        problems[kind].add(f"{item.id}: {detail}")
        return Outcome(
            content_key(imported=kind, id=item.id, detail=detail), item.id, "error", detail=f"{kind}: {detail}"
        )

    if not given:
        return unanswered("missing", "no prediction of this id")
    if len(given) > 1:
        where = ", ".join(p.where for p in given[:SHOWN])
        if len({repr(p.reply) for p in given}) > 1:
            return unanswered("conflict", f"{len(given)} predictions that differ, in {where}")
        problems["duplicate"].add(f"{item.id}: in {where}")
    reply, table = given[0].reply, given[0].table
    kept, why = given[0].outcome
    if reply is None and kept in KINDS and kept not in ANSWERED:
        kind: Kind = kept
        problems["no answer" if kind == "unanswered" else "not answered"].add(f"{item.id}: {given[0].where}: {kind}")
        detail = why or f"{kind} in {given[0].where}"
        return Outcome(content_key(imported=kind, id=item.id, detail=detail), item.id, kind, detail=detail)
    if reply is None:
        return unanswered("null", f"no reply in {given[0].where}")
    if (isinstance(reply, float) and math.isnan(reply)) or (table and str(reply).strip().lower() == "nan"):
        return unanswered("NaN", f"NaN in {given[0].where}")
    if table and isinstance(reply, int | float) and not isinstance(reply, bool):
        problems["number cell"].add(f"{item.id}: {reply!r}")
        reply = f"{reply:g}" if reply == int(reply) else str(reply)
    if not isinstance(reply, str):
        return unanswered("not text", f"{reply!r:.60} in {given[0].where}")
    if why := why_unanswered(reply):
        problems["no answer"].add(f"{item.id}: {given[0].where}: {why}")
        return _without_answer(item, why, reply)
    if not reply.strip():
        problems["empty"].add(f"{item.id}: {given[0].where}")
    answered: Kind = "truncated" if kept == "truncated" else "ok"
    return Outcome(content_key(imported=reply, id=item.id), item.id, answered, completion=reply)
