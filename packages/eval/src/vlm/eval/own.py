"""A person's own file as a benchmark: the table that is made for it, and what identifies its content.

table = table_of_file(Path("pets.csv"), scorer="contains")
edition_of(table)                                        # '1f0a3b9c2d4e': another one when the file changes
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm.core.errors import ConfigError, UnknownName
from vlm.core.fetch.manifest import sha256_of
from vlm.core.paths import as_name, exists
from vlm.core.reading import is_folder
from vlm.core.rows.table import KINDS
from vlm.core.text import printable
from vlm.eval.benchmark import Benchmark
from vlm.eval.keys import content_key
from vlm.eval.loaders.rows import SCORERS_OF_ROWS, open_questions


def is_file_word(word: str) -> bool:
    """Return whether a word means a file or a folder of rows rather than the name of a benchmark.

    >>> is_file_word("my.jsonl"), is_file_word("data/my"), is_file_word("pope")
    (True, True, False)
    """
    return "/" in word or re.search(r"\.[A-Za-z]\w{1,7}(:\w+)?$", word) is not None


def table_of_file(
    path: Path,
    *,
    scorer: str | None = None,
    columns: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    prompt: Mapping[str, str] | None = None,
    taken: Iterable[str] = (),
) -> Benchmark:
    """Return the table of a file. It is called by the file's stem.

    Args:
        path: The file or folder; `PATH:SPLIT` names a part of a set.
        scorer: A name of `SCORERS_OF_ROWS`; by default `choice` where there are options, else `exact`.
        columns: Field -> column, where the names are not usual ones.
        options: More `options` of the loader.
        prompt: Pieces of the prompt.
        taken: Names of other benchmarks; `own-` is put in front of one of them.

    Raises:
        DataError: No such file, or no rows in it. UnknownName: no such scorer, field or column.
    """
    if scorer is not None and scorer not in SCORERS_OF_ROWS:
        raise UnknownName("scorer", scorer, SCORERS_OF_ROWS, fix="--scorer NAME")
    questions = open_questions(path, columns)
    name = as_name(_stem(path))
    if name.lower() in {other.lower() for other in taken}:
        name = f"own-{name}"
    given: dict[str, Any] = {
        "name": name,
        "file": str(path.absolute()),
        "scorer": scorer or ("choice" if "options" in questions.columns else "exact"),
        "prompt": dict(prompt or {}),
        "options": {**({"columns": dict(columns)} if columns else {}), **(options or {})},
    }
    return Benchmark.model_validate(given)


def _stem(path: Path) -> str:
    """Return the name without the ending of a format, and with the split."""
    name, colon, split = path.name.rpartition(":")
    whole = name if colon else path.name
    stem = Path(whole).stem if Path(whole).suffix.lower() in KINDS else whole
    return f"{stem}-{split}" if colon else stem


def describe(table: Benchmark) -> str:
    """Say in a line how the rows of a table's file are read and scored."""
    questions = open_questions(Path(table.file or ""), table.options.get("columns"))
    scorer = table.scorer if isinstance(table.scorer, str) else ", ".join(sorted({*table.scorer.values()}))
    return f"{questions.said}; scorer {scorer}"


def check_file(table: Benchmark) -> Path:
    """Return the file of a table; raise ConfigError where it is gone."""
    path = Path(table.file or "")
    name, colon, _ = str(path).rpartition(":")
    if not (exists(path) or (colon and exists(name))):
        raise ConfigError(
            f"the file of {table.name} is not there: {printable(path)}",
            fix="put it there, or correct `file` in its table",
        )
    return path


def edition_of(table: Benchmark) -> str:
    """Return what identifies the content of a table's file or folder, 12 hex digits; "" for other tables."""
    if not table.file:
        return ""
    path = check_file(table)
    if not exists(path):
        path = Path(str(path).rpartition(":")[0])
    if not is_folder(path):
        return sha256_of(path)[:12]
    files = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in KINDS and p.is_file()]
    return content_key(files=[[p.relative_to(path).as_posix(), sha256_of(p)] for p in files])[:12]
