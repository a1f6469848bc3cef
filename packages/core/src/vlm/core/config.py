"""YAML read into pydantic models: unknown keys are errors, and every fault is reported at once with file and key.

recipe = parse(load_yaml(path), Recipe, where=str(path))
"""

import difflib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from vlm.core.errors import ConfigError, DataError, UnknownName
from vlm.core.reading import check_regular
from vlm.core.text import printable, printable_lines

MOST_BYTES, DEEPEST, MOST_VALUES = 4_000_000, 50, 200_000
"""Limits of one YAML file; the largest of ours has 13,000 bytes, 8 levels and 800 values."""


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
        raise ConfigError(faults_of(error, where, model), fix="correct the keys named above") from error


def faults_of(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> str:
    """Return a line for each fault of a validation: `where`: key: what is wrong (found value).

    With the model that was validated against, an unknown key is shown beside the known ones that are nearest.
    """
    lines = []
    for fault in error.errors():
        key = printable(".".join(str(part) for part in fault["loc"]) or "(top level)")
        message = fault["msg"]
        if fault["type"] == "extra_forbidden":
            *above, last = fault["loc"]
            inside = model_at(model, above)
            known = list(inside.model_fields) if inside else []
            near = difflib.get_close_matches(str(last).lower(), known, n=2, cutoff=0.6)
            message = "unknown key" + (f"; did you mean {' or '.join(near)}?" if near else "")
        lines.append(f"{where}: {key}: {printable_lines(message)} (found {printable(repr(fault.get('input')), 80)})")
    return "\n".join(lines)


def model_at(model: Any, keys: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model that validates what is below some keys of `model`; None where that is none.

    >>> model_at(Strict, ["x"]) is None
    True
    """
    for key in (*keys, None):
        while not (isinstance(model, type) and issubclass(model, BaseModel)):
            inner = [arg for arg in get_args(model) if arg is not type(None)]
            model = next((arg for arg in inner if _models(arg)), None)
            if model is None:
                return None
        if isinstance(key, str) and key in model.model_fields:
            model = model.model_fields[key].annotation
    return cast("type[BaseModel]", model)


def _models(annotation: Any) -> bool:
    """Return whether a model is somewhere in an annotation."""
    if isinstance(annotation, type):
        return issubclass(annotation, BaseModel)
    return any(map(_models, get_args(annotation)))


def load_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        ConfigError: The file is missing, is not valid YAML, or beyond the limits of `parse_yaml`; the message names
            file and line.
    """
    try:
        check_regular(path)
    except DataError as error:
        raise ConfigError(error.found, expected="a YAML file", fix=error.fix or "name a file") from error
    try:
        with Path(path).open("rb") as f:
            content = f.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"no such file: {printable(path)}") from error
    except OSError as error:
        raise ConfigError(f"{printable(path)} cannot be read: {error.strerror}", fix="name a YAML file") from error
    return parse_yaml(content, where=printable(path))


def parse_yaml(content: str | bytes, *, where: str) -> Any:
    """Return the value of YAML: plain mappings, lists, texts and numbers.

    A text of some lines can stand for more than any memory holds, or make the reader call itself without end. So bytes,
    depth and values are counted, each alias as what it stands for, before anything is built.

    Args:
        content: The text; bytes are UTF-8.
        where: The file, for error messages.

    Raises:
        ConfigError: Not valid YAML, a key that is no text or there twice, or beyond a limit.
    """
    size = len(content if isinstance(content, bytes) else content.encode(errors="replace"))
    if size > MOST_BYTES:
        raise ConfigError(f"{where} is longer than {MOST_BYTES:,} bytes", expected="a table or a recipe")
    try:
        text = content.decode() if isinstance(content, bytes) else content
        _count(text, where)
        return yaml.load(text, _TextKeys)  # a SafeLoader
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8: {error.reason} at byte {error.start}", expected="YAML") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {printable_lines(str(error))}") from error
    except ValueError as error:  # a date or a number that cannot be
        raise ConfigError(f"{where}: {printable(error)}", fix="put quotes around a text") from error


def _count(text: str, where: str) -> None:
    """Raise ConfigError for YAML that is too deep, stands for too many values, or contains itself."""
    sizes: dict[str, int] = {}  # anchor -> values that an alias of it stands for; 0 while it is read
    above: list[tuple[str, int]] = []  # anchor of each open collection, and the values before it
    values = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # libyaml: ten times as fast
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = above.pop()
            if anchor:
                sizes[anchor] = values - before
        elif isinstance(event, yaml.NodeEvent):
            line = f"{where}:{event.start_mark.line + 1 if event.start_mark else '?'}"
            anchor = event.anchor or ""
            if isinstance(event, yaml.AliasEvent):
                if sizes.get(anchor) == 0:
                    raise ConfigError(f"{line}: *{printable(anchor, 40)} contains itself", expected="a finite value")
                values += sizes.get(anchor, 1)  # an unknown one is reported by the constructor
            else:
                values += 1
                if isinstance(event, yaml.ScalarEvent):
                    if not _encodes(event.value):
                        raise ConfigError(f"{line}: half a surrogate pair", expected="characters")
                    if anchor:
                        sizes[anchor] = 1
                else:
                    above.append((anchor, values - 1))
                    if anchor:
                        sizes[anchor] = 0
            if len(above) > DEEPEST:
                raise ConfigError(f"{line}: more than {DEEPEST} levels", expected="a table or a recipe")
            if values > MOST_VALUES:
                found = f"{line}: stands for more than {MOST_VALUES:,} values"
                raise ConfigError(found, expected="a table or a recipe", fix="write out what its aliases repeat")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _TextKeys(yaml.SafeLoader):
    """A SafeLoader whose keys are texts, each once: of two the last would win, and `on:` would become True."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping. Raises ConstructorError for a key that is no text, or there twice."""
        given: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                shown = f"the key {key.value}" if isinstance(key, yaml.ScalarNode) and key.value else "a key"
                message = f"{shown} is no text; put quotes around it"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            if key.value in given:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} twice", key.start_mark)
            given.add(key.value)
        return super().construct_mapping(node, deep)


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
