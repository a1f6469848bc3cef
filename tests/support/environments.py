"""Virtual environments for other people's software: made once, kept in pytest's cache, above ours."""

import os
import subprocess
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def environment(cache: Any, packages: str | Sequence[str], *, name: str = "") -> Path:
    """The Python of a virtual environment with these packages; skips where they cannot be installed."""
    wanted = [packages] if isinstance(packages, str) else list(packages)
    folder = Path(cache.mkdir("harness-" + (name or wanted[0].replace("==", "-"))))
    try:
        return install(folder, wanted)
    except NotInstalled as error:
        pytest.skip(str(error))


class NotInstalled(Exception):
    """A package cannot be installed here, and why."""


def install(folder: Path, packages: Sequence[str]) -> Path:
    """Make a virtual environment with these packages, unless it is there; return its Python.

    It sees the packages of the current environment too: torch is not installed again.
    """
    python, done = folder / "bin" / "python", folder / "done"
    if not done.exists():
        venv.create(folder, clear=True, with_pip=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        parent = sysconfig.get_path("purelib")
        (site / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n")
        for what in (packages, ["--no-deps", "-e", str(ROOT / "packages" / "eval")]):
            command = [str(python), "-m", "pip", "install", "--quiet", *what]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise NotInstalled(f"{what[-1]} cannot be installed here: {result.stderr.strip().splitlines()[-1]}")
        done.touch()
    return python


def settings(home: Path, **variables: str) -> dict[str, str]:
    """The environment variables of a program that must not reach any hub."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("COV", "PYTEST"))}
    fixed = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hf"), "OMP_NUM_THREADS": "1"}
    return {**inherited, **fixed, **variables}


def call(python: Path, home: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment in the folder `home`; its failure fails the test."""
    command = [str(python), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=home, env=settings(home, **variables))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result
