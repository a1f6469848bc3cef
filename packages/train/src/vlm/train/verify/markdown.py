"""Read hyperparameters from a Markdown table of a README; they may be its rows or its columns."""

import re
from pathlib import Path
from typing import Any

from vlm.core.errors import ConfigError
from vlm.core.home import split_lines

KEYS = {
    "learningrate": "optimizer.lr",
    "lr": "optimizer.lr",
    "weightdecay": "optimizer.weight_decay",
    "warmupratio": "optimizer.warmup",
    "lrschedule": "optimizer.schedule",
    "batchsize": "batch.samples",
    "globalbatchsize": "batch.samples",
    "epoch": "epochs",
    "epochs": "epochs",
    "maxlength": "max_length",
    "sequencelength": "max_length",
    "steps": "steps",
    "droppath": "model.spec.vision.drop_path",
    "deepspeedstage": "zero.stage",
    "zerostage": "zero.stage",
}
"""Names in tables, letters only -> our keys. Others (optimizer: AdamW) are skipped."""


def letters(text: str) -> str:
    """Return the letters and digits of a text, in lower case."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def value(text: str) -> Any:
    """Return the number that a cell begins with, else its first word."""
    text = text.strip().strip("`*")
    if match := re.match(r"[\d,]*\.?\d+(?:[eE][-+]?\d+)?", text):
        found = float(match[0].replace(",", ""))
        return int(found) if found.is_integer() else found
    return text.split()[0].lower() if text else None


def tables(text: str) -> list[list[list[str]]]:
    """Return all tables of a text: rows of cells, the header first."""
    found: list[list[list[str]]] = []
    rows: list[list[str]] = []
    for line in [*split_lines(text), ""]:
        if line.strip().startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                rows.append(cells)
        elif rows:
            found.append(rows)
            rows = []
    return found


def read_table(path: Path, name: str, label: str | None = None) -> dict[str, tuple[Any, str]]:
    """Read one column or row of hyperparameters: our key -> (value, the cells that say it).

    Args:
        path: the README.
        name: of the recipe, which the column or row names where no label is given.
        label: of the column or row.

    Raises:
        ConfigError: no table of hyperparameters, or no single label that fits.
    """
    if not Path(path).is_file():
        raise ConfigError(f"no such file: {path}")
    columns: dict[str, dict[str, tuple[Any, str]]] = {}
    for rows in tables(Path(path).read_text(encoding="utf-8")):
        across = sum(letters(cell) in KEYS for cell in rows[0])
        down = sum(letters(row[0]) in KEYS for row in rows)
        if max(across, down) < 2:
            continue
        if down >= across:
            rows = [list(column) for column in zip(*rows, strict=False)]
        for row in rows[1:]:
            cells = zip(rows[0][1:], row[1:], strict=False)
            said = {KEYS[letters(h)]: (value(c), f"{h} {c}") for h, c in cells if letters(h) in KEYS and c.strip("-– ")}
            columns.setdefault(row[0], {}).update(said)
    wanted = letters(label or name)
    fits = [c for c in columns if letters(c) and (letters(c) == wanted if label else letters(c) in wanted)]
    if len(fits) != 1:
        raise ConfigError(
            f"{path}: {len(fits)} columns or rows of hyperparameters fit {label or name}",
            expected=f"one of: {', '.join(columns)}" if columns else "a table with at least two known hyperparameters",
            fix="--label NAME",
        )
    return columns[fits[0]]
