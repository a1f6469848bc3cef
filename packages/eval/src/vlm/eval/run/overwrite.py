"""Results are never replaced by those of another model, other settings or fewer items, unless a person says so."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vlm.core.errors import ConfigError, DataError
from vlm.core.home import read_json
from vlm.core.spill import Places, Spilled
from vlm.core.text import printable
from vlm.eval.keys import content_key
from vlm.eval.run.plan import Task
from vlm.eval.run.summary import AnswerSource

SHOWN = 3
"""Settings that a message names."""


def refuse_overwrite(source: AnswerSource, tasks: Iterable[Task], out_dir: Path) -> None:
    """Check that no finished result in a folder is lost when these items are scored into it.

    Every answer there must be that of one of these items, by the key of the answer: weights, media, prompt and decode
    settings. So more items may be added, items that were not answered may be asked again, and scorers may change.

    Args:
        source: What answers now.
        tasks: The items that will be written.
        out_dir: The folder of the results.

    Raises:
        ConfigError: An answer would be lost; names what differs.
    """
    summary = _finished(out_dir)
    known = summary.get("provenance") if summary else None
    if not isinstance(known, dict) or not known.get("scorers"):
        return
    places, keys = Places(), Spilled[tuple[str, str]]()
    for number, task in enumerate(tasks):
        places.add(task.item.id, number)
        keys.append((task.item.id, task.key))
    answers = lost = gone = 0
    for row in _rows(out_dir / "results.jsonl"):
        if row.get("completion") is None:
            continue
        name = str(row.get("id"))
        planned = dict(keys[number] for number in places.find(name)).get(name)
        answers += 1
        gone += planned is None
        lost += row.get("key") != _row_key(planned, known["scorers"], row)
    if lost:
        found = f"{out_dir} holds {answers:,} answers, and {lost:,} of them would be lost: "
        raise ConfigError(
            found + "; ".join(_differences(known, source, gone, len(keys))),
            expected="the same weights, settings and data, with at least the same items",
            fix="--name NAME or --out DIR keeps both results; --replace gives the old ones up",
        )


def _finished(out_dir: Path) -> dict[str, Any] | None:
    """Return the summary of finished results; None where there are none, or a kill or a disk damaged them."""
    if not (out_dir / "results.jsonl").exists():
        return None
    try:
        summary = read_json(out_dir / "summary.json")
    except DataError:
        return None
    return summary if isinstance(summary, dict) else None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows that can be read."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row


def _row_key(answer: str | None, scorers: str, row: dict[str, Any]) -> str | None:
    """Return the key that the row has if its answer is the one with this key."""
    judgement = {"judge": row["judge"]} if "judge" in row else {}
    return answer and content_key(answer=answer, scorers=scorers, **judgement)


def _differences(known: dict[str, Any], source: AnswerSource, gone: int, planned: int) -> Iterator[str]:
    """Say in words why answers would be lost; `gone` of them are of items that are not among those planned."""
    same = True
    if known.get("weights") != source.fingerprint:
        same = False
        yield f"they are of other weights ({str(known.get('weights'))[:12]}, now {source.fingerprint[:12]})"
    before, now = known.get("decode"), json.loads(json.dumps(source.settings))
    if isinstance(before, dict) and before != now:
        same = False
        keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        named = [f"{key} {printable(before.get(key), 40)}, now {printable(now.get(key), 40)}" for key in keys[:SHOWN]]
        yield f"other settings ({'; '.join(named)}{' …' if len(keys) > SHOWN else ''})"
    if gone:
        yield f"{gone:,} items are not asked now (of {planned:,})"
    elif same:
        yield "the questions, pictures or limits are others now"
