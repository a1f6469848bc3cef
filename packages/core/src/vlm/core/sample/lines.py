"""Lines of JSON files: what a line holds, whatever its bytes are.

for number, record in iter_jsonl(Path("dataset/digits/train.jsonl")):
    ...
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.core.reading import open_regular

BLANK = b" \t\r\n"
"""What a blank line consists of: the blanks of JSON."""

HEAD = 4096
"""Bytes that tell what a file is."""

IMPORT = "`vlm data import OLD FOLDER` writes its records as JSON lines"

OTHER_FORMS = {
    b"\xff\xfe": ("is UTF-16 text", IMPORT),
    b"\xfe\xff": ("is UTF-16 text", IMPORT),
    b"\x1f\x8b": ("is compressed (gzip)", "unpack it with gunzip"),
    b"PK\x03\x04": ("is a zip archive", "unpack it with unzip"),
    b"PAR1": ("is a Parquet table", IMPORT),
    b"[": ("is one JSON list, not JSON lines", IMPORT),
}
"""How a file begins that has another form -> what it is, and how it becomes JSON lines."""


def refuse_other_forms(path: Path, head: bytes) -> None:
    """Do nothing for a file that may be JSON lines, by its first bytes.

    Raises:
        DataError: It has another form; the message names it and says how it becomes JSON lines.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(BLANK)
    for begin, (what, fix) in OTHER_FORMS.items():
        if (text if begin == b"[" else head).startswith(begin):
            raise DataError(f"{path} {what}", expected="JSON lines: one record a line, in UTF-8", fix=fix)


def parse_line(raw: bytes, where: str) -> Any:
    """Return the JSON value of a line; a byte-order mark in front of it is left out.

    Args:
        raw: The bytes of the line.
        where: `file:line` for error messages.

    Raises:
        DataError: The line is not JSON in UTF-8; the message says why and names `where`.

    >>> parse_line(b'{"id": 1}', "train.jsonl:1")
    {'id': 1}
    """
    repair = "repair or remove the line"
    if zeros := raw.count(0):
        raise DataError(f"{where}: not JSON: {zeros} NUL bytes, as a crash or a full disk leaves them", fix=repair)
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8: byte 0x{raw[error.start]:02x} at {error.start}",
            fix="save the file as UTF-8, for example: iconv -f GBK -t UTF-8 OLD > NEW",
        ) from error
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}", fix=repair) from error
    except RecursionError as error:
        raise DataError(f"{where}: not JSON: nested too deeply", fix=repair) from error


def iter_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number, from 1, and the parsed object of each line of a JSONL file; blank lines are left out.

    Raises:
        DataError: The file is missing or has another form, or a line is not JSON; the message names file and line.
    """
    path = Path(path)
    try:
        f = open_regular(path)
    except FileNotFoundError as error:
        raise DataError(f"no such file: {path}") from error
    with f:
        refuse_other_forms(path, f.peek(HEAD))
        for number, line in enumerate(f, 1):
            if line.strip(BLANK):
                yield number, parse_line(line, f"{path}:{number}")
