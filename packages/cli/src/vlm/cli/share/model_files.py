"""The files of a checkpoint folder that are the model's, checked whole before anybody else gets them."""

import re
from pathlib import Path

from vlm.core.errors import CheckpointError
from vlm.core.paths import is_control
from vlm.core.progress import Report, silent
from vlm.core.text import printable
from vlm.models.checkpoint.adapters import is_adapter_folder
from vlm.models.checkpoint.convert import CARRIED
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import TOKENIZER_FILES, is_finite
from vlm.models.checkpoint.locate import read_config
from vlm.models.checkpoint.reader import CheckpointReader
from vlm.models.checkpoint.safetensors_io import nbytes, weight_files

CARD = "README.md"

BESIDE = {
    "config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "model.safetensors.index.json", "pytorch_model.bin.index.json", "chat_template.json",
    *TOKENIZER_FILES, *CARRIED,
}  # fmt: skip
"""Files of a model beside its weights."""

LEGAL = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY|COPYING)([-_.]\w+)*", re.IGNORECASE)
"""Files that must travel with the weights."""

THE_HUBS = {".gitattributes", ".gitignore"}
"""Files that a download brings and the hub makes again; its client keeps notes in .cache/."""


def model_files(folder: Path) -> dict[str, Path]:
    """Return name -> path of each file to share, without the card.

    Raises:
        CheckpointError: adapters alone; a file that is not the model's; a vision tower outside of the folder.
    """
    if is_adapter_folder(folder):
        merged = folder.parent / "model"
        raise CheckpointError(
            f"{folder} holds adapters without their model",
            expected="a model: training writes it with its adapters merged, into model/ beside adapter/",
            fix=f"vlm push {merged} REPO"
            if (merged / "config.json").is_file()
            else "finish the training, then push its model/",
        )
    layout = read_layout(folder)
    towers = [path for path, _ in layout.towers]
    if outside := [tower for tower in towers if not tower.resolve().is_relative_to(folder.resolve())]:
        raise CheckpointError(
            f"{folder}: its vision tower is in another folder: {outside[0]}",
            expected="a folder that holds the whole model",
            fix="add --to vlm: the copy that is pushed holds everything",
        )
    weights = {path for part in (folder, *towers) for path in weight_files(part)}
    code = remote_code(folder)
    found, foreign = {}, []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or is_control(name) or name in THE_HUBS or name == CARD or name.startswith(".cache/"):
            continue
        own_place = path.parent in (folder, *towers)
        if path in weights or (own_place and (path.name in BESIDE or LEGAL.fullmatch(path.name))) or path in code:
            found[name] = path
        else:
            foreign.append(name)
    if foreign:
        listed = ", ".join(printable(name) for name in foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise CheckpointError(
            f"{folder} holds {len(foreign)} files that are not the model's: {listed}",
            expected="configuration, weights, tokenizer, license",
            fix=f"move them away; or add --to {layout.name}: the copy that is pushed holds the model alone",
        )
    return found


def remote_code(folder: Path) -> set[Path]:
    """Return the Python files that belong to a published release: config.json names some of them, they the others."""
    config = read_config(folder)
    named = any("auto_map" in part for part in (config, config.get("llm_config") or {}) if isinstance(part, dict))
    return {path for path in folder.glob("*.py") if path.is_file()} if named else set()


def check_weights(folder: Path, report: Report = silent) -> None:
    """Read every tensor once.

    Raises:
        CheckpointError: one is missing, unknown, of a wrong shape, or holds NaN or infinity.
    """
    source = CheckpointReader(read_layout(folder), folder)
    source.check()
    source.check_copy()
    total, done, broken = sum(nbytes(source.meta(name)) for name in source.wanted), 0, []
    for name in sorted(source.wanted, key=source.file):
        tensor = source.read(name)
        if not is_finite(tensor):
            broken.append(name)
        done += nbytes(tensor)
        report(done, total)
    if broken:
        named = ", ".join(broken[:4]) + (f" and {len(broken) - 4} more" if len(broken) > 4 else "")
        raise CheckpointError(
            f"{folder}: NaN or infinity in {len(broken)} of {len(source.wanted)} tensors: {named}",
            expected="finite weights: a model with others answers nothing",
            fix="push another checkpoint of this run",
        )
