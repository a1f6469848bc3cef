"""YAML read into pydantic models: unknown keys are errors, and every fault is reported at once with file and key.

recipe = parse(load_yaml(path), Recipe, where=str(path))
"""

from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from vlm.core.errors import ConfigError, UnknownName
from vlm.core.reading import check_regular
from vlm.core.text import printable


class Strict(BaseModel):
    """Base of every configuration model: unknown keys are errors, instances cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


M = TypeVar("M", bound=BaseModel)


def parse(data: Any, model: type[M], *, where: str) -> M:
    """Validate parsed YAML against a model.

    Args:
        data: What `load_yaml` returned.
        model: The pydantic model, as a rule a subclass of `Strict`.
        where: The file, for error messages.

    Raises:
        ConfigError: All faults at once, one line each: `where`: key: what is wrong (found value).
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(faults_of(error, where), fix="correct the keys named above") from error


def faults_of(error: ValidationError, where: str) -> str:
    """Return a line for each fault of a validation: `where`: key: what is wrong (found value)."""
    lines = []
    for fault in error.errors():
        key = printable(".".join(str(part) for part in fault["loc"]) or "(top level)")
        message = "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"]
        lines.append(f"{where}: {key}: {message} (found {printable(repr(fault.get('input')), 80)})")
    return "\n".join(lines)


def load_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        ConfigError: The file is missing, or is not valid YAML; the message names file and line.
    """
    check_regular(path)
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no such file: {path}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error


def package_tables(package: str, folder: str) -> dict[str, Path]:
    """Return the YAML tables that a package ships, as name -> path, e.g. of "vlm.train" and "recipes"."""
    return {p.stem: p for p in sorted(Path(str(files(package) / folder)).glob("*.yaml"))}


def find_table(kind: str, name: str, package: str, folder: str, *, fix: str | None = None) -> Path:
    """Return the path of a shipped table by its name, in upper or lower case.

    Raises:
        UnknownName: No table has this name; the message names the nearest ones.
    """
    tables = package_tables(package, folder)
    for stem, path in tables.items():
        if stem.lower() == name.lower():
            return path
    raise UnknownName(kind, name, tables, fix=fix)
