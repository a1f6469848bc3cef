"""Rows of parquet and Arrow files, in batches; pyarrow (extra `tables`) is imported when one is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.core.reading import check_regular
from vlm.core.rows.text import Row
from vlm.core.text import printable

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 32
"""Rows in memory at a time: they may hold pictures."""


def arrow_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a parquet file, or of an Arrow file or stream as `datasets` saves it."""
    import pyarrow as pa

    check_regular(path)
    number = 0
    try:
        with _batches(path) as batches:
            for batch in batches:
                for value in batch.to_pylist():
                    number += 1
                    yield Row(f"{path} row {number}", value)
    except (pa.ArrowException, ValueError, OSError) as error:
        said = printable(str(error).partition("\n")[0])
        yield Row(f"{path} row {number + 1}", {}, f"cannot be read: {said}; nothing behind it is read")


@contextmanager
def _batches(path: Path) -> "Iterator[Iterator[pa.RecordBatch]]":
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            yield file.iter_batches(batch_size=BATCH)
        return
    with pa.memory_map(str(path)) as source:
        try:
            reader: Any = pa.ipc.open_stream(source)
            whole: Iterator[Any] = iter(reader)
        except pa.ArrowInvalid:
            source.seek(0)
            reader = pa.ipc.open_file(source)
            whole = (reader.get_batch(i) for i in range(reader.num_record_batches))
        yield (batch.slice(at, BATCH) for batch in whole for at in range(0, batch.num_rows, BATCH))


def count_arrow(path: Path) -> int:
    """Return the number of rows of a parquet or Arrow file, without reading them."""
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            return int(file.metadata.num_rows)
    with _batches(path) as batches:
        return sum(batch.num_rows for batch in batches)
