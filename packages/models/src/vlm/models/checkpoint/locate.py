"""Find a checkpoint folder and read its `config.json`. Imports no torch."""

from pathlib import Path
from typing import Any

from vlm.core.errors import CheckpointError, UnknownName
from vlm.core.fetch.catalogue import find_entry, load_catalogue
from vlm.core.home import lookup, pretrained, read_object, resolve
from vlm.core.text import printable


def find_checkpoint(path: str | Path) -> Path:
    """Return the folder of a checkpoint: a path, or a name below `pretrained/`.

    Raises:
        CheckpointError: there is none; the message has the command that downloads it, if one does.
    """
    for candidate in (lookup(path), resolve(path), pretrained() / str(path), pretrained() / Path(path).name):
        if is_file(candidate / "config.json"):
            return candidate
    raise CheckpointError(
        f"no checkpoint at {path}",
        expected=f"a folder with config.json, here or below {pretrained()}",
        fix=f"vlm download {entry}" if (entry := download_of(path)) else "`vlm list models` shows what is here",
    )


def download_of(path: str | Path) -> str | None:
    """Return the entry of the catalogue that brings a checkpoint of this name; None without one."""
    try:
        return find_entry(Path(path).name, load_catalogue()).name
    except UnknownName:
        return None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a checkpoint folder.

    Raises:
        CheckpointError: it is missing, or no JSON object.
    """
    path = Path(folder) / "config.json"
    if not is_file(path):
        raise CheckpointError(
            f"no config.json in {folder}", expected="a checkpoint folder", fix="`vlm list weights` shows what is here"
        )
    return read_object(path, CheckpointError, fix="download the checkpoint again")


def read_beside(folder: Path, name: str) -> dict[str, Any] | None:
    """Return a JSON object beside the `config.json` of a checkpoint, None where there is no such file.

    Raises:
        CheckpointError: it is no JSON object.
    """
    path = Path(folder) / name
    return read_object(path, CheckpointError, fix="download the checkpoint again") if path.exists() else None


def read_image_processor(folder: Path) -> dict[str, Any]:
    """Return the settings of the image processor: of `preprocessor_config.json`, `processor_config.json`, or both.

    transformers 5 saves them in the second alone, under `image_processor`.

    Raises:
        CheckpointError: a file is no JSON object; the two contradict each other.
    """
    alone = read_beside(folder, "preprocessor_config.json") or {}
    nested = (read_beside(folder, "processor_config.json") or {}).get("image_processor") or {}
    if differ := sorted(key for key in alone.keys() & nested.keys() & USED if alone[key] != nested[key]):
        found = ", ".join(
            f"{key} {printable(repr(alone[key]), 60)} and {printable(repr(nested[key]), 60)}" for key in differ
        )
        raise CheckpointError(
            f"{folder}: preprocessor_config.json and processor_config.json contradict each other: {found}",
            expected="the same settings in both",
            fix="delete the older of the two files (transformers 5 writes processor_config.json)",
        )
    return {**alone, **nested}


USED = {"crop_to_patches", "min_patches", "max_patches", "size", "crop_size", "image_mean", "image_std"}
"""Settings of an image processor that an image rule is made of."""


def is_file(path: Path) -> bool:
    """Return whether there is such a regular file; False also for a name that no file system can hold."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
