"""The versions of what runs; nothing is imported for it."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from vlm.core.extras import EXTRAS, absent, how_installed

OURS = ("farlens-cli", "farlens-core", "farlens-models", "farlens-train", "farlens-eval")
LIBRARIES = ("torch", "transformers", "timm", "av", "decord", "deepspeed", "snakemake")


def version_lines() -> list[str]:
    """Return one line for vlm, each of its packages, Python, the libraries that are installed, and the extras."""
    lines = [" ".join(["vlm", _version(OURS[0]), f"({how_installed(OURS[0])})"])]
    lines += [f"{name} {_version(name)}" for name in OURS]
    lines.append(f"Python {platform.python_version()} ({sys.executable})")
    lines += [f"{name} {found}" for name in LIBRARIES if (found := _version(name)) != "not installed"]
    return [*lines, f"extras: {', '.join(extra for extra in EXTRAS if not absent(extra)) or 'none'}"]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
