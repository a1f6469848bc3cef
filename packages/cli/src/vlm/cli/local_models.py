"""The models on this machine, the names that each may be called by, and the one that `vlm use` has chosen."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vlm.core.errors import ConfigError, VlmError
from vlm.core.fetch.catalogue import Entry, load_catalogue, weights_names
from vlm.core.home import home, pretrained, read_object, runs, write_json
from vlm.core.text import printable

SKIPPED = {"checkpoints", "eval", "report", ".judge"}
"""Folders below runs/ that hold no exported model."""

GENERIC = {"runs", "train", "export", "exported", "model", "pretrained", "checkpoint", "final", "latest", "hf"}
"""Folders whose name says nothing about the model in them."""

PARTS = {"clip", "convnext", "intern_vit_6b", "internlm2", "llama", "mistral", "qwen2", "timm_wrapper"}
"""Values of `model_type` of parts that a model is made from; they answer nothing."""

CHOICE = ".vlm-model.json"
"""File of the home that holds what `vlm use` has chosen."""


@cache
def shipped_entries() -> tuple[Entry, ...]:
    """Return the entries of the shipped catalogue, read once."""
    return tuple(load_catalogue().values())


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine: its folder, and its names by what they name (released name, stage, run)."""

    folder: Path
    released: tuple[str, ...] = ()
    stage: tuple[str, ...] = ()
    run: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Return the folder as it is typed: relative to the home where it lies there."""
        return self.folder.relative_to(home()).as_posix() if self.folder.is_relative_to(home()) else str(self.folder)


def local_models() -> list[LocalModel]:
    """Return the models below pretrained/ and runs/, in the order of their folders."""
    return [*_pretrained_models(), *_exported_models()]


def _pretrained_models() -> Iterator[LocalModel]:
    """Yield checkpoints at most two folders deep; the image encoder inside of one and parts of models are none."""
    entries = shipped_entries()
    top = sorted(path.parent for path in pretrained().glob("*/config.json"))
    nested = sorted(path.parent for path in pretrained().glob("*/*/config.json"))
    for folder in [*top, *(path for path in nested if path.parent not in top)]:
        if _model_type(folder) not in PARTS:
            place = folder.relative_to(home()).as_posix()
            known = [name for entry in entries for name in weights_names(entry).get(place, ())]
            below = folder.relative_to(pretrained()).as_posix()
            yield LocalModel(folder, released=tuple(dict.fromkeys([*known, folder.name, below])))


def _exported_models() -> Iterator[LocalModel]:
    """Yield the models that training exported below runs/."""
    exported = (path.parent for path in runs().rglob("config.json") if next(path.parent.glob("*.safetensors"), None))
    for folder in sorted(exported):
        parts = folder.relative_to(runs()).parts
        if SKIPPED & set(parts):
            continue
        named = [part for part in parts if part.lower() not in GENERIC] or [*parts]
        yield LocalModel(folder, stage=(named[-1], "/".join((named[0], named[-1]))), run=(named[0],))


def _model_type(folder: Path) -> str:
    """Return the `model_type` of a checkpoint; "" where its config.json cannot be read: who uses it learns why."""
    with suppress(VlmError):
        return str(read_object(folder / "config.json").get("model_type", ""))
    return ""


def matches(name: str, models: list[LocalModel]) -> list[LocalModel]:
    """Return the models that a name fits best; several where it names several, none where it names none.

    As typed before in upper or lower case, and in each: a released model, else a stage, else a run. A name of the
    catalogue is never that of a stage or a run, here or not: `V2PE-32K` is the released model, `v2pe-32k` one's own.
    """
    exact: Callable[[str], str] = str
    for fold in (exact, str.lower):
        for kind in ("released", "stage", "run"):
            found = [m for m in models if fold(name) in map(fold, getattr(m, kind))]
            if found or (kind == "released" and downloadable(name, fold)):
                return found
    return []


def downloadable(name: str, fold: Callable[[str], str] = str.lower) -> Entry | None:
    """Return the entry of the catalogue that brings the model of this name; None without one."""
    for entry in shipped_entries():
        names = {n for names in weights_names(entry).values() for n in names} if entry.automatic else ()
        if fold(name) in map(fold, names):
            return entry
    return None


def short_name(model: LocalModel, models: list[LocalModel]) -> str:
    """Return the shortest of a model's names that names no other one; its folder where none does."""
    names = sorted((*model.released, *model.stage), key=len)
    return next((name for name in names if matches(name, models) == [model]), model.place)


def chosen_model() -> Path | None:
    """Return the folder that `vlm use` has chosen; None where nothing is chosen.

    Raises:
        ConfigError: the model is gone, or the file that names it is damaged.
    """
    file = home() / CHOICE
    if not file.exists():
        return None
    fix = "vlm use --clear"
    said = read_object(file, ConfigError, fix=fix).get("model")
    if not isinstance(said, str):
        raise ConfigError(f"{file}: model is {printable(json.dumps(said))}", expected="a folder", fix=fix)
    folder = home() / said
    if not (folder / "config.json").is_file():
        raise ConfigError(f"the model that `vlm use` chose is gone: {printable(said)}", fix=fix)
    return folder


def choose_model(folder: Path | None) -> None:
    """Write down the model that is meant where none is named; None forgets it."""
    file = home() / CHOICE
    if folder is None:
        file.unlink(missing_ok=True)
        return
    folder = folder.resolve()
    inside = folder.is_relative_to(home())
    write_json(file, {"model": folder.relative_to(home()).as_posix() if inside else str(folder)})
