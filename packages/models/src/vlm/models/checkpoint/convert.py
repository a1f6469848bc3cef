"""From any layout that we read to a published one, tensor by tensor, bit for bit.

>>> convert("OpenGVLab/InternVL2-2B", "hf", "pretrained/InternVL2-2B-hf")    # doctest: +SKIP
"""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.core.errors import CheckpointError, ConfigError, HardwareError, UnknownName
from vlm.core.home import resolve, write_json
from vlm.core.progress import Report, human_bytes, silent
from vlm.core.sample.tokenizer import load_tokenizer
from vlm.models.checkpoint.formats import FORMATS
from vlm.models.checkpoint.formats.schema import FolderFiles, StoredFacts
from vlm.models.checkpoint.fused_tensors import forms
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import TOKENIZER_FILES, copy_tokenizer
from vlm.models.checkpoint.locate import find_checkpoint, read_config
from vlm.models.checkpoint.reader import CheckpointReader, Vision
from vlm.models.checkpoint.renaming import Patterns, rename
from vlm.models.checkpoint.safetensors_io import SHARD_SIZE, nbytes, write_shards
from vlm.models.specs import ModelSpec

CARRIED = ("generation_config.json", "chat_template.jinja")
"""Files that mean the same beside every layout."""


def convert(
    path: str | Path,
    to: str,
    out: Path,
    *,
    max_shard_size: str = SHARD_SIZE,
    vision: Vision | None = None,
    report: Report = silent,
) -> Path:
    """Write the checkpoint at `path` in the layout `to` (`internvl`, `llava`, `hf` or `vlm`); the folder written.

    At most one shard is in memory; dtypes stay as they are stored. The folder appears whole or not at all. Tokenizer
    files are copied; what the published schema cannot say stands in config.json under `vlm`.

    Args:
        max_shard_size: e.g. `5GB`.
        vision: which copy of a LLaVA checkpoint's vision weights, `tower` or `checkpoint`, if they differ.
        report: called with (bytes done, bytes in all).

    Raises:
        UnknownName, ConfigError: an unknown layout; a part that has no place in it; `out` holds files.
        CheckpointError: the source is damaged, incomplete, or of an unknown family.
        HardwareError: the disk is too small.
    """
    if to not in FORMATS:
        raise UnknownName("layout", to, FORMATS)
    folder, out = find_checkpoint(path), resolve(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists", expected="a new or empty folder", fix="choose another -o, or remove it")
    layout = read_layout(folder)
    source = CheckpointReader(layout, folder, vision)
    source.check()
    plans = plan(source, layout.spec, to)
    source.check_copy()
    sizes = [sum(map(nbytes, shapes.values())) for _, shapes, _ in plans]
    out.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(out.parent).free) < sum(sizes):
        raise HardwareError(
            f"{human_bytes(free)} free at {out.parent}", expected=human_bytes(sum(sizes)), fix="choose another disk"
        )
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        done = 0
        for (part, shapes, origin), size in zip(plans, sizes, strict=True):
            target = temporary / part.name
            target.mkdir(parents=True)
            for name, content in part.files.items():
                write_json(target / name, content)
            write_shards(
                shapes,
                lambda key, origin=origin: source.read(origin[key]),  # type: ignore[misc]
                target,
                max_shard_size=max_shard_size,
                report=lambda n, _, done=done: report(done + n, sum(sizes)),  # type: ignore[misc]
            )
            done += size
        copy_companions(folder, temporary)
        write_own_keys(temporary, plans[0][0], layout.spec)
        if out.exists():
            out.rmdir()  # empty: checked above
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def plan(
    source: CheckpointReader, spec: ModelSpec, to: str
) -> list[tuple[FolderFiles, dict[str, Tensor], dict[str, str]]]:
    """For each folder to write: its files, its tensors (meta) by their new names, and the source's name of each.

    Raises ConfigError when the layout has no name for a tensor.
    """
    facts = StoredFacts(stored_dtype(source), source.tokens_per_tile, special_ids(source.folder))
    folders = FORMATS[to].write(spec, facts)
    plans: list[tuple[FolderFiles, dict[str, Tensor], dict[str, str]]] = [(folder, {}, {}) for folder in folders]
    for name in source.wanted:
        for folder, shapes, origin in plans:
            if found := published_names(name, folder.patterns):
                for key, ours in found.items():
                    if key not in shapes:  # a fused tensor is met once for each of its parts
                        shapes[key], origin[key] = source.meta(ours), ours
                break
        else:
            raise ConfigError(f"{name} has no place in the {to} layout", fix="choose another --to, e.g. vlm")
    return plans


def published_names(name: str, patterns: Patterns | None) -> dict[str, str]:
    """{their name: our name} of one of our tensors, whole, fused or split; empty if the patterns have no place."""
    if patterns is None:
        return {name: name}
    for form in forms(name):
        result = rename(form, patterns)
        if not result.unknown:
            return {key: ours for ours, key in result.renamed.items()}
    return {}


def stored_dtype(source: CheckpointReader) -> str:
    """The dtype that most values are stored in, e.g. `bfloat16`."""
    counts: Counter[str] = Counter()
    for name in source.wanted:
        tensor = source.meta(name)
        counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return counts.most_common(1)[0][0]


def special_ids(folder: Path) -> dict[str, int]:
    """Ids of bos, eos and pad: of the tokenizer beside the weights, else of the source's config."""
    kinds = ("bos", "eos", "pad")
    if any((folder / name).exists() for name in TOKENIZER_FILES[:2]):
        tokenizer = load_tokenizer(folder)
        found: dict[str, Any] = {f"{k}_token_id": getattr(tokenizer, f"{k}_id") for k in kinds}
    else:
        config = read_config(folder)
        config = config.get("llm_config") or config.get("text_config") or config
        found = {f"{k}_token_id": config.get(f"{k}_token_id") for k in kinds}
    return {key: value for key, value in found.items() if isinstance(value, int)}


def copy_companions(folder: Path, target: Path) -> None:
    """Copy the tokenizer, if there is one, and what else belongs to every layout."""
    if any((folder / name).exists() for name in TOKENIZER_FILES[:2]):
        copy_tokenizer(folder, target)
    for name in CARRIED:
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)


def write_own_keys(folder: Path, part: FolderFiles, spec: ModelSpec) -> None:
    """Read the written folder back and put what its config.json failed to say, and the strides, under `vlm`."""
    want, got = spec.model_dump(mode="json"), read_layout(folder).spec.model_dump(mode="json")
    own = {k: v for k, v in want.items() if v != got[k] or (k == "strides" and v is not None)}
    if own and part.patterns is not None:
        write_json(folder / "config.json", {**part.files["config.json"], "vlm": own})
        got = read_layout(folder).spec.model_dump(mode="json")
    if got != want:
        raise CheckpointError(f"{folder}/config.json reads back as another model", expected="the same spec")
