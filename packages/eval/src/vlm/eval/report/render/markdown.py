"""The report as Markdown: the tables of the page; curves and haystacks as tables of their points."""

from collections.abc import Iterable, Sequence

from vlm.core.text import printable_lines
from vlm.eval.report.data import Report
from vlm.eval.report.render.svg import short
from vlm.eval.report.tables.long_context import Haystack
from vlm.eval.report.tables.published import TableBeside
from vlm.eval.saved.evaluations import Who


def as_markdown(report: Report) -> str:
    """Return the Markdown page. It has no times: it is the same for the same results."""
    parts = [f"# {literal(', '.join(report.models)) or 'Training'}: evaluation report"]
    parts += ["\n".join(f"- **{literal(warning)}**" for warning in report.warnings)] if report.warnings else []
    if report.accuracy:
        parts += ["## Accuracy", _accuracy(report)]
    for table in report.published:
        parts += _published(table)
    if report.blind:
        parts += ["## Blind control", _blind(report)]
    for h in report.haystacks:
        title = " · ".join(filter(None, (h["title"], h["group"], h["model"], h["variant"])))
        parts += [f"## Haystack: {literal(title)}", _haystack(h)]
    parts += _curves(report)
    if report.training:
        parts += ["## Training", _training(report)]
    return "\n\n".join(parts) + "\n"


def _who(row: Who) -> list[str]:
    return [row["title"], row["model"], row["variant"]]


def _accuracy(report: Report) -> str:
    head = ["benchmark", "model", "variant", "metric", "value", "low", "high", "strict", "scored / total", "marks"]
    rows = []
    for row in report.accuracy:
        for m in row["metrics"]:
            marks = "; ".join(filter(None, [*row["caveats"], m["note"]]))
            numbers = [one(m["value"]), one(m["low"]), one(m["high"]), one(m["strict"])]
            rows.append([*_who(row), m["name"], *numbers, f"{m['scored']} / {m['total']}", marks])
    return grid(head, rows)


def _published(table: TableBeside) -> list[str]:
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


def _blind(report: Report) -> str:
    head = ["benchmark", "model", "variant", "right images", "exchanged", "difference", "low", "high"]
    rows = []
    for b in report.blind:
        numbers = (b["sighted"], b["blind"], b["difference"], b["low"], b["high"])
        rows.append([*_who(b), *map(one, numbers)])
    return grid(head, rows)


def _curves(report: Report) -> list[str]:
    lengths = [
        [*_who(r), short(p["length"]), one(p["value"]), str(p["items"])] for r in report.by_length for p in r["points"]
    ]
    positions = [
        [*_who(r), short(p["position"]), one(p["value"]), str(p["items"])]
        for r in report.by_position
        for p in r["points"]
    ]
    strides = [
        [r["title"], r["model"], r["metric"], f"{p['stride']:g}", one(p["value"]), one(p["low"]), one(p["high"])]
        for r in report.by_stride
        for p in r["points"]
    ]
    parts: list[str] = []
    for title, head, rows in (
        ("Score by length", ["variant", "length from", "score", "items"], lengths),
        ("Score by last position", ["variant", "position from", "score", "items"], positions),
        ("Score by stride", ["metric", "stride", "score", "low", "high"], strides),
    ):
        parts += [f"## {title}", grid(["benchmark", "model", *head], rows)] if rows else []
    return parts


def _haystack(h: Haystack) -> str:
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
        losses = ["–" if loss is None else f"{loss:.3f}" for loss in (t["first_loss"], t["last_loss"])]
        ledger = ", ".join(f"{key} {n}" for key, n in t["ledger"].items()) or "–"
        ledger += " (does not close)" if t["closes"] is False else ""
        rows.append([t["run"], t["stage"], str(t["steps"]), *losses, short(t["useful_tokens"]), ledger])
    return grid(head, rows)


def _marked(text: str, marks: Sequence[str]) -> str:
    return f"{text} [{', '.join(marks)}]" if marks else text


def one(value: float | None) -> str:
    """Return a number with one decimal, or a dash."""
    return "–" if value is None else f"{value:.1f}"


def literal(text: str) -> str:
    """Return a text on one line in which a reader of Markdown finds no HTML."""
    return printable_lines(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; bars, line breaks and HTML inside cells are escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(literal(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])
