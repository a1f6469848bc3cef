"""Which format a checkpoint folder has, and the spec in it.

>>> read_layout(Path("pretrained/InternVL2-2B")).spec.family      # doctest: +SKIP
'internvl2'
"""

from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from vlm.core.config import faults_of, parse
from vlm.core.errors import CheckpointError, ConfigError
from vlm.core.text import printable
from vlm.models.checkpoint.formats import FORMATS
from vlm.models.checkpoint.formats.schema import CheckpointLayout, Json
from vlm.models.checkpoint.locate import read_config
from vlm.models.specs import ModelSpec


def read_layout(folder: Path) -> CheckpointLayout:
    """Return spec and tensor names of a checkpoint folder in any format.

    Raises:
        CheckpointError: no format has this `model_type`; a key is missing or has an unsupported value; the weights are
            stored quantized.
    """
    config, where = read_config(folder), f"{folder}/config.json"
    if quantization := config.get("quantization_config"):
        method = (
            quantization.get("quant_method", "an unknown method") if isinstance(quantization, dict) else quantization
        )
        raise CheckpointError(
            f"{where}: the weights are stored quantized, by {printable(method, 60)}, and only whole ones are read here",
            expected="a checkpoint without quantization_config; transformers opens this one",
            fix="take the folder that it was made from, and quantize it while it is loaded: --quantize 8bit or 4bit",
        )
    readers = {kind: module for module in FORMATS.values() for kind in module.MODEL_TYPES}
    found = readers.get(str(config.get("model_type", "")))
    if found is None:
        raise CheckpointError(
            f"{where}: model_type {printable(repr(config.get('model_type')))} is not known",
            expected=f"one of {', '.join(sorted(readers))}",
            fix="give the folder of an InternVL, ConvLLaVA or vlm checkpoint",
        )
    try:
        return with_own_keys(found.read(Path(folder), config), config, where)
    except KeyError as error:
        raise CheckpointError(f"{where} has no key {printable(error)}", expected="a published configuration") from error
    except ConfigError as error:
        raise CheckpointError(error.found, expected=error.expected, fix=f"correct {where}") from error
    except ValidationError as error:
        raise CheckpointError(faults_of(error, where), fix=f"correct {where}") from error
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        # a key holds another kind of value than the published ones: whatever reading it raises
        raise CheckpointError(
            f"{where} cannot be read: {type(error).__name__}: {printable(error)}",
            expected="a published configuration",
            fix="download the checkpoint again",
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
