"""The mark of generated miniatures, and the places that refuse them: a miniature never passes for published data.

`vlm.eval.mini.make_mini` writes `mini.json` (what it made) and `.vlm-mini.json` (its manifest). A `mini.json` without
`n` is a person's own: the true counts of a subset, or of a set that was built here.
"""

from pathlib import Path

from vlm.core.errors import DataError
from vlm.core.fetch.manifest import read_if_whole
from vlm.core.paths import exists

MARKER = "mini.json"
"""The file that says how many items a generated or reduced set has."""

WRITTEN = ".vlm-mini.json"
"""The manifest of a miniature: only the files that it lists, unchanged, are replaced by another miniature."""


def is_marked(folder: Path) -> bool:
    """Return whether the data of a folder are generated or reduced: its results are of miniature data."""
    return exists(folder / MARKER) or exists(folder / WRITTEN)


def is_miniature(folder: Path) -> bool:
    """Return whether a folder holds a miniature that `vlm data mini` or `--mini` made, or a copy of one."""
    made = exists(folder / MARKER) and read_if_whole(folder / MARKER)
    return exists(folder / WRITTEN) or bool(made and made.keys() >= {"benchmark", "seed", "n", "counts"})


def miniature_of(path: Path) -> Path | None:
    """Return the miniature that a file or folder belongs to, as its path is written or where its links lead."""
    for one in dict.fromkeys((path.absolute(), path.resolve())):
        for folder in (one, *one.parents):
            if is_miniature(folder):
                return folder
    return None


def refuse_miniature(folder: Path, name: str) -> None:
    """Check that the folder of an entry, where data are to come, holds no miniature.

    Raises:
        DataError: It does; nothing was written.
    """
    if is_miniature(folder):
        raise DataError(
            f"{folder} holds a generated miniature; nothing was written",
            expected=f"an empty or missing folder for {name}",
            fix=f"remove {folder}, or move it away, then rerun the same command; `--mini` needs no such folder",
        )
