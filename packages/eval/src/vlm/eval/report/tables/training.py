"""Training stages in the report: loss curve, ledger, and how fast it went."""

import math
from statistics import fmean, median
from typing import Any

from vlm.eval.report.gather.collect import number
from vlm.eval.report.gather.runs import Stage

CURVE_POINTS = 400


def training(stage: Stage) -> dict[str, Any]:
    """Loss curve (at most 400 points, evenly thinned, last one kept), totals and ledger of a stage.

    `closes`: in = used + dropped + truncated; None while there is no summary.
    """
    records = [r for r in stage.records if number(r.get("loss")) is not None]
    step = max(1, math.ceil(len(records) / CURVE_POINTS))
    thin = records[::step] + (records[-1:] if records and (len(records) - 1) % step else [])
    padding = [r["padding_share"] for r in records if number(r.get("padding_share")) is not None]
    lost = {key: n for key, n in stage.ledger.items() if key not in ("in", "used")}
    return {
        "run": stage.run,
        "stage": stage.name,
        "steps": len(stage.records),
        "first_loss": records[0]["loss"] if records else None,
        "last_loss": fmean(r["loss"] for r in records[-10:]) if records else None,
        "useful_tokens": sum(number(r.get("useful_tokens", r.get("tokens"))) or 0 for r in stage.records),
        "padding_share": fmean(padding) if padding else None,
        "not_finite": len(stage.records) - len(records),
        "ledger": stage.ledger,
        "closes": stage.ledger["in"] == stage.ledger["used"] + sum(lost.values()) if "used" in stage.ledger else None,
        "reasons": [{"what": what, "reason": why, "samples": n} for (what, why), n in stage.reasons.items()],
        "curve": [[r["step"], r["loss"]] for r in thin],
    }


def speed(stage: Stage) -> dict[str, Any]:
    """Median tokens per second, seconds in steps, and largest memory in GB of a stage."""
    of = {
        key: [v for r in stage.records if (v := number(r.get(key))) is not None]
        for key in ("tokens_per_s", "seconds", "rss_gb")
    }
    return {
        "run": stage.run,
        "stage": stage.name,
        "tokens_per_s": median(of["tokens_per_s"]) if of["tokens_per_s"] else None,
        "seconds": sum(of["seconds"]) if of["seconds"] else None,
        "rss_gb": max(of["rss_gb"], default=None),
    }
