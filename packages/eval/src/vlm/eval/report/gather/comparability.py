"""What limits a comparison of an evaluation with published numbers: which items, and how they were asked."""

from typing import Any

from vlm.eval.saved.evaluations import Evaluation


def caveats_of(e: Evaluation) -> list[str]:
    """Return why the numbers must not be compared with published ones; empty when no reason is known."""
    data = e.summary["data"]
    caveats = ["miniature data"] if data.get("mini") else []
    available = data.get("available", len(e.rows))
    if len(e.rows) < available:
        caveats.append(f"first {len(e.rows):,} of {available:,} items")
    if e.variant.get("shuffle_images"):
        caveats.append("images exchanged on purpose")
    added = sum(row.added_option for row in e.rows)
    caveats += [f"{added:,} items with an option that the published loader drops"] if added else []
    unscored = sum(n for kind, n in e.summary["outcomes"].items() if kind in ("unanswered", "oom", "error", "refused"))
    caveats += [f"{unscored:,} items unscored"] if unscored else []
    budget = e.variant.get("max_new_tokens")
    caveats += [f"up to {budget:,} new tokens instead of the benchmark's budget"] if budget else []
    return caveats + ([f"{e.not_numbers:,} scores that are not numbers"] if e.not_numbers else [])


def settings_of(e: Evaluation) -> dict[str, Any]:
    """Return the settings that published measurements name, as this evaluation recorded them; None where it did not."""
    decode = e.summary.get("provenance", {}).get("decode") or {}
    rule = decode.get("image_rule") or {}
    plain = {key: decode.get(key) for key in ("template", "dtype", "stride", "beams")}
    return {**plain, "image rule": rule.get("kind"), "image size": rule.get("size"), "max tiles": rule.get("max_tiles")}
