"""Checkpoint formats, one file each: `read(folder, config)`, `write(spec, facts)`, `PATTERNS`, `MODEL_TYPES`.

A new format is a new file here and a line in `FORMATS`.
"""

from pathlib import Path
from typing import Protocol

from vlm.models.checkpoint.formats import hf, internvl, llava, ours
from vlm.models.checkpoint.formats.schema import CheckpointLayout, FolderFiles, Json, StoredFacts
from vlm.models.checkpoint.renaming import Patterns
from vlm.models.specs import ModelSpec


class CheckpointFormat(Protocol):
    """What each module of this folder that `FORMATS` names has."""

    @property
    def MODEL_TYPES(self) -> tuple[str, ...]:
        """Return the values of `model_type` in `config.json` that this format reads."""

    @property
    def PATTERNS(self) -> dict[str, Patterns]:
        """Return key patterns, their names -> ours, by variant of the format."""

    def read(self, folder: Path, config: Json) -> CheckpointLayout:
        """Return spec and names of a checkpoint from its `config.json`."""

    def write(self, spec: ModelSpec, facts: StoredFacts) -> list[FolderFiles]:
        """Return the folders to write for a model; the first is the checkpoint itself."""


FORMATS: dict[str, CheckpointFormat] = {"internvl": internvl, "llava": llava, "hf": hf, "vlm": ours}
"""By the name that `vlm weights convert --to` takes."""
