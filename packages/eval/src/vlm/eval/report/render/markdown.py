"""The report as Markdown: the tables of the page, curves and haystacks as tables of their points."""

from collections.abc import Iterable, Sequence
from typing import Any

from vlm.eval.report.build import Report
from vlm.eval.report.render.svg import short


def as_markdown(report: Report) -> str:
    """The Markdown page. No times: it is the same for the same results."""
    parts = [f"# {', '.join(report.models) or 'Training'}: evaluation report"]
    parts += ["\n".join(f"- **{warning}**" for warning in report.warnings)] if report.warnings else []
    if report.accuracy:
        parts += ["## Accuracy", _accuracy(report)]
    for table in report.published:
        parts += _published(table)
    if report.blind:
        pairs = [
            [
                b["title"],
                b["model"],
                b["variant"],
                *(one(b[k]) for k in ("sighted", "blind", "difference", "low", "high")),
            ]
            for b in report.blind
        ]
        head = ["benchmark", "model", "variant", "right images", "exchanged", "difference", "low", "high"]
        parts += ["## Blind control", grid(head, pairs)]
    for h in report.haystacks:
        title = " · ".join(filter(None, (h["title"], h["group"], h["model"], h["variant"])))
        parts += [f"## Haystack: {title}", _haystack(h)]
    for title, rows, key in (
        ("Score by length", report.by_length, "length"),
        ("Score by last position", report.by_position, "position"),
    ):
        if rows:
            points = [
                [r["title"], r["model"], r["variant"], short(p[key]), one(p["value"]), str(p["items"])]
                for r in rows
                for p in r["points"]
            ]
            parts += [f"## {title}", grid(["benchmark", "model", "variant", f"{key} from", "score", "items"], points)]
    if report.by_stride:
        points = [
            [r["title"], r["model"], r["metric"], f"{p['stride']:g}", one(p["value"]), one(p["low"]), one(p["high"])]
            for r in report.by_stride
            for p in r["points"]
        ]
        parts += [
            "## Score by stride",
            grid(["benchmark", "model", "metric", "stride", "score", "low", "high"], points),
        ]
    if report.training:
        parts += ["## Training", _training(report)]
    return "\n\n".join(parts) + "\n"


def _accuracy(report: Report) -> str:
    head = ["benchmark", "model", "variant", "metric", "value", "low", "high", "strict", "scored / total", "marks"]
    rows = []
    for row in report.accuracy:
        for m in row["metrics"]:
            marks = "; ".join(filter(None, [*row["caveats"], m["note"]]))
            numbers = [one(m[k]) for k in ("value", "low", "high", "strict")]
            who = [row["title"], row["model"], row["variant"], m["name"]]
            rows.append([*who, *numbers, f"{m['scored']} / {m['total']}", marks])
    return grid(head, rows)


def _published(table: dict[str, Any]) -> list[str]:
    head = [""] + [f"ours: {o['model']}, {o['variant']}" for o in table["ours"]] + [s["name"] for s in table["systems"]]
    rows = []
    for row in table["rows"]:
        ours = [_marked(one(c["value"]), c["marks"]) if c else "–" for c in row["ours"]]
        theirs = [_marked("–" if c["value"] is None else str(c["value"]), c["marks"]) for c in row["published"]]
        rows.append([row["column"], *ours, *theirs])
    parts = [f"## {table['system']}: {table['title']}", grid(head, rows)]
    notes = [f"- [{note['mark']}] {note['text']}" for note in table["footnotes"]]
    parts += ["\n".join(notes + [f"- {note}" for note in table["notes"]])] if notes or table["notes"] else []
    if table["averages"]:
        checks = [
            [a["system"], a["column"], f"{a['mean']:.2f}", str(a["printed"]), "yes" if a["adds_up"] else "**no**"]
            for a in table["averages"]
        ]
        parts.append(grid(["system", "average", "recomputed", "printed", "adds up"], checks))
    return parts


def _haystack(h: dict[str, Any]) -> str:
    depths = len(h["scores"])
    rows = [
        [f"{d / depths:.1f} – {(d + 1) / depths:.1f}", *("–" if v is None else f"{v:.2f}" for v in line)]
        for d, line in enumerate(h["scores"])
    ]
    rows += [["plain accuracy", *("–" if v is None else f"{v:.2f}" for v in h["plain"])]]
    rows += [["published column", *(f"{v:.2f}" for v in h["columns"])]] if h["columns"] else []
    return grid(["depth", *(short(edge) for edge in h["lengths"])], rows)


def _training(report: Report) -> str:
    head = ["run", "stage", "steps", "first loss", "last loss", "useful tokens", "ledger"]
    rows = []
    for t in report.training:
        losses = ["–" if t[k] is None else f"{t[k]:.3f}" for k in ("first_loss", "last_loss")]
        ledger = ", ".join(f"{key} {n}" for key, n in t["ledger"].items()) or "–"
        ledger += " (does not close)" if t["closes"] is False else ""
        rows.append([t["run"], t["stage"], str(t["steps"]), *losses, short(t["useful_tokens"]), ledger])
    return grid(head, rows)


def _marked(text: str, marks: Sequence[str]) -> str:
    return f"{text} [{', '.join(marks)}]" if marks else text


def one(value: float | None) -> str:
    """One digit after the point, or a dash."""
    return "–" if value is None else f"{value:.1f}"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars and line breaks inside cells are made harmless."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])
