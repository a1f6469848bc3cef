"""Which format a checkpoint folder has, and the spec in it.

>>> read_layout(Path("pretrained/InternVL2-2B")).spec.family      # doctest: +SKIP
'internvl2'
"""

from dataclasses import replace
from pathlib import Path

from vlm.core.config import parse
from vlm.core.errors import CheckpointError
from vlm.models.checkpoint.formats import FORMATS
from vlm.models.checkpoint.formats.schema import CheckpointLayout, Json
from vlm.models.checkpoint.locate import read_config
from vlm.models.specs import ModelSpec


def read_layout(folder: Path) -> CheckpointLayout:
    """Return spec and tensor names of a checkpoint folder in any format.

    Raises:
        CheckpointError: no format has this `model_type`; a key is missing or has an unsupported value.
    """
    config = read_config(folder)
    readers = {kind: module for module in FORMATS.values() for kind in module.MODEL_TYPES}
    found = readers.get(config.get("model_type", ""))
    if found is None:
        raise CheckpointError(
            f"{folder}/config.json: model_type {config.get('model_type')!r} is not known",
            expected=f"one of {', '.join(sorted(readers))}",
            fix="give the folder of an InternVL, ConvLLaVA or vlm checkpoint",
        )
    try:
        return with_own_keys(found.read(Path(folder), config), config, f"{folder}/config.json")
    except KeyError as error:
        raise CheckpointError(
            f"{folder}/config.json has no key {error}", expected="a published configuration"
        ) from error


def with_own_keys(layout: CheckpointLayout, config: Json, where: str) -> CheckpointLayout:
    """Apply the keys of ModelSpec under `vlm`: settings that a published schema has no key for.

    Raises:
        CheckpointError: the published keys contradict `vlm.strides`.
    """
    own = config.get("vlm", {})
    if "strides" in own and "rope_pos_id_version" in config and own["strides"] != layout.spec.strides:
        raise CheckpointError(
            f"{where}: vlm.strides is {own['strides']} but the published keys say {layout.spec.strides}",
            expected="rope_pos_id_version and rope_pos_id_stride to agree with vlm.strides",
            fix="correct one of them, or delete vlm.strides",
        )
    spec = parse({**layout.spec.model_dump(), **own}, ModelSpec, where=f"{where}: vlm") if own else layout.spec
    return replace(layout, spec=spec)
