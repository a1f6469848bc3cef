"""Convert a checkpoint from any format that we read to any that we write, tensor by tensor, bit for bit.

>>> convert("OpenGVLab/InternVL2-2B", "hf", "pretrained/InternVL2-2B-hf")    # doctest: +SKIP
"""

import shutil
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.core.errors import CheckpointError, ConfigError, HardwareError, UnknownName
from vlm.core.home import new_folder, resolve, write_atomic, write_json
from vlm.core.progress import Report, human_bytes, silent
from vlm.core.sample.tokenizer import has_tokenizer, load_tokenizer
from vlm.core.text import printable
from vlm.models.checkpoint.agreement import check_agreement
from vlm.models.checkpoint.formats import FORMATS, llava
from vlm.models.checkpoint.formats.schema import FolderFiles, StoredFacts
from vlm.models.checkpoint.fused_tensors import forms
from vlm.models.checkpoint.hf_companions import complete_hf_folder
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import copy_tokenizer
from vlm.models.checkpoint.locate import find_checkpoint, read_config
from vlm.models.checkpoint.losses import losses, model_card, refuse_losses
from vlm.models.checkpoint.reader import CheckpointReader, Vision
from vlm.models.checkpoint.renaming import Patterns, rename
from vlm.models.checkpoint.safetensors_io import SHARD_SIZE, nbytes, write_shards
from vlm.models.specs import ModelSpec

CARRIED = ("generation_config.json", "chat_template.jinja")
"""Files with the same meaning in every format."""


def convert(
    path: str | Path,
    to: str,
    out: Path,
    *,
    max_shard_size: str = SHARD_SIZE,
    vision: Vision | None = None,
    allow: Collection[str] = (),
    remote_code: Path | None = None,
    report: Report = silent,
) -> Path:
    """Write a checkpoint in another format; return the folder written.

    One tensor is in memory at a time; dtypes stay as stored. The folder appears complete or not at all. Tokenizer
    files are copied; settings that the published schema has no key for are in config.json under `vlm`. A folder in the
    `hf` layout with a tokenizer has all that transformers' Auto classes, pipelines and servers read.

    Args:
        path: a folder, or a name below `pretrained/`, in any format.
        to: key of `FORMATS`: `internvl`, `llava`, `hf` or `vlm`.
        out: a new or empty folder.
        max_shard_size: e.g. `5GB`.
        vision: which copy of a LLaVA checkpoint's vision weights to read, `tower` or `checkpoint`, if they differ.
        allow: names of `LOSSES` that the layout may lose; its README.md then says so.
        remote_code: folder of a release whose Python files and `auto_map` are copied, for `internvl`.
        report: called with (bytes done, bytes in all).

    Raises:
        UnknownName, ConfigError: an unknown format; a part or a setting that it cannot hold; `out` holds files.
        CheckpointError: the source is damaged, incomplete, of an unknown family, or with a tokenizer that does not fit.
        HardwareError: the disk is too small.
    """
    if to not in FORMATS:
        raise UnknownName("layout", to, FORMATS)
    if remote_code is not None and to != "internvl":
        raise ConfigError(f"remote code for the {to} layout", expected="--to internvl", fix="leave it out")
    folder, out = find_checkpoint(path), check_new(resolve(out))
    layout = read_layout(folder)
    layout.spec.check_stride()
    lost = losses(layout.spec, to)
    refuse_losses(lost, to, allow)
    whole = has_tokenizer(folder)
    if whole:
        check_agreement(layout.spec, load_tokenizer(folder), folder)
    source = CheckpointReader(layout, folder, vision)
    source.check()
    plans = plan_folders(source, layout.spec, to)
    name_towers(plans, out)
    source.check_copy()
    total = sum(plan.size for plan in plans)
    out.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(out.parent).free) < total:
        raise HardwareError(
            f"{human_bytes(free)} free at {out.parent}", expected=human_bytes(total), fix="choose another disk"
        )
    with new_folder(out) as temporary:
        for number, plan in enumerate(plans):
            before = sum(earlier.size for earlier in plans[:number])
            plan.write(source, temporary, max_shard_size, partial(report_from, report, before, total))
        copy_companions(folder, temporary)
        write_own_keys(temporary, plans[0].part, layout.spec)
        if to == "hf" and whole:
            complete_hf_folder(temporary, layout.spec, source.tokens_per_tile, keep_template=layout.name == "hf")
        if remote_code is not None:
            copy_remote_code(resolve(remote_code), temporary)
        if lost:
            write_atomic(temporary / "README.md", model_card(folder.name, to, lost))
    return out


def check_new(out: Path) -> Path:
    """Return the folder to write. Raises ConfigError when something is there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists", expected="a new or empty folder", fix="choose another -o, or remove it")
    return out


@dataclass(frozen=True)
class PlannedFolder:
    """One folder to write: its files, its tensors (meta) by their new names, and our name of each."""

    part: FolderFiles
    shapes: dict[str, Tensor] = field(default_factory=dict)
    ours: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Return the bytes of all tensors."""
        return sum(map(nbytes, self.shapes.values()))

    def write(self, source: CheckpointReader, checkpoint: Path, max_shard_size: str, report: Report) -> None:
        """Write files and weights below the folder of the checkpoint."""
        target = checkpoint / self.part.name
        target.mkdir(exist_ok=True)
        for name, content in self.part.files.items():
            write_json(target / name, content)

        def read(key: str) -> Tensor:
            return source.read(self.ours[key])

        write_shards(self.shapes, read, target, max_shard_size=max_shard_size, report=report)


def report_from(report: Report, before: int, total: int, done: int, _: int) -> None:
    """Report the bytes of one folder as part of the whole checkpoint."""
    report(before + done, total)


def plan_folders(source: CheckpointReader, spec: ModelSpec, to: str) -> list[PlannedFolder]:
    """Return the folders to write for a checkpoint in the format `to`.

    Raises:
        ConfigError: the format has no name for a tensor.
    """
    facts = StoredFacts(stored_dtype(source), source.tokens_per_tile, special_ids(source.folder))
    plans = [PlannedFolder(part) for part in FORMATS[to].write(spec, facts)]
    for name in source.wanted:
        for plan in plans:
            if found := published_names(name, plan.part.patterns):
                for key, ours in found.items():
                    if key not in plan.shapes:  # a fused tensor occurs once for each of its parts
                        plan.shapes[key], plan.ours[key] = source.meta(ours), ours
                break
        else:
            raise ConfigError(f"{name} has no place in the {to} layout", fix="choose another --to, e.g. vlm")
    return plans


def name_towers(plans: list[PlannedFolder], out: Path) -> None:
    """Name the vision tower of a LLaVA folder by where it will be: the published loader has no other starting point.

    A relative path would mean its working directory. Ours looks inside and beside the checkpoint, whatever the path.

    Raises:
        ConfigError: the path has a word by which the published loader chooses another kind of tower.
    """
    towers = [plan.part.name for plan in plans if plan.part.name]
    path = str(out / towers[0]) if towers else ""
    if word := next((word for word in llava.OTHER_TOWERS if word in path.lower()), None):
        raise ConfigError(
            f"{path}: the published loader takes a path with {word!r} in it for another kind of vision tower",
            fix="choose an -o without that word",
        )
    if towers:
        plans[0].part.files["config.json"]["mm_vision_tower"] = path


def published_names(name: str, patterns: Patterns | None) -> dict[str, str]:
    """Return {their name: our name} of one of our tensors, whole, fused or split; empty if no pattern matches."""
    if patterns is None:
        return {name: name}
    for form in forms(name):
        result = rename(form, patterns)
        if not result.unknown:
            return {key: ours for ours, key in result.renamed.items()}
    return {}


def stored_dtype(source: CheckpointReader) -> str:
    """Return the dtype that most values are stored in, e.g. `bfloat16`."""
    counts: Counter[str] = Counter()
    for name in source.wanted:
        tensor = source.meta(name)
        counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return counts.most_common(1)[0][0]


def special_ids(folder: Path) -> dict[str, int]:
    """Return the ids of bos, eos and pad: of the tokenizer beside the weights, else of the source's configuration."""
    kinds = ("bos", "eos", "pad")
    if has_tokenizer(folder):
        tokenizer = load_tokenizer(folder)
        found: dict[str, Any] = {f"{k}_token_id": getattr(tokenizer, f"{k}_id") for k in kinds}
    else:
        config = read_config(folder)
        config = config.get("llm_config") or config.get("text_config") or config
        found = {f"{k}_token_id": config.get(f"{k}_token_id") for k in kinds}
    return {key: value for key, value in found.items() if isinstance(value, int)}


def copy_companions(folder: Path, target: Path) -> None:
    """Copy the tokenizer, if there is one, and the files with the same meaning in every format."""
    if has_tokenizer(folder):
        copy_tokenizer(folder, target)
    for name in CARRIED:
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)


def copy_remote_code(release: Path, target: Path) -> None:
    """Copy the Python files of a published release, and name its classes in config.json; nothing is run.

    Raises:
        CheckpointError: no Python files, or no `auto_map` that names them.
    """
    files = {file.stem: file for file in sorted(release.glob("*.py")) if file.is_file()}
    theirs, ours = read_config(release), read_config(target)
    for part in ("", "llm_config"):
        classes = (theirs.get(part, {}) if part else theirs).get("auto_map")
        names = classes.values() if isinstance(classes, dict) else [] if part else [None]
        if wrong := [n for n in names if not isinstance(n, str) or n.split(".")[0] not in files]:
            raise CheckpointError(
                f"{release}: the auto_map of config.json names {printable(repr(wrong[0]))}",
                expected="a downloaded release with its *.py files",
                fix="vlm download InternVL2-2B, and name its folder",
            )
        if isinstance(classes, dict):
            (ours[part] if part else ours)["auto_map"] = classes
    for file in files.values():
        shutil.copyfile(file, target / file.name)
    write_json(target / "config.json", ours)


def write_own_keys(folder: Path, part: FolderFiles, spec: ModelSpec) -> None:
    """Read the written folder back; put settings that its config.json does not hold, and the strides, under `vlm`."""
    want, got = spec.model_dump(mode="json"), read_layout(folder).spec.model_dump(mode="json")
    own = {k: v for k, v in want.items() if v != got[k] or (k == "strides" and v is not None)}
    if own and part.patterns is not None:
        write_json(folder / "config.json", {**part.files["config.json"], "vlm": own})
        got = read_layout(folder).spec.model_dump(mode="json")
    if got != want:
        raise CheckpointError(f"{folder}/config.json reads back as another model", expected="the same spec")
