"""Pictures of samples for a page: only those that a sample names, only from allowed folders, decoded and drawn anew.

What is sent is always a JPEG or PNG that was written here, so nothing in a file is ever run by a browser.
"""

import io
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError, only_vlm_errors
from vlm.core.media_root import MediaRoot
from vlm.core.text import printable

LARGEST, QUALITY = 2048, 85
"""Most px of a side, and the quality of the JPEG."""


def picture_of(row: dict[str, Any], number: int, size: int, root: MediaRoot) -> bytes:
    """Return image `number` of a row of results as JPEG, at most `size` px long.

    Raises:
        DataError: The row has no such image, it lies outside the allowed folders, or it cannot be read.
    """
    images = row.get("images")
    if not isinstance(images, list) or not 0 <= number < len(images) or not isinstance(images[number], str):
        raise DataError(f"the sample has no image {number}")
    name = images[number]
    if "\0" in name or not name.isprintable() or len(name) > 4096:
        raise DataError(f"no file can be called {printable(name)}")
    path = Path(name) if Path(name).is_absolute() else root.folder / name
    if refused := root.refusal(str(path)):
        moved = below_dataset(path, root)
        if moved is None:
            raise DataError(refused)
        path = moved
    from vlm.eval.report.gather.samples import still

    with only_vlm_errors(printable(path)):
        image = still(path)
    image.thumbnail((min(size, LARGEST),) * 2)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def below_dataset(path: Path, root: MediaRoot) -> Path | None:
    """Return where a picture of another machine lies here: at the same place below the folder of the data sets."""
    parts, name = path.parts, root.folder.name
    if name not in parts:
        return None
    at = len(parts) - parts[::-1].index(name)
    here = root.folder.joinpath(*parts[at:])
    return here if root.refusal(str(here)) is None else None
