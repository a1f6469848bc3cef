"""Our own format: `config.json` holds the spec, tensors have our names. It holds every model."""

from pathlib import Path

from vlm.core.config import parse
from vlm.models.checkpoint.formats.schema import CheckpointLayout, FolderFiles, Json, StoredFacts
from vlm.models.checkpoint.renaming import Patterns
from vlm.models.specs import ModelSpec

MODEL_TYPES = ("vlm",)
"""Values of `model_type` in the `config.json` of this format."""

PATTERNS: dict[str, Patterns] = {}
"""No key is renamed."""


def write_spec(spec: ModelSpec) -> Json:
    """Return the `config.json` of a model in our format."""
    return {"model_type": "vlm", "spec": spec.model_dump(mode="json")}


def read(folder: Path, config: Json) -> CheckpointLayout:
    """Read the spec from `config.json`.

    Raises:
        ConfigError: the spec has unknown keys or wrong values.
        KeyError: there is no spec.
    """
    return CheckpointLayout("vlm", parse(config["spec"], ModelSpec, where=f"{folder}/config.json: spec"), None)


def write(spec: ModelSpec, facts: StoredFacts) -> list[FolderFiles]:
    """Return the one folder to write; the facts are not needed."""
    return [FolderFiles(None, {"config.json": write_spec(spec)})]
