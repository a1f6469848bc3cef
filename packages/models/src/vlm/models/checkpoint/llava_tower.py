"""The vision tower of a LLaVA checkpoint: a folder of its own, or only the copy in the checkpoint."""

import json
import re
from pathlib import Path
from typing import Any

from vlm.core.errors import CheckpointError
from vlm.models.checkpoint import patterns as adapters
from vlm.models.checkpoint.locate import read_config
from vlm.models.checkpoint.safetensors_io import Stored, WeightReader, has_weights


def tower_folder(folder: Path, tower: str) -> Path:
    """The folder of a vision tower: the path in the config, else one of that name inside or beside the folder."""
    name = Path(tower).name
    found = [p for p in (folder / tower, folder / name, folder.parent / name) if (p / "config.json").exists()]
    return (found or [folder.parent / name])[0].resolve()


def stages_of(items: dict[str, Stored]) -> dict[str, Any]:
    """Depths and widths of a ConvNeXt, read from the shapes of the copy in a LLaVA folder."""
    names = adapters.rename(list(items), adapters.LLAVA_COPY).renamed
    blocks = re.compile(r"encoder\.stages\.(\d+)\.blocks\.\d+\.gamma")
    found: dict[int, list[int]] = {}
    for key, name in names.items():
        if match := blocks.fullmatch(name):
            found.setdefault(int(match[1]), []).append(items[key].shape[0])
    stages = [found[i] for i in sorted(found)]
    return {"depths": [len(s) for s in stages], "hidden_sizes": [s[0] for s in stages]}


def tower_config(folder: Path, tower: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """(folder, config, preprocessor) of the vision tower; without its folder, what the copy and the name tell."""
    path = tower_folder(folder, tower)
    if (path / "config.json").exists():
        vision, pre = read_config(path), path / "preprocessor_config.json"
        rule = json.loads(pre.read_text(encoding="utf-8")) if pre.exists() else {}
        return path, vision, {"crop_size": {"height": vision["image_size"]}, **rule}
    items = WeightReader(folder).items if has_weights(folder) else {}
    vision, size = stages_of(items), re.search(r"-(\d{3,4})$", Path(tower).name)
    if not vision["depths"] or not size:
        raise CheckpointError(
            f"{folder} holds no copy of its vision tower (with a resolution in its name), and there is none at {path}",
            expected=f"the folder that config.json names: mm_vision_tower {tower!r}",
            fix=f"vlm download {Path(tower).name}, or put the tower's folder beside or into the checkpoint",
        )
    return path, vision, {"crop_size": {"height": int(size[1])}}


def projector_depth(kind: str, where: Path) -> int:
    """Linear layers of a LLaVA projector type."""
    if kind == "linear":
        return 1
    if match := re.fullmatch(r"mlp(\d+)x_gelu", kind):
        return int(match[1])
    raise CheckpointError(f"{where}: mm_projector_type {kind!r}", expected="linear or mlpNx_gelu")
