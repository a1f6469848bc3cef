"""Find a checkpoint folder and read its `config.json`. Imports no torch."""

import json
from pathlib import Path
from typing import Any

from vlm.core.errors import CheckpointError
from vlm.core.home import pretrained, resolve


def find_checkpoint(path: str | Path) -> Path:
    """Return the folder of a checkpoint: a path, or a name below `pretrained/`.

    Raises:
        CheckpointError: there is none; the message has the command that downloads it.
    """
    for candidate in (resolve(path), pretrained() / str(path), pretrained() / Path(path).name):
        if (candidate / "config.json").exists():
            return candidate
    raise CheckpointError(
        f"no checkpoint at {path}",
        expected=f"a folder with config.json, here or below {pretrained()}",
        fix=f"vlm download {Path(path).name}",
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a checkpoint folder.

    Raises:
        CheckpointError: it is missing or not JSON.
    """
    path = Path(folder) / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no config.json in {folder}", expected="a checkpoint folder", fix="`vlm list weights` shows what is here"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}", fix="download the checkpoint again") from error
    return config
