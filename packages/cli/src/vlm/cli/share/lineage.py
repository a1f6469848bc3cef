"""Where a model comes from: the trainings that made it, what they began with, and under which licenses.

>>> lineage_of(Path("runs/demo/train/demo-sft/model")).stages[0].record.recipe["name"]     # doctest: +SKIP
'demo-sft'
"""

from dataclasses import dataclass, field
from pathlib import Path

from vlm.cli.local_models import shipped_entries
from vlm.core.fetch.catalogue import Entry, HubSource, find_file
from vlm.core.fetch.manifest import read_manifest
from vlm.core.home import home, resolve
from vlm.train.run.provenance import FILE, RunRecord, read_provenance


@dataclass(frozen=True)
class TrainedStage:
    """One training on the way to a model: its folder and what that says of itself."""

    folder: Path
    record: RunRecord


@dataclass
class Lineage:
    """How a model came to be.

    Attributes:
        stages: trainings, the last first; empty for a model that was not trained here.
        base: entries of the catalogue that all began with; empty where it knows nothing of that.
        repos: repositories of the base on the hub.
        start: folder that all began with.
        data: file of a training set -> its entry of the catalogue; None for one's own.
    """

    stages: list[TrainedStage] = field(default_factory=list)
    base: list[Entry] = field(default_factory=list)
    repos: list[str] = field(default_factory=list)
    start: str = ""
    data: dict[str, Entry | None] = field(default_factory=dict)


def lineage_of(folder: Path) -> Lineage:
    """Return how the model in a folder came to be, as far as the folders of this machine say."""
    found, catalogue = Lineage(), {entry.name: entry for entry in shipped_entries()}
    place, seen = folder.resolve(), set[Path]()
    while place not in seen:
        seen.add(place)
        stage = place.parent
        record = read_provenance(stage) if place.name == "model" and (stage / FILE).is_file() else None
        start = (record.recipe.get("model") or {}).get("start") if record else None
        if record is None or not isinstance(start, str):
            break
        found.stages.append(TrainedStage(stage, record))
        found.data |= {name: find_file(name, catalogue) for name in record.lines}
        place = resolve(start).resolve()
    found.start = place.relative_to(home()).as_posix() if place.is_relative_to(home()) else place.name
    found.repos = repos_of(place)
    found.base = base_entries(place, found.start, found.repos, catalogue)
    if not found.repos:
        found.repos = [source.repo for entry in found.base for source in entry.source if isinstance(source, HubSource)]
    return found


def base_entries(folder: Path, place: str, repos: list[str], catalogue: dict[str, Entry]) -> list[Entry]:
    """Return the entries that a start checkpoint is, or is made from."""
    weights = [entry for entry in catalogue.values() if entry.kind == "weights"]
    if repos:
        return [e for e in weights if any(isinstance(s, HubSource) and s.repo in repos for s in e.source)]
    is_one = [entry for entry in weights if f"{place}/".startswith(f"{entry.folder}/")]
    return is_one or [e for e in weights if place == f"pretrained/{folder.name}" and folder.name in e.groups]


def repos_of(folder: Path) -> list[str]:
    """Return the repositories that a folder was downloaded from, by its manifest or that of the folder above."""
    manifest = read_manifest(folder) or read_manifest(folder.parent)
    sources = manifest["source"] if manifest and isinstance(manifest["source"], list) else []
    return [s["repo"] for s in sources if isinstance(s, dict) and isinstance(s.get("repo"), str)]
