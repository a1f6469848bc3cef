"""Images inside tables (base64 in TSV, bytes in parquet) -> files in `images/` beside the tables.

A file is named by the hash of the image it was made from: it is never stale, and equal images share one file.
"""

import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image

from vlm.core.errors import DataError, MediaError
from vlm.core.home import write_atomic
from vlm.core.sample.media import opened_image

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "2x": lambda picture: picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BILINEAR),
    "448": lambda picture: picture.resize((448, 448)),
}
"""What a published evaluator does to an image before its usual rule: enlarge it, or make it one tile of 448 pixels."""


def picture_file(folder: Path, data: bytes, where: str, change: str = "") -> Path:
    """Return the absolute path of the file with the image `data`, and write it if it is missing.

    Args:
        folder: The data folder of the benchmark.
        data: An encoded image.
        where: The file and row it was read from, for errors.
        change: "" or a key of `CHANGES`.

    Raises:
        DataError: `data` is no image, or the folder cannot be written.
    """
    try:
        with opened_image(data, "it") as picture:
            kind = "png" if change else str(picture.format).lower()
            name = f"{hashlib.sha256(data).hexdigest()[:32]}{change and '-'}{change}.{kind}"
            path = folder.absolute() / "images" / name
            if path.is_file():
                return path
            if change:
                changed = BytesIO()
                CHANGES[change](picture).save(changed, format="PNG", compress_level=1)
                data = changed.getvalue()
    except MediaError as error:
        raise DataError(f"{where}: not an image: {error.found}", fix="fetch the file again") from error
    try:
        write_atomic(path, data)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error}",
            expected=f"write permission in {folder} for the first run, which unpacks the images",
        ) from error
    return path
