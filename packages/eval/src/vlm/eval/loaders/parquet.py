"""Parquet files with the images inside: RealWorldQA, OCRBench."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import FETCH, CountTokens, Item, Items, get, user
from vlm.eval.loaders.pictures import picture_file


def parquet_rows(folder: Path, pattern: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file:row, record) of all files of a pattern below `folder`, in order of their names.

    Raises:
        DataError: No file matches, or one has not all columns or cannot be read.
    """
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise DataError(f"no file {folder / pattern}", fix=FETCH)
    for path in paths:
        yield from read_parquet(path, columns)


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file:row, record) of one file.

    Raises:
        DataError: The file has not all columns, or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}", fix="fetch the file again") from error
    if missing := set(columns) - set(table.column_names):
        raise DataError(f"{path} has no column {', '.join(sorted(missing))}", expected=", ".join(columns))
    records = (record for batch in table.to_batches(max_chunksize=64) for record in batch.to_pylist())
    yield from ((f"{path}:{row}", record) for row, record in enumerate(records))


def load_realworldqa(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `data/test-*.parquet` (image, question, answer); ids are row numbers. Source: lmms-eval."""
    items = Items()
    columns = ("image", "question", "answer")
    for number, (where, record) in enumerate(parquet_rows(folder, "data/test-*.parquet", columns)):
        image = _picture(folder, record, where)
        question, answer = get(record, "question", str, where), get(record, "answer", str, where)
        item = Item(str(number), user(question, [image], where), answer, "all", {"cluster": image.name})
        items.add(item, where=where, images=[image])
    return items.finish(benchmark, folder)


def load_ocrbench(benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None) -> list[Item]:
    """Load `data/test-*.parquet` (dataset, question, question_type, answer, image); the group is the type.

    Ids are row numbers. Source: lmms-eval.
    """
    items = Items()
    columns = ("dataset", "question", "question_type", "answer", "image")
    for number, (where, record) in enumerate(parquet_rows(folder, "data/test-*.parquet", columns)):
        image, answer = _picture(folder, record, where), get(record, "answer", (str, list), where)
        question = get(record, "question", str, where).strip()
        meta = {"cluster": image.name, "dataset": get(record, "dataset", str, where)}
        item = Item(str(number), user(question, [image], where), answer, get(record, "question_type", str, where), meta)
        items.add(item, where=where, images=[image])
    return items.finish(benchmark, folder)


def _picture(folder: Path, record: dict[str, Any], where: str) -> Path:
    return picture_file(folder, get(get(record, "image", dict, where), "bytes", bytes, where), where)


LOADERS = {"ocrbench": load_ocrbench, "realworldqa": load_realworldqa}
