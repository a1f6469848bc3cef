"""`vlm data show` and `vlm data import`: data that other programs wrote, looked at and put into the normal form."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm.cli.options import RowOptions, grouped
from vlm.cli.show.say import say, say_json

if TYPE_CHECKING:
    from vlm.core.rows.source import DataSource
    from vlm.core.rows.table import Table
    from vlm.core.rows.write import ImportOptions, SettledRow
    from vlm.models.processor import Processor

WHAT = (
    "A file (JSON, JSONL, CSV, TSV, parquet), a folder, or a data set of the hub (OWNER/NAME); :SPLIT chooses a part."
)
LOOKED_AT = 100


class AllowedRecords(StrEnum):
    """What the records may hold on purpose."""

    quoted_placeholders = "quoted-placeholders"
    empty_answers = "empty-answers"


@grouped
def show(
    what: Annotated[str, typer.Argument(help=WHAT)],
    options: RowOptions,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Also count tokens, with the rules of this model.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Samples to show.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Say which format and form a file has, and show its first samples as training would see them.

    The first 100 rows are read. Exit 3 if one of them cannot be used.

    Example: vlm data show pets.csv
    """
    from vlm.core.rows.write import first_records

    source = named_source(what)
    processor = _processor(model) if model else None
    rows = options.rows()
    samples: list[dict[str, Any]] = []
    faults: list[str] = []
    forms: dict[str, int] = {}
    unread: dict[str, str] = {}
    number = 0
    for row, good, sizes, why in first_records(source.table, rows, LOOKED_AT):
        number += 1
        if good is None:
            faults.append(f"{row.where}: {why}")
            continue
        forms[good.form] = forms.get(good.form, 0) + 1
        unread |= dict.fromkeys(good.unread, row.where)
        if len(samples) < count:
            samples.append(_shown(row.where, good, sizes, source.table, rows, processor))
    facts = {
        "source": source.said,
        "format": source.table.said,
        "form": ", ".join(forms),
        "rows": source.table.count(),
        "looked_at": number,
        "unread": sorted(unread),
        "samples": samples,
        "faults": faults,
    }
    say_json(facts) if as_json else _print(facts)
    refuse_rows(source.said, faults, number)


@grouped
def import_(
    what: Annotated[str, typer.Argument(help=WHAT)],
    out: Annotated[Path, typer.Argument(help="New folder for records.jsonl, images/, ledger.jsonl and manifest.json.")],
    options: RowOptions,
    allow: Annotated[list[AllowedRecords] | None, typer.Option(help="What the records may hold on purpose.")] = None,
    max_lost: Annotated[float, typer.Option(min=0, max=1, help="Share of the rows that may be refused.")] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest on standard output.")] = False,
) -> None:
    """Write data of any known format as records with their pictures, the form that training and checks read.

    After an interruption, rerun the same command to continue. Rows that cannot be used are in its ledger.jsonl.

    Example: vlm data import pets.csv dataset/pets
    """
    from vlm.core.home import resolve
    from vlm.core.rows.write import RECORDS, write_normal

    source, folder = named_source(what), resolve(out)
    rows = options.rows(max_lost, tuple(choice.value for choice in allow or ()))
    done = write_normal(source.table, folder, rows, source=source.said)
    if as_json:
        say_json(done)
        return
    say("\n".join(told(done)))
    say(f"wrote {folder / RECORDS}")


def told(done: dict[str, Any]) -> list[str]:
    """Return what an import did, in lines."""
    forms = ", ".join(f"{form} ({n:,})" for form, n in done["forms"].items())
    refused = ", ".join(f"{kind} {n:,}" for kind, n in done["refused"].items())
    lines = [f"{done['source']}: {done['format']}; {forms}"]
    lost = done["read"] - done["written"]
    lines.append(
        f"{done['read']:,} rows = {done['written']:,} written + {lost:,} refused" + (f": {refused}" if lost else "")
    )
    if done["unread"]:
        lines.append("not read: " + ", ".join(f"{key} ({n:,})" for key, n in done["unread"].items()))
    if done["same_id"]:
        lines.append(f"{done['same_id']:,} records have the id of another: FILE:LINE tells them apart")
    return lines


def named_source(what: str) -> "DataSource":
    """Return the data that is named, fetched with a bar and a line about its commit where it is the hub's."""
    from vlm.core.progress import byte_bar
    from vlm.core.rows.source import find_source

    with byte_bar(what) as report:
        return find_source(what, report=report, say=lambda line: say(line, err=True))


def refuse_rows(said: str, faults: list[str], number: int) -> None:
    """Raise DataError that names each fault of the first rows of a set; do nothing where there is none, and a row."""
    from vlm.core.errors import DataError
    from vlm.core.text import printable

    if not number:
        raise DataError(f"{printable(said)} holds no row", expected="at least one record")
    if faults:
        lines = [f"  {printable(fault, 400)}" for fault in faults]
        raise DataError(
            f"{len(faults)} of the first {number} rows of {printable(said)} cannot be used:\n" + "\n".join(lines),
            expected="a question, an answer, and as many files as placeholders",
            fix="repair or remove these rows",
        )


def _processor(model: str) -> "Processor":
    from vlm.cli.find import find_model
    from vlm.models.checkpoint.layout import read_layout
    from vlm.models.processor import Processor

    folder = find_model(model)
    return Processor(read_layout(folder).spec, folder)


def _shown(
    where: str,
    row: "SettledRow",
    sizes: list[tuple[int, int] | None],
    table: "Table",
    options: "ImportOptions",
    processor: "Processor | None",
) -> dict[str, Any]:
    """Return a sample for people: its turns, the sizes of its pictures, its tokens."""
    from vlm.core.text import printable

    turns = [f"{turn['from']}: {printable(turn['value'], 300)}" for turn in row.record["conversations"]]
    if system := row.record.get("system"):
        turns.insert(0, f"system: {printable(system, 300)}")
    shown: dict[str, Any] = {
        "where": where,
        "turns": turns,
        "pictures": ["video" if size is None else f"{size[0]} x {size[1]}" for size in sizes],
    }
    if processor is not None:
        shown["tokens"] = _tokens(where, row, table, options, processor)
    return shown


def _tokens(where: str, row: "SettledRow", table: "Table", options: "ImportOptions", processor: "Processor") -> int:
    """Return the tokens of a sample, pictures included."""
    import tempfile

    from vlm.core.rows.write import placed
    from vlm.core.sample.records import read_record

    with tempfile.TemporaryDirectory() as folder:
        record = placed(row, options.store(table, Path(folder)))
        sample = read_record(record, root=Path(folder), where=where)
        return len(processor.encode(sample.messages, generation_prompt=False, id=sample.id).input_ids)


def _print(facts: dict[str, Any]) -> None:
    from vlm.core.text import printable

    say(f"{printable(facts['source'])}: {facts['format']}, {facts['rows']:,} rows; form: {facts['form'] or 'none'}")
    for sample in facts["samples"]:
        tokens = f"; {sample['tokens']:,} tokens" if "tokens" in sample else ""
        pictures = ", ".join(sample["pictures"]) or "no picture"
        say(f"\n{printable(sample['where'])}: {pictures}{tokens}")
        say("\n".join(f"  {turn}" for turn in sample["turns"]))
    if facts["unread"]:
        say(f"\nnot read: {', '.join(facts['unread'])}")
