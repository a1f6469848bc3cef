"""Find a checkpoint folder and read its `config.json`. Imports no torch."""

from pathlib import Path
from typing import Any

from vlm.core.errors import CheckpointError
from vlm.core.home import pretrained, read_object, resolve


def find_checkpoint(path: str | Path) -> Path:
    """Return the folder of a checkpoint: a path, or a name below `pretrained/`.

    Raises:
        CheckpointError: there is none; the message has the command that downloads it.
    """
    for candidate in (resolve(path), pretrained() / str(path), pretrained() / Path(path).name):
        if is_file(candidate / "config.json"):
            return candidate
    raise CheckpointError(
        f"no checkpoint at {path}",
        expected=f"a folder with config.json, here or below {pretrained()}",
        fix=f"vlm download {Path(path).name}",
    )


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


def is_file(path: Path) -> bool:
    """Return whether there is such a regular file; False also for a name that no file system can hold."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
