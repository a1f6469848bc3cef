"""What produced a result: command, versions, commit, machine."""

import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlm.eval.run.summary import Provenance

PACKAGES = ("farlens-eval", "farlens-models", "torch", "transformers", "tokenizers", "numpy", "pillow", "rapidfuzz")
"""Packages whose versions are recorded."""


def provenance(fingerprint: str, options: dict[str, Any], data: Path) -> Provenance:
    """Return the content of run.json; a package that is not installed and a tree without git are None."""
    return {
        "command": shlex.join(["vlm", *sys.argv[1:]]),
        "options": options,
        "data": str(data),
        "weights": fingerprint,
        "git_commit": commit_of(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit_of(folder: Path) -> str | None:
    """Return the commit of the source tree around a folder, `-dirty` when it was changed; None without git.

    Nothing is written there: `git describe --dirty` takes the index's lock, and a run that is killed would leave it.
    """
    git = ["git", "--no-optional-locks", "-C", str(folder)]
    said = []
    try:
        for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
            done = subprocess.run([*git, *words], capture_output=True, text=True, check=True, timeout=10)
            said.append(done.stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0] + ("-dirty" if said[1] else "")
