"""Cells of a person's own table: which column holds what, options in all their forms, answers as a scorer takes them.

    columns_of(["Picture", "q"], {"question": "q"}, "pets.csv")      # {"image": "Picture", "question": "q"}
    read_options('["cat", "dog"]')                                   # {"A": "cat", "B": "dog"}

Whatever a cell cannot be is an `Unfit` that says what was found and what is expected.
"""

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlm.core.errors import DataError, UnknownName
from vlm.core.home import split_lines
from vlm.core.rows import forms
from vlm.core.rows.forms import Unfit
from vlm.core.sample.fields import named, whole
from vlm.core.text import printable
from vlm.eval.measures.letters import label
from vlm.eval.measures.short import amount, tidy

NAMES: dict[str, tuple[str, ...]] = {
    "image": forms.IMAGE,
    "video": forms.VIDEO,
    "question": (*forms.QUESTION, "text"),
    "answer": (
        *("answer", "answers", "ground_truth", "ground_truths", "gold", "reference", "references", "expected", "gt"),
        *("target", "label", "labels", "correct_answer", "solution"),
        *forms.ANSWER,
    ),
    "options": (*forms.OPTIONS, "candidates"),
    "id": ("id", "question_id", "questionid", "qid", "uid", "pid", "index", "idx"),
    "group": ("group", "category", "task", "task_type", "subset", "type"),
}
"""What a column holds -> usual names, the likeliest first; upper case, blanks and dashes do not matter."""

LETTERS = "letters"
"""What `columns_of` calls options in columns of their own: A, B, C, ..."""

MOST_OPTIONS = 52


def plain_name(column: str) -> str:
    """Return a column's name as `NAMES` has it."""
    return re.sub(r"[\s-]+", "_", column.strip()).lower()


def columns_of(found: Sequence[str], given: Mapping[str, str], where: str) -> dict[str, str]:
    """Return what holds what: field -> column.

    Args:
        found: The columns that there are.
        given: Those that a person named: field -> column.
        where: The file, for error messages.

    Raises:
        UnknownName: No such field or column; names the nearest.
    """
    for field, column in given.items():
        if field not in NAMES:
            raise UnknownName("field", field, NAMES, fix="--columns FIELD=COLUMN")
        if column not in found:
            raise UnknownName(f"column of {printable(where)}:", column, found, fix=f"--columns {field}=COLUMN")
    columns = dict(given)
    plain = {plain_name(column): column for column in [*found][::-1] if column not in given.values()}
    for field, names in NAMES.items():
        chosen = next((plain[name] for name in names if name in plain), None)
        if field not in columns and chosen is not None and chosen not in columns.values():
            columns[field] = chosen
    if "options" not in columns and {"a", "b"} <= plain.keys():
        columns["options"] = LETTERS
    return {field: columns[field] for field in NAMES if field in columns}


def need(columns: Mapping[str, str], field: str, found: Sequence[str], where: str) -> None:
    """Raise DataError where no column holds what is needed; names the columns that there are."""
    if field not in columns:
        raise DataError(
            f"{printable(where)} has no {field}: its columns are {printable(', '.join(found), 300) or 'none'}",
            expected=f"one of {', '.join(NAMES[field][:8])}, …",
            fix=f"--columns {field}=COLUMN names it",
        )


def text_of(value: Any, field: str) -> str:
    """Return a cell as text: numbers as they are written, whole ones without a point."""
    if isinstance(value, str):
        if not whole(value):
            raise Unfit(field, f"`{field}` holds half of a surrogate pair (a cut emoji), expected a text")
        if value.strip():
            return value
    elif isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    elif isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    raise Unfit(field, f"`{field}` is {_found(value)}, expected a text")


def _found(value: Any) -> str:
    return "empty" if value in (None, "") or (isinstance(value, str) and not value.strip()) else named(value)


def _opened(value: Any) -> Any:
    """Return the list or object that a text writes, as JSON or as Python does; another value as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{", "("):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(value.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(found, list | dict | tuple):
                return list(found) if isinstance(found, tuple) else found
    return value


def read_options(value: Any) -> dict[str, str]:
    r"""Return label -> text of the options of a question: A, B, ... in their order; empty without any.

    Taken: a list; an object from label to text; either as JSON or Python writes it; a text with one option a line or
    with `|` between them. Labels in front (`A. `, `(B) `) are taken off where all have them.

    >>> read_options("(A) cat\n(B) dog")
    {'A': 'cat', 'B': 'dog'}

    Raises:
        Unfit: Anything else; a single option; two alike.
    """
    value = _opened(value)
    if value is None or value in ("", [], {}):
        return {}
    if isinstance(value, dict):
        labels = [str(key).strip().strip("().:").upper() for key in value]
        if labels != [label(i) for i in range(len(labels))]:
            raise Unfit(
                "options", f"`options` has the keys {printable(', '.join(map(str, value)), 60)}, expected A, B, …"
            )
        value = list(value.values())
    elif isinstance(value, str):
        lines = [line for line in split_lines(value) if line.strip()]
        value = lines if len(lines) > 1 else value.split("|")
    if not isinstance(value, list):
        raise Unfit("options", f"`options` is {named(value)}, expected a list of texts")
    texts = _unlabeled([text_of(one, "options").strip() for one in value])
    if not 1 < len(texts) <= MOST_OPTIONS:
        raise Unfit("options", f"`options` has {len(texts)}, expected 2 to {MOST_OPTIONS}: a list, or a line for each")
    if twice := next((text for text in texts if texts.count(text) > 1), None):
        raise Unfit("options", f"`options` has {printable(twice, 40)!r} twice, expected different texts")
    return {label(i): text for i, text in enumerate(texts)}


def _unlabeled(texts: list[str]) -> list[str]:
    """Return texts without the labels in front of them, where each has its own."""
    marks = [re.compile(rf"\(?{label(i)}\s*[.):]\s*(?=\S)", re.IGNORECASE) for i in range(len(texts))]
    found = [mark.match(text) for mark, text in zip(marks, texts, strict=True)]
    return [text[m.end() :] for m, text in zip(found, texts, strict=True) if m] if all(found) else texts


def letter_columns(row: Mapping[str, Any]) -> list[Any]:
    """Return the options that stand in columns of their own, A, B, ... up to the first empty one."""
    plain = {plain_name(key): value for key, value in row.items() if len(key.strip()) == 1}
    texts = [plain.get(chr(97 + i)) for i in range(26)]
    count = next((i for i, text in enumerate(texts) if text in (None, "") or text != text), 26)
    if any(text not in (None, "") and text == text for text in texts[count:]):
        raise Unfit("options", f"option {label(count)} is empty and a later one is not, expected no gap")
    return texts[:count]


def answers_of(value: Any) -> list[str]:
    """Return the references of a question: a text, a number, or a list of them (also of VQA's `{answer: …}`)."""
    value = _opened(value)
    several = value if isinstance(value, list) else [value]
    found = [one["answer"] if isinstance(one, dict) and "answer" in one else one for one in several]
    if not found:
        raise Unfit("answer", "`answer` is an empty list, expected a text, a number or a list of them")
    return [text_of(one, "answer") for one in found]


def gold_for(scorer: str, value: Any, options: Mapping[str, str]) -> Any:
    """Return the gold answer as a scorer takes it.

    Args:
        scorer: Its name.
        value: The cell.
        options: Label -> text; empty without options.

    Raises:
        Unfit: The cell is none: no label or text of an option, no number.
    """
    if scorer == "choice":
        if not options:
            raise Unfit("options", "`options` is empty, expected the texts to choose from (--scorer choice)")
        return _chosen(value, options)
    references = answers_of(value)
    if options and len(references) == 1 and references[0].strip().upper() in options:
        references = [references[0], options[references[0].strip().upper()]]  # a letter, or the text that it means
    if scorer == "number" and (bad := next((one for one in references if amount(tidy(one)) is None), None)):
        raise Unfit("answer", f"`answer` is {printable(bad, 40)!r}, expected a number (--scorer number)")
    if scorer == "judge":
        return " <OR> ".join(references)
    return references if len(references) > 1 else references[0]


def _chosen(value: Any, options: Mapping[str, str]) -> str:
    """Return the label that an answer means: a label, the text of an option, or an index from 0."""
    references = answers_of(value)
    if len(references) > 1:
        raise Unfit("answer", f"`answer` has {len(references)}, expected one option (--scorer choice)")
    said = references[0].strip()
    readings = _meant(said, options)
    if len(readings) == 1:
        return readings.pop()
    labels = f"{next(iter(options))} to {[*options][-1]}"
    what = "names no option" if not readings else f"means {' or '.join(sorted(readings))}"
    raise Unfit(
        "answer",
        f"`answer` {printable(said, 40)!r} {what}, expected {labels}, a text of theirs, or 0 to {len(options) - 1}",
    )


def _meant(said: str, options: Mapping[str, str]) -> set[str]:
    bare = said.strip("().: ").upper()
    found = {bare} if bare in options else set()
    found |= {name for name, text in options.items() if text.strip().casefold() == said.casefold()}
    if re.fullmatch(r"\d{1,2}", said) and int(said) < len(options):
        found.add([*options][int(said)])
    return found


def keys_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns of some rows, in order of first appearance."""
    return list(dict.fromkeys(str(key) for row in rows for key in row))
