"""Tables of training stages: loss curve, ledger and speed."""

import math
from statistics import fmean, median
from typing import Any, TypedDict

from vlm.eval.report.gather.training import Stage
from vlm.eval.saved.evaluations import finite

CURVE_POINTS = 400
"""Most points of a loss curve."""


class DropReason(TypedDict):
    """How many samples were dropped or truncated for one reason."""

    what: str
    reason: str
    samples: int


class StageRow(TypedDict):
    """A training stage: losses, tokens and its ledger of samples.

    `closes`: in = used + dropped + truncated; None while there is no summary. `curve`: [step, loss].
    """

    run: str
    stage: str
    steps: int
    first_loss: float | None
    last_loss: float | None
    useful_tokens: float
    padding_share: float | None
    not_finite: int
    ledger: dict[str, int]
    closes: bool | None
    reasons: list[DropReason]
    curve: list[list[float]]


class StageSpeed(TypedDict):
    """Speed and memory of a stage: median tokens per second, seconds in steps, largest memory in GB."""

    run: str
    stage: str
    tokens_per_s: float | None
    seconds: float | None
    rss_gb: float | None


def stage_row(stage: Stage) -> StageRow:
    """Return losses, totals and ledger of a stage; its curve has at most 400 points, evenly spaced, and the last."""
    records = [r for r in stage.records if finite(r.get("loss")) is not None]
    step = max(1, math.ceil(len(records) / CURVE_POINTS))
    thin = records[::step] + (records[-1:] if records and (len(records) - 1) % step else [])
    padding = [r["padding_share"] for r in records if finite(r.get("padding_share")) is not None]
    lost = {key: n for key, n in stage.ledger.items() if key not in ("in", "used")}
    return {
        "run": stage.run,
        "stage": stage.name,
        "steps": len(stage.records),
        "first_loss": records[0]["loss"] if records else None,
        "last_loss": fmean(r["loss"] for r in records[-10:]) if records else None,
        "useful_tokens": sum(finite(r.get("useful_tokens", r.get("tokens"))) or 0 for r in stage.records),
        "padding_share": fmean(padding) if padding else None,
        "not_finite": len(stage.records) - len(records),
        "ledger": stage.ledger,
        "closes": stage.ledger["in"] == stage.ledger["used"] + sum(lost.values()) if "used" in stage.ledger else None,
        "reasons": [{"what": what, "reason": why, "samples": n} for (what, why), n in stage.reasons.items()],
        "curve": [[r["step"], r["loss"]] for r in thin],
    }


def stage_speed(stage: Stage) -> StageSpeed:
    """Return speed and memory of a stage."""
    speeds, seconds = _values(stage.records, "tokens_per_s"), _values(stage.records, "seconds")
    return {
        "run": stage.run,
        "stage": stage.name,
        "tokens_per_s": median(speeds) if speeds else None,
        "seconds": sum(seconds) if seconds else None,
        "rss_gb": max(_values(stage.records, "rss_gb"), default=None),
    }


def _values(records: list[dict[str, Any]], key: str) -> list[float]:
    return [value for record in records if (value := finite(record.get(key))) is not None]
