"""The recorded inputs of a model case as ours: its checkpoint, its tensors, its batch."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vlm.core.sample.tokenizer import has_tokenizer
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import load_model
from vlm.models.vlm import VisionLanguageModel

Tensors = dict[str, Tensor]
LLAVA_IMAGE = -200
CONFIG_KEYS = ("rope_pos_id_version", "rope_pos_id_stride", "select_layer", "ps_version")
"""Settings of a checkpoint that an entry may hold beside its overrides."""


def load_tensors(folder: Path, case: dict[str, Any]) -> Tensors:
    """The tensors of a case, with those that it takes from other files of its folder."""
    found = load_file(folder / case["file"])
    for name, ref in case.get("reuse", {}).items():
        with safe_open(folder / ref["file"], "pt") as f:
            found[name] = f.get_tensor(ref["tensor"])
    return found


def load_case_model(folder: Path, case: dict[str, Any], into: Path, context: int | None = None) -> VisionLanguageModel:
    """Load the checkpoint with the case's configuration: an edited config.json beside links to the weights.

    Published code asks the tokenizer for the id of `<IMG_CONTEXT>`; `context` is that id where none is in the folder.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.update(case.get("config_override") or {})
    hf = "text_config" in config
    if case.get("llm_config_override"):
        config["text_config" if hf else "llm_config"].update(case["llm_config_override"])
    config.update({key: case[key] for key in CONFIG_KEYS if key in case})
    if hf and "select_layer" in config:
        config["vision_feature_layer"] = config.pop("select_layer")
    if context is not None and not has_tokenizer(folder) and "vlm" not in config:
        config["vlm"] = {"image_tokens": {"context_id": context}}
    for item in folder.iterdir():
        if item.name != "config.json":
            (into / item.name).symlink_to(item)
    (into / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_model(into)


def splice(ids: Tensor, mask: Tensor | None, labels: Tensor | None, tokens: int, config: dict[str, Any]) -> Tensors:
    """Write LLaVA's batch as ours: one placeholder for each feature, not for each image.

    Pads outside the mask are dropped, rows cut to `tokenizer_model_max_length` and padded on
    `tokenizer_padding_side`. A row without a placeholder still takes one image, which counts as a dummy.
    """
    rows, flags = [], []
    for r in range(len(ids)):
        kept = mask[r].bool() if mask is not None else torch.ones_like(ids[r], dtype=torch.bool)
        row, label = ids[r][kept], (ids[r] if labels is None else labels[r])[kept]
        image = row == LLAVA_IMAGE
        times = torch.where(image, tokens, 1)
        label = label.masked_fill(image, -100).repeat_interleave(times)
        limit = config["tokenizer_model_max_length"]
        rows.append((row.repeat_interleave(times)[:limit], label[:limit]))
        flags += [1] * int(image.sum()) or [0]
    length = max(len(row) for row, _ in rows)
    left = config["tokenizer_padding_side"] == "left"

    def padded(row: Tensor, value: int) -> Tensor:
        gap = length - len(row)
        return nn.functional.pad(row, (gap, 0) if left else (0, gap), value=value)

    batch = {
        "input_ids": torch.stack([padded(row, 0) for row, _ in rows]),
        "attention_mask": torch.stack([padded(torch.ones_like(row), 0) for row, _ in rows]),
        "image_flags": torch.tensor(flags),
    }
    if labels is not None:
        batch["labels"] = torch.stack([padded(label, -100) for _, label in rows])
    return batch


def batch_of(model: VisionLanguageModel, folder: Path, tensors: Tensors) -> dict[str, Any]:
    """The case's inputs as arguments of our forward."""
    given: dict[str, Any] = {name.removeprefix("in."): t for name, t in tensors.items() if name.startswith("in.")}
    mask = given.pop("attention_mask", None)
    if read_layout(folder).name == "llava":
        images, labels = given.pop("images", None), given.pop("labels", None)
        height, width = (side // model.encoder.stride for side in images.shape[-2:]) if images is not None else (0, 0)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        batch = splice(given.pop("input_ids"), mask, labels, model.projector.tokens(height, width), config)
        assert not given, f"inputs {sorted(given)} are not read"
        return {**batch, "pixel_values": images} if images is not None else {**batch, "image_flags": None}
    if mask is not None:  # packed rows are recorded with document boundaries in place of a mask
        given.update({"cu_seqlens": mask[0]} if mask.dtype == torch.int32 else {"attention_mask": mask})
    given.pop("first_input_ids", None)
    if "loss_weight" in given:
        given["loss_weights"] = given.pop("loss_weight")
    return given


def facts_of(model: VisionLanguageModel, folder: Path, tensors: Tensors, case: dict[str, Any]) -> dict[str, Any]:
    """What decisions look at: image placeholders and features, names of tensors, pixels beyond the stride."""
    images = tensors.get("in.pixel_values", tensors.get("in.images"))
    facts: dict[str, Any] = {"names": set(tensors), "placeholders": None, "features": None, "remainder": False}
    ids = tensors.get("in.input_ids")
    longest = ids.shape[1] + case.get("max_new_tokens", 0) if ids is not None else 0
    facts["scaled"] = model.spec.language.kind == "qwen2" and longest > model.spec.language.max_positions
    if images is None:
        return facts
    height, width = images.shape[-2:]
    facts["remainder"] = bool(height % model.encoder.stride or width % model.encoder.stride)
    if "in.input_ids" in tensors and read_layout(folder).name != "llava":  # LLaVA's ids have one mark per image
        cells = (height // model.encoder.stride, width // model.encoder.stride)
        flags = tensors.get("in.image_flags", torch.ones(len(images)))
        facts["placeholders"] = int((tensors["in.input_ids"] == model.spec.image_tokens.context_id).sum())
        facts["features"] = int((flags == 1).sum()) * model.projector.tokens(*cells)
    return facts
