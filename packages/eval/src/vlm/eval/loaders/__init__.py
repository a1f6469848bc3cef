"""Official files on disk -> items in data order. One module per file format, found by its file.

    items = load_items(load_benchmark("POPE"), home() / "dataset" / "pope")
    items[0].messages, items[0].gold                # one user message with image paths; "yes"

A new file that defines `LOADERS` (key of a table's `loader` -> function) needs no other edit.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vlm.core.errors import DataError, UnknownName
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import CountTokens, Item, Loader
from vlm.eval.registry import collect

__all__ = ["LOADERS", "CountTokens", "Item", "Loader", "load_items"]

LOADERS: dict[str, Loader] = collect(__name__, "LOADERS")
"""Key of a table's `loader` -> function(benchmark, data folder, count_tokens=None) -> items, all checked."""

GROUPS = 10
"""Groups that the message about missing files names, and rows that the one about bad rows names."""


def load_items(
    benchmark: Benchmark, folder: Path, *, count_tokens: CountTokens | None = None, allow_missing: int | None = 0
) -> Sequence[Item]:
    """Load the items of a benchmark.

    Args:
        benchmark: The table, as the model family is asked (`Benchmark.for_family`).
        folder: Its data folder.
        count_tokens: Measures length budgets (MileBench); by default four characters are a token.
        allow_missing: Most items whose picture or video may be missing, or rows of a person's own file that cannot be
            asked; they have a `fault`. None: any number.

    Raises:
        DataError: Files are missing or malformed; names the file and the row, or the groups and how many items.
        UnknownName: The table names no known loader.
    """
    if benchmark.loader not in LOADERS:
        raise UnknownName("loader", benchmark.loader, LOADERS)
    items = LOADERS[benchmark.loader](benchmark, Path(folder), count_tokens=count_tokens)
    if allow_missing is None:
        return items
    lost = [item for item in items if item.missing]
    if benchmark.file and len(lost) > allow_missing:
        raise _bad_rows(benchmark, lost, len(items))
    if len(lost) > allow_missing:
        raise DataError(
            f"{lost[0].missing}; {len(lost):,} of {len(items):,} items of {benchmark.title} lack a picture or video: "
            + _groups(lost),
            expected="every file" if not allow_missing else f"at most {allow_missing:,} (--allow-missing)",
            fix=f"get the files again (vlm download {benchmark.name}; some are to be had by hand alone)\n   or: "
            f"--allow-missing {len(lost)}: those items become `error`, in the total and in no mean",
        )
    return items


def _bad_rows(benchmark: Benchmark, lost: list[Item], total: int) -> DataError:
    """Return the error that names the rows of a person's own file that cannot be asked."""
    named = [f"  {item.missing}" for item in lost[:GROUPS]]
    more = [f"  … and {len(lost) - GROUPS:,} more"] if len(lost) > GROUPS else []
    return DataError(
        "\n".join([f"{len(lost):,} of {total:,} rows of {benchmark.title} cannot be asked:", *named, *more]),
        expected="in every row what its columns promise",
        fix=f"correct them\n   or: --allow-missing {len(lost)}: those rows become `error`, in the total and in no mean",
    )


def _groups(lost: list[Item]) -> str:
    """Return the groups, each with the number of its items."""
    counts = Counter(item.group for item in lost)
    named = [f"{group} {n:,}" for group, n in counts.most_common(GROUPS)]
    return ", ".join([*named, *([f"and {len(counts) - GROUPS} more groups"] if len(counts) > GROUPS else [])])
