"""An evaluation as a log of inspect_ai (`.eval`, version 2), for its viewer and its analysis functions.

write_inspect_log(find_evaluations([Path("runs/a/eval/m/POPE/default")])[0], Path("pope.eval"))

The format is a zip of JSON files; inspect_ai is not needed to write one. Source: inspect_ai 0.3, `inspect_ai.log`.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError, MediaError
from vlm.core.home import new_file
from vlm.core.paths import as_name, is_inside
from vlm.eval.measures.rows import ResultRow
from vlm.eval.report.gather.samples import IMAGES, data_url, still
from vlm.eval.run.summary import MetricRow
from vlm.eval.saved.evaluations import Evaluation, finite

STOPPED = {"ok": "stop", "truncated": "max_tokens"}
"""Outcome with a reply -> why the reply ended, in inspect_ai's words."""

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in the zip: the same evaluation gives the same bytes."""


def log_names(evaluations: Sequence[Evaluation]) -> dict[str, Evaluation]:
    """Return a file name for each evaluation; those with equal names are numbered."""
    found: dict[str, Evaluation] = {}
    for e in evaluations:
        name = as_name(f"{e.summary['benchmark']} {e.summary['model']} {e.label}".replace(" ", "-"))
        again = sum(known == name or known.startswith(f"{name}-run") for known in found)
        found[f"{name}-run{again + 1}" if again else name] = e
    return {f"{name}.eval": e for name, e in found.items()}


def only_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the only evaluation, which is what one file can hold.

    Raises:
        DataError: There is none, or there are several.
    """
    if len(evaluations) != 1:
        raise DataError(
            f"{len(evaluations)} evaluations for one .eval file",
            expected="one evaluation",
            fix="name the folder of one results.jsonl, or a folder for -o with `-f eval`",
        )
    return evaluations[0]


def write_inspect_log(e: Evaluation, path: Path) -> None:
    """Write the log: all samples with prompt, reply, both scores and thumbnails of their first images.

    Raises:
        DataError: A row of the evaluation cannot be read.
    """
    head, summaries = _head(e), list[dict[str, Any]]()
    with new_file(path) as temporary, zipfile.ZipFile(temporary, "w") as log:
        _add(log, "_journal/start.json", {key: head[key] for key in ("version", "eval", "plan")})
        for sample in _samples(e):
            _add(log, f"samples/{sample['id']}_epoch_1.json", sample)
            summaries.append(_summary(sample))
        _add(log, "_journal/summaries/1.json", summaries)
        _add(log, "summaries.json", summaries)
        _add(log, "header.json", head)


def _add(log: zipfile.ZipFile, name: str, content: Any) -> None:
    about = zipfile.ZipInfo(name, EPOCH)
    about.compress_type = zipfile.ZIP_DEFLATED
    log.writestr(about, json.dumps(content, ensure_ascii=True, allow_nan=False))


def _head(e: Evaluation) -> dict[str, Any]:
    summary, model = e.summary, f"vlm/{e.summary['model']}"
    run = hashlib.sha256(json.dumps([str(e.folder.name), summary], sort_keys=True, default=str).encode()).hexdigest()
    runs = e.timing.get("runs", [])
    ended = max((time for one in runs if (time := _time(one.get("ended")))), default=datetime(1980, 1, 1, tzinfo=UTC))
    took = timedelta(seconds=sum(finite(one.get("seconds")) or 0 for one in runs))
    created, completed = (ended - took).isoformat(), ended.isoformat()
    scored = max((m["scored"] for m in summary["metrics"]), default=0)
    spec = {
        "eval_id": run[:22],
        "run_id": run[22:44],
        "task_id": run[:22],
        "created": created,
        "task": summary["benchmark"],
        "task_version": 0,
        "task_attribs": {},
        "task_args": {},
        "dataset": {"name": summary["title"], "samples": len(e.rows), "sample_ids": [_id(row.id) for row in e.rows]},
        "model": model,
        "model_args": {"variant": e.label},
        "config": {"epochs": 1},
        "packages": {name: v for name, v in (e.run.get("versions") or {}).items() if v},
        "metadata": {"provenance": summary.get("provenance", {}), "outcomes": summary["outcomes"]},
    }
    rules = (("published", summary["metrics"]), ("strict", summary["strict_metrics"]))
    scores = [
        {"name": name, "scorer": name, "scored_samples": scored, "params": {}, "metrics": _metrics(metrics)}
        for name, metrics in rules
        if metrics
    ]
    return {
        "version": 2,
        "status": "success",
        "eval": spec,
        "plan": {"name": "vlm", "steps": [], "config": {}},
        "results": {"total_samples": len(e.rows), "completed_samples": len(e.rows), "scores": scores},
        "stats": {"started_at": created, "completed_at": completed, "model_usage": {}},
    }


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (TypeError, ValueError):
        return None


def _metrics(metrics: Sequence[MetricRow]) -> dict[str, Any]:
    return {
        m["name"]: {
            "name": m["name"],
            "value": m["value"],
            "params": {},
            "metadata": {key: m.get(key) for key in ("low", "high", "scored", "total", "note")},
        }
        for m in metrics
        if m["value"] is not None
    }


def _samples(e: Evaluation) -> Iterator[dict[str, Any]]:
    model = f"vlm/{e.summary['model']}"
    with e.reading() as read:
        for line in e.rows:
            row = read(line.offset)
            attachments: dict[str, str] = {}
            asked: dict[str, Any] = {"role": "user", "content": _content(row, attachments)}
            completion, gold = row["completion"], row["gold"]
            messages, choices = [asked], list[dict[str, Any]]()
            if completion is not None:
                said: dict[str, Any] = {
                    "role": "assistant",
                    "content": completion,
                    "source": "generate",
                    "model": model,
                }
                messages.append(said)
                choices.append({"message": said, "stop_reason": STOPPED.get(row["outcome"], "unknown")})
            sample: dict[str, Any] = {
                "id": _id(line.id),
                "epoch": 1,
                "input": [asked],
                "target": gold if _is_words(gold) else json.dumps(gold, ensure_ascii=False),
                "messages": messages,
                "output": {"model": model, "choices": choices, "completion": completion or ""},
                "scores": _scores(row),
                "metadata": {
                    key: row.get(key) for key in ("group", "outcome", "meta", "tokens", "max_position", "images")
                },
                "store": {},
                "events": [],
                "model_usage": {},
                "attachments": attachments,
            }
            if completion is None:
                sample["error"] = {"message": f"{row['outcome']}: {row['why']}", "traceback": "", "traceback_ansi": ""}
            yield sample


def _id(name: str) -> str:
    """Return an id that can be part of a path in the zip."""
    return name if is_inside(f"samples/{name}") else as_name(name)


def _is_words(gold: Any) -> bool:
    return isinstance(gold, str) or (isinstance(gold, list) and bool(gold) and all(isinstance(g, str) for g in gold))


def _scores(row: ResultRow) -> dict[str, Any]:
    both = (("published", row["score"]), ("strict", row["strict_score"]))
    about = {"answer": row["extracted"], "explanation": row["why"]}
    return {name: {"value": value, **about} for name, value in both if value is not None}


def _content(row: ResultRow, attachments: dict[str, str]) -> list[dict[str, Any]]:
    """Return thumbnails of the first images, then the prompt; what cannot be shown is named."""
    content: list[dict[str, Any]] = []
    for path in row["images"][:IMAGES]:
        url = ""
        with suppress(MediaError, OSError):
            url = data_url(still(Path(path)))
        if not url:
            content.append({"type": "text", "text": f"[{Path(path).name} cannot be read]"})
            continue
        name = hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()
        attachments[name] = url
        content.append({"type": "image", "image": f"attachment://{name}", "detail": "auto"})
    if left := len(row["images"]) - IMAGES:
        content += [{"type": "text", "text": f"[and {left} more images]"}] if left > 0 else []
    return [*content, {"type": "text", "text": row["prompt"]}]


def _summary(sample: dict[str, Any]) -> dict[str, Any]:
    """Return the row of the viewer's list: without images, and long texts cut."""
    texts = [part["text"] for part in sample["input"][0]["content"] if part["type"] == "text"]
    kept = {key: sample[key] for key in ("id", "epoch", "target", "scores", "model_usage")}
    asked = [{"role": "user", "content": " ".join(texts)[-2000:]}]
    failed = {"error": sample["error"]["message"]} if "error" in sample else {}
    few = {key: sample["metadata"][key] for key in ("group", "outcome")}
    return {
        **kept,
        "input": asked,
        "metadata": few,
        "completed": True,
        "message_count": len(sample["messages"]),
        **failed,
    }
