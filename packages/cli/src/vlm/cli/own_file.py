"""The benchmark that a word of the command line means: a name, or a person's own file with its options."""

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.cli.inputs import PICTURES, VIDEOS, below, is_glob, is_url, media_files
from vlm.cli.options import RowsOptions
from vlm.core.errors import ConfigError, DataError, UnknownName
from vlm.core.home import home
from vlm.core.paths import exists
from vlm.core.reading import is_folder
from vlm.core.rows.table import KINDS
from vlm.core.text import printable

if TYPE_CHECKING:
    from vlm.eval.benchmark import Benchmark
    from vlm.eval.loaders import Item


def find_table(word: str, rows: RowsOptions) -> "Benchmark":
    """Return the table of a benchmark by its name, or the one that is made for a file.

    Raises:
        UnknownName: Neither a benchmark nor a file; or no such scorer, field or column.
        ConfigError: Options of files with a name. DataError: no such file, or one that holds no questions.
    """
    from vlm.eval.benchmark import load_benchmark, tables
    from vlm.eval.own import is_file_word, table_of_file

    known = tables(home())
    if word.lower() not in {name.lower() for name in known} and (is_file_word(word) or exists(word)):
        options = rows_settings(rows.prompt, rows.allow_outside, rows.allow_urls)
        prompt = {"suffix": rows.suffix} if rows.suffix else {}
        path, columns = find_file(word), read_columns(rows.columns)
        return table_of_file(path, scorer=rows.scorer, columns=columns, options=options, prompt=prompt, taken=known)
    if rows.given:
        raise ConfigError(
            f"{' and '.join(rows.given)} with {printable(word)}",
            expected="a file of questions; the table of a benchmark says these itself",
            fix="name the file, or write the table in benchmarks/",
        )
    try:
        return load_benchmark(word, home())
    except UnknownName as error:
        hint = "`vlm list benchmarks` shows them all; a file of your own is named with its ending (my.jsonl)"
        raise UnknownName("benchmark", word, known, fix=hint) from error


def find_file(word: str) -> Path:
    """Return the path of a file or folder (`PATH:SPLIT` too) from here, else from the home. Raises DataError."""
    for base in (Path(), home()):
        path = base / Path(word).expanduser()
        if exists(path) or (":" in word and exists(str(path).rpartition(":")[0])):
            return path.absolute()
    folder = Path(word).expanduser().parent
    beside = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(Path(word).name, beside, n=3)
    expected = f"did you mean {' or '.join(map(printable, near))}?" if near else "a file or folder of questions"
    raise DataError(f"no such file: {printable(word)}", expected=expected)


def questions_of(
    words: Sequence[str], prompt: str | None, columns: str | None, options: dict[str, Any], out: Path
) -> "list[Item]":
    """Return the questions that words name: pictures, folders of pictures, globs, URLs, and files of prompts.

    Args:
        words: The words.
        prompt: What is asked of a picture, and in rows without a question.
        columns: As `--columns`.
        options: Of the loader of rows: `question`, `outside`, `urls`.
        out: The file that will be written; it can be none of the inputs.

    Raises:
        ConfigError: Pictures without a prompt, no such file, or a URL that is not allowed. DataError: no questions.
    """
    from vlm.core.sample.chat import user_message
    from vlm.core.sample.records import image, video
    from vlm.eval.benchmark import Benchmark
    from vlm.eval.loaders.common import Item
    from vlm.eval.loaders.rows import read_rows

    tables = [word for word in words if not _is_media(word)]
    items: list[Item] = []
    for word in words:
        if word in tables:
            path = find_file(word)
            if path == out.absolute():
                raise ConfigError(f"{printable(word)} is both read and written", fix="name another file with -o")
            given = {"columns": read_columns(columns), **options}
            table = Benchmark.model_validate({"name": "infer", "file": str(path), "scorer": "exact", "options": given})
            rows = read_rows(table, scored=False)
            items += [replace(row, id=f"{word}/{row.id}") for row in rows] if len(tables) > 1 else rows
            continue
        if not prompt or not prompt.strip():
            raise ConfigError(f"{printable(word)} without --prompt", expected="what is asked of each picture")
        for path in media_files([word], allow_urls=bool(options.get("urls"))):
            medium = video(path.absolute()) if path.suffix.lower() in VIDEOS else image(path.absolute())
            name = word if is_url(word) else path.as_posix()
            items.append(Item(name, [user_message(prompt, [medium], where="--prompt")], None, "all"))
    return list({item.id: item for item in items}.values()) if not tables else items


def _is_media(word: str) -> bool:
    """Return whether a word names pictures or videos rather than a file of prompts.

    A folder with pictures does, also when a file of replies lies in it; unless it is a set (`metadata.*`, `datasets`).
    """
    if not exists(word):
        return is_url(word) or is_glob(word) or Path(word).suffix.lower() in PICTURES | VIDEOS
    if not is_folder(word):
        return Path(word).suffix.lower() in PICTURES | VIDEOS
    folder = Path(word)
    names = ["dataset_dict.json", "state.json", *(f"metadata{suffix}" for suffix in KINDS)]
    if any((folder / name).is_file() for name in names):
        return False
    return any(path.suffix.lower() in PICTURES | VIDEOS for path in below(folder)) or not any(
        path.suffix.lower() in KINDS for path in below(folder)
    )


def rows_settings(prompt: str | None, outside: Sequence[Path] | None, urls: bool) -> dict[str, Any]:
    """Return what options say to the loader of rows."""
    given = {"question": prompt, "outside": [str(Path(folder).absolute()) for folder in outside or ()], "urls": urls}
    return {key: value for key, value in given.items() if value}


def read_columns(value: str | None) -> dict[str, str]:
    """Read `question=Q,answer=A`. Raises ConfigError for anything else."""
    pairs = [part.partition("=") for part in value.split(",")] if value else []
    found = {field.strip(): column.strip() for field, _, column in pairs}
    if not all(field and column for field, column in found.items()) or len(found) < len(pairs):
        raise ConfigError(
            f"--columns {printable(value)}", expected="FIELD=COLUMN with commas, each once: question=Q,answer=A"
        )
    return found
