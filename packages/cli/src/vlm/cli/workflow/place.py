"""The files of the workflow: where this installation has them, and how they get to where a user stands.

They live at the root of the repository (`Snakefile`, `workflows/`, `profiles/`); a wheel carries them beside this file
(`hatch_build.py` of the package puts them there). Snakemake reads them in the working directory, where they are edited.

>>> placed = place_workflow(Path("study"))      # doctest: +SKIP
>>> placed.made, placed.kept                    # doctest: +SKIP
(['Snakefile', 'profiles/local/config.yaml', ...], [])
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from vlm.core.errors import DataError, VlmError
from vlm.core.fetch.manifest import read_if_whole
from vlm.core.home import new_file, write_json

PACKED = Path(__file__).with_name("files")
CHECKOUT = Path(__file__).parents[6]
NAMES = ("Snakefile", "workflows", "profiles")
NOTE = ".vlm-workflow.json"
"""What was placed: file -> sha256, so that a file which a person has edited is never overwritten."""

LINK = ("slurm", "profiles/slurm")
"""Snakemake looks for `--profile slurm` in `./slurm`."""


class Placed(NamedTuple):
    """Files of the workflow in a folder: made or brought up to date, the same already, and edited by a person."""

    made: list[str]
    same: list[str]
    kept: list[str]


def shipped_files() -> dict[str, Path]:
    """Return the files of the workflow: name below the working directory -> file of this installation.

    Raises:
        DataError: They are missing.
    """
    root = PACKED if (PACKED / "Snakefile").is_file() else CHECKOUT
    files = [path for name in NAMES for path in [root / name, *sorted((root / name).rglob("*"))] if path.is_file()]
    found = {path.relative_to(root).as_posix(): path for path in files if path.suffix != ".pyc"}
    if "Snakefile" not in found:
        raise DataError(
            f"no Snakefile in {PACKED} or {CHECKOUT}",
            expected="the files of the workflow, which a wheel of farlens-cli and the repository hold",
            fix="install the wheel that `make dist` builds",
        )
    return found


def place_workflow(folder: Path, *, replace: bool = False) -> Placed:
    """Put the files of the workflow into a folder; again to bring them up to date.

    A file that is as it was placed is replaced by the installed one; one that a person has edited stays.

    Args:
        folder: It is made if it is missing.
        replace: Also give up what a person has edited.

    Raises:
        VlmError: A folder, or no regular file, is where a file belongs; nothing was written.
    """
    files = shipped_files()
    if files["Snakefile"].parent == folder.resolve():  # the repository itself
        return Placed([], sorted(files), [])
    if blocked := [name for name in files if (folder / name).exists() and not (folder / name).is_file()]:
        raise VlmError(f"{folder / blocked[0]} is no file", fix="name another folder: vlm workflow init DIR")
    note = (read_if_whole(folder / NOTE) or {}).get("files")
    noted = note if isinstance(note, dict) else {}
    placed = Placed([], [], [])
    for name, source in files.items():
        content, target = source.read_bytes(), folder / name
        before = target.read_bytes() if target.exists() else None
        if before == content:
            placed.same.append(name)
        elif before is not None and not replace and noted.get(name) != _digest(before):
            placed.kept.append(name)
            continue
        else:
            with new_file(target) as temporary:
                temporary.write_bytes(content)
            placed.made.append(name)
        noted[name] = _digest(content)
    link = folder / LINK[0]
    if not (link.is_symlink() or link.exists()):
        link.symlink_to(LINK[1])
    write_json(folder / NOTE, {"files": noted})
    return placed


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
