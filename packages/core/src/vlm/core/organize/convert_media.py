"""Pictures made from pictures, videos and parquet files.

Each file appears in one piece. A file that cannot be read goes to the ledger and does not stop the step.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from vlm.core.errors import DataError, MediaError
from vlm.core.fetch.step_schema import Jpeg, MiddleFrame, Parquet
from vlm.core.home import new_file
from vlm.core.ledger import DroppedRecord, SetAccount
from vlm.core.progress import Report, silent
from vlm.core.sample.media import load_image, load_video, opened_image

QUALITY = 95
"""JPEG quality of converted pictures (alibaba/conv-llava docs/Data.md asks for .jpg; LLaVA's script uses 95)."""


def to_jpegs(rule: Jpeg, folder: Path, report: Report = silent) -> SetAccount:
    """Run a `Jpeg` step. A JPEG that is newer than its original is left alone."""
    outcome, made = SetAccount(), set()
    place = folder / rule.folder
    if not place.is_dir():
        return SetAccount(missing=[rule.folder])
    paths = sorted(p for p in place.iterdir() if p.suffix.lower() in rule.suffixes)
    for number, path in enumerate(paths):
        report(number, len(paths))
        target = path.with_suffix(".jpg")
        name = str(path.relative_to(folder))
        if target in made:
            outcome.losses.append(
                DroppedRecord(name, "convert", f"{target.name} is made from another file of that stem")
            )
            continue
        made.add(target)
        _make(outcome, folder, name, path, target, lambda path=path: _jpeg(load_image(path)))  # type: ignore[misc]
    return outcome


def to_middle_frames(rule: MiddleFrame, folder: Path, report: Report = silent) -> SetAccount:
    """Run a `MiddleFrame` step: the frame that the published models take for one segment."""
    outcome = SetAccount()
    videos = sorted(folder.glob(rule.videos))
    if not videos:
        return SetAccount(missing=[rule.videos])
    for number, path in enumerate(videos):
        report(number, len(videos))
        target = folder / rule.into / f"{path.stem}.png"
        name = str(path.relative_to(folder))
        _make(outcome, folder, name, path, target, lambda path=path: _png(load_video(path, 1)[0]))  # type: ignore[misc]
    return outcome


def to_pictures(rule: Parquet, folder: Path, report: Report = silent) -> SetAccount:
    """Run a `Parquet` step. The bytes stay as published."""
    outcome = SetAccount()
    paths = sorted(folder.glob(rule.files))
    if not paths:
        return SetAccount(missing=[rule.files])
    number = -1
    for path in paths:
        for row, data in enumerate(_column(path, rule.column)):
            number += 1
            report(number, None)
            try:
                with opened_image(data, "it") as image:
                    suffix = {"JPEG": "jpg"}.get(str(image.format), str(image.format).lower())
                    image.load()
            except MediaError as error:
                where = f"{path.relative_to(folder)}:{row}"
                outcome.losses.append(DroppedRecord(where, "convert", f"no picture: {error.found}"))
                continue
            target = folder / rule.into / f"{number:08d}.{suffix}"
            if not (target.is_file() and target.stat().st_size == len(data)):
                _write(target, data)
            outcome.files[str(target.relative_to(folder))] = len(data)
    return outcome


def _column(path: Path, column: str) -> Iterator[bytes]:
    """Yield the bytes of each row of a picture column (`{bytes, path}` or bytes), a few rows in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise DataError(f"{path} has no column {column}", expected=names, fix="correct the catalogue entry")
            for batch in file.iter_batches(16, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield (value["bytes"] if isinstance(value, dict) else value) or b""
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}", fix="fetch the file again") from error


def _make(outcome: SetAccount, folder: Path, name: str, source: Path, target: Path, make: Callable[[], bytes]) -> None:
    if not (target.is_file() and target.stat().st_mtime_ns >= source.stat().st_mtime_ns):
        try:
            data = make()
        except MediaError as error:
            outcome.losses.append(DroppedRecord(name, "convert", error.found.replace(f"{folder}/", "")))
            return
        _write(target, data)
    outcome.files[str(target.relative_to(folder))] = target.stat().st_size


def _write(target: Path, data: bytes) -> None:
    with new_file(target, held=True, flush=False) as temporary:
        temporary.write_bytes(data)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
