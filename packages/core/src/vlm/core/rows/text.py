"""Rows of text files, one after the other: JSON lines, one JSON list, CSV, TSV. Memory does not grow with the file.

for row in json_lines(Path("train.jsonl")):
    print(row.where, row.value, row.fault)
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from vlm.core.errors import DataError
from vlm.core.reading import open_regular
from vlm.core.sample.fields import named
from vlm.core.sample.lines import BLANK
from vlm.core.text import printable

PIECE = 1 << 20
"""Bytes that are read at a time."""
LONGEST = 1 << 28
"""Characters of one record or cell at most: a picture of 200 MB as base64."""
HEAD = 4096
BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
DELIMITERS = ",;\t|"
_BLANKS = re.compile(r"[ \t\r\n]*")


class Row(NamedTuple):
    """One row: `where` it stands (`file:line`, `file row 12`), its value, and why there is none."""

    where: str
    value: dict[str, Any]
    fault: str | None = None


def encoding_of(head: bytes) -> tuple[str, int]:
    """Return the encoding of a text by its first bytes, and how many of them are a byte-order mark.

    UTF-16 without a mark is known by the zeros of its Latin letters.

    >>> encoding_of(b"\\xff\\xfea\\0"), encoding_of(b"a\\0b\\0"), encoding_of(b"abc")
    (('utf-16-le', 2), ('utf-16-le', 0), ('utf-8', 0))
    """
    for mark, name in BOMS.items():
        if head.startswith(mark):
            return name, len(mark)
    low, high = head[0::2].count(0), head[1::2].count(0)
    if high > len(head) // 8 and not low:
        return "utf-16-le", 0
    return ("utf-16-be", 0) if low > len(head) // 8 and not high else ("utf-8", 0)


def open_text(path: Path) -> tuple[IO[bytes], str]:
    """Return an open file, behind its byte-order mark, and its encoding. Raises DataError where it is missing."""
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise DataError(f"no such file: {printable(path)}") from error
    encoding, mark = encoding_of(file.peek(HEAD)[:HEAD])
    file.seek(mark)
    return file, encoding


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the text of each line; a byte that is not in the encoding is a lone surrogate."""
    file, encoding = open_text(path)
    with file:
        escape = "surrogateescape" if encoding == "utf-8" else "surrogatepass"
        yield from enumerate(io.TextIOWrapper(file, encoding, errors=escape, newline="\n"), 1)


def undecoded(text: str, encoding: str = "UTF-8") -> str | None:
    """Return what is wrong with the bytes of a line or a cell; None where nothing is."""
    if zeros := text.count("\0"):
        return f"{zeros} NUL bytes, as a crash or a full disk leaves them"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        byte = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else "half of a surrogate pair"
        return f"not {encoding}: {byte} at {error.start}; save the file as UTF-8 (iconv -f GBK -t UTF-8 OLD > NEW)"
    return None


def _constant(name: str) -> None:
    """Read NaN as no value, as pandas means it. Raises ValueError for an infinite number."""
    if name != "NaN":
        raise ValueError(f"{name} is no JSON value")


def json_lines(path: Path) -> Iterator[Row]:
    """Yield the object of each line of a file of JSON lines; a blank line is no row."""
    for number, line in text_lines(path):
        if not line.strip(BLANK.decode()):
            continue
        where = f"{path}:{number}"
        if why := undecoded(line):
            yield Row(where, {}, f"not JSON: {why}")
            continue
        try:
            value = json.loads(line, parse_constant=_constant)
        except ValueError as error:
            comma = line.rstrip().endswith(",")
            yield Row(where, {}, f"not JSON: {error}{'; the line ends with a comma' if comma else ''}")
        except RecursionError:
            yield Row(where, {}, "not JSON: nested too deeply")
        else:
            yield _object(where, value)


def _object(where: str, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(where, value)
    return Row(where, {}, f"{named(value)}, expected an object: one record")


class _Scanner:
    """The text of a JSON file, of which only the record that is read is in memory. `line` is where `at` is."""

    def __init__(self, file: IO[bytes], encoding: str):
        self.text, self.at, self.line, self.over = "", 0, 1, False
        self._file, self._decoder = file, codecs.getincrementaldecoder(encoding)()
        self._json = json.JSONDecoder(parse_constant=_constant)

    def go(self, at: int) -> None:
        self.line += self.text.count("\n", self.at, at)
        self.at = at

    def more(self) -> bool:
        """Read on. Raises ValueError where the bytes are not in the encoding."""
        raw = self._file.read(max(PIECE, len(self.text) - self.at))
        self.over = not raw
        piece = self._decoder.decode(raw, self.over)
        self.text, self.at = self.text[self.at :] + piece, 0
        return not self.over

    def peek(self) -> str:
        """Return the next character that is not blank; "" at the end."""
        while True:
            blank = _BLANKS.match(self.text, self.at)
            self.go(blank.end() if blank else self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self) -> Any:
        """Return the next value. Raises ValueError where it is not JSON, or longer than LONGEST."""
        while True:
            try:
                value, end = self._json.raw_decode(self.text, self.at)
                if end < len(self.text) or self.over:
                    self.go(end)
                    return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - 16
                if self.over or not cut:
                    self.go(error.pos)
                    raise ValueError(error.msg) from error
            if len(self.text) - self.at > LONGEST:
                raise ValueError(f"a record of more than {LONGEST:,} characters; is a quotation mark missing?")
            self.more()


def json_list(path: Path) -> Iterator[Row]:
    """Yield the objects of one JSON list; what is behind a fault cannot be read."""
    file, encoding = open_text(path)
    with file:
        scan = _Scanner(file, encoding)
        try:
            if scan.peek() != "[":
                raise ValueError("no list")
            scan.go(scan.at + 1)
            first = True
            while (sign := scan.peek()) != "]" or not first:
                if not first:
                    if sign == "]":
                        break
                    if sign != ",":
                        raise ValueError("the list does not end" if not sign else "no comma between two records")
                    scan.go(scan.at + 1)
                    sign = scan.peek()
                if sign == "]":
                    raise ValueError("a comma behind the last record")
                if not sign:
                    raise ValueError("the list does not end: the file is cut")
                first, where = False, f"{path}:{scan.line}"
                yield _object(where, scan.value())
            scan.go(scan.at + 1)
            if scan.peek():
                raise ValueError("more text behind the end of the list")
        except (ValueError, RecursionError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            yield Row(f"{path}:{scan.line}", {}, f"not JSON: {printable(why)}; nothing behind it can be read")


def csv_rows(path: Path, delimiter: str | None = None) -> Iterator[Row]:
    """Yield the rows of a CSV file with a header: column -> text. The delimiter is that of the header.

    Raises:
        DataError: No header, or two columns of the same name.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))  # a cell may hold a picture as base64
    header = next((line for _, line in text_lines(path) if line.strip()), "")
    if not header:
        raise DataError(f"{printable(path)} is empty", expected="a header and rows")
    found = delimiter or max(DELIMITERS, key=header.count)
    reader = csv.reader((line for _, line in text_lines(path)), delimiter=found, strict=True)
    names: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Row(f"{path}:{line}", {}, f"not CSV: {error}; is a quotation mark missing? Nothing behind it is read")
            return
        if cells is None:
            return
        where = f"{path}:{line}"
        if not any(cells):
            continue
        if not names:
            names = [name.strip() or f"column {i}" for i, name in enumerate(cells, 1)]
            if why := undecoded("".join(cells)):
                raise DataError(f"{where}: the header is {why}")
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(f"{where}: two columns are named {printable(', '.join(twice))}", fix="rename one")
        elif len(cells) != len(names):
            quotes = "; a cell that holds the delimiter needs quotation marks" if len(cells) > len(names) else ""
            yield Row(where, {}, f"{len(cells)} cells, expected {len(names)} as in the header{quotes}")
        elif bad := next(
            (f"column {n}: {why}" for n, c in zip(names, cells, strict=True) if (why := undecoded(c))), ""
        ):
            yield Row(where, {}, bad)
        else:
            yield Row(where, dict(zip(names, cells, strict=True)))
