"""Arguments of the published trainers translated to recipe keys: what a launch script claims.

>>> claims(read_script(Path("stage_2.sh")), gpus=8)["optimizer.lr"]         # doctest: +SKIP
(0.001, '--learning_rate 1e-3')
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm.train.verify.shell import Script

TEMPLATES = {"v1": "llava_v1", "vicuna_v1": "llava_v1"}
"""Their names of templates -> ours, where they differ."""


def yes(text: str) -> bool:
    """Return whether a flag's value means true."""
    return text.lower() in ("true", "1", "yes")


def count(text: str) -> int:
    """Return a whole number, also of `1e3`."""
    return round(float(text))


SIMPLE: dict[str, tuple[str, Callable[[str], Any]]] = {
    "learning_rate": ("optimizer.lr", float),
    "weight_decay": ("optimizer.weight_decay", float),
    "adam_epsilon": ("optimizer.eps", float),
    "adam_beta1": ("optimizer.betas.0", float),
    "adam_beta2": ("optimizer.betas.1", float),
    "max_grad_norm": ("optimizer.clip", float),
    "warmup_ratio": ("optimizer.warmup", float),
    "warmup_steps": ("optimizer.warmup", float),
    "lr_scheduler_type": ("optimizer.schedule", lambda name: name.removesuffix("_with_warmup")),
    "max_seq_length": ("max_length", count),
    "model_max_length": ("max_length", count),
    "max_packed_tokens": ("batch.max_tokens", count),
    "num_images_expected": ("batch.max_tiles", count),
    "loss_reduction": ("loss", str),
    "save_steps": ("save_every", count),
    "save_total_limit": ("keep", count),
    "seed": ("seed", count),
    "grad_checkpoint": ("gradient_checkpointing", yes),
    "gradient_checkpointing": ("gradient_checkpointing", yes),
    "drop_path_rate": ("model.spec.vision.drop_path", float),
    "ps_version": ("model.spec.projector.version", str),
    "down_sample_ratio": ("model.spec.projector.ratio", float),
    "conv_style": ("model.spec.template", lambda name: TEMPLATES.get(name, name)),
    "version": ("model.spec.template", lambda name: TEMPLATES.get(name, name)),
    "force_image_size": ("model.spec.image_rule.size", count),
    "mm_vision_resolution": ("model.spec.image_rule.size", count),
    "image_aspect_ratio": ("model.spec.image_rule.kind", str),
    "vision_add_five_stage": ("model.spec.vision.depths.4", count),
    "vision_five_stage_width": ("model.spec.vision.widths.4", count),
    "chunk_num": ("sequence_parallel.size", count),
    "attn_type": ("sequence_parallel.kind", str),
    "lora_r": ("lora.rank", count),
    "lora_alpha": ("lora.alpha", float),
    "lora_dropout": ("lora.dropout", float),
}
"""Arguments that set one key: name -> (our key, how to read the value)."""

SEVERAL = {
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16",
    "deepspeed", "rope_pos_id_version", "rope_pos_id_stride", "use_packed_ds", "group_by_modality_length",
    "model_name_or_path", "freeze_llm", "freeze_mlp", "freeze_backbone", "use_llm_lora", "use_backbone_lora",
    "tune_vision_tower", "tune_vit_from_layer", "tune_entire_model", "tune_mm_mlp_adapter", "freeze_mm_mlp_adapter",
    "dynamic_image_size", "max_dynamic_patch", "lora_enable",
}  # fmt: skip
"""Arguments that set keys together; see `claims`."""

PATHS = {
    "model_name_or_path", "vision_path", "mlp_path", "llm_path", "vision_tower", "meta_path", "data_path", "deepspeed",
    "image_folder", "output_dir", "pretrain_mm_mlp_adapter", "resume_from_checkpoint",
}  # fmt: skip
"""Arguments that name files."""

NEUTRAL = {
    "do_train", "overwrite_output_dir", "dataloader_num_workers", "evaluation_strategy", "eval_strategy", "tf32",
    "save_strategy", "logging_steps", "report_to", "run_name", "log_freq", "remove_unused_columns", "lazy_preprocess",
    "per_device_eval_batch_size", "dataset", "pad2square", "vision_select_layer", "mm_vision_select_layer",
    "mm_use_im_start_end", "mm_use_im_patch_token", "mm_projector_type", "use_thumbnail", "dynamic_max_patch",
    "use_data_resampling", "strict_mode", "replacement", "allow_overflow", "max_buffer_size", "group_by_length",
    "loss_reduction_all_gather", "min_dynamic_patch", "local_rank", "ddp_find_unused_parameters", "use_fast_tokenizer",
}  # fmt: skip
"""Arguments without a key of ours: logging and loading, or what the loop always does (one loss normalizer for all
processes; sorting by length inside a step moves no sample to another step; one tokenizer, that of the weights)."""


NUMBERS = (
    "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "chunk_num",
    "rope_pos_id_stride", "max_dynamic_patch", "tune_vit_from_layer", "use_llm_lora", "use_backbone_lora", "lora_r",
    "lora_alpha", "lora_dropout",
)  # fmt: skip
"""Arguments that are read as numbers together with others."""


def readable(script: Script) -> dict[str, str]:
    """Return the arguments without those that should be numbers and are none, which the script's `broken` names."""
    wrong = {name for name in NUMBERS if name in script.flags and not is_number(script.flags[name])}
    said = [f"--{name} {script.flags[name]} (no number)" for name in NUMBERS if name in wrong]
    script.broken += [text for text in said if text not in script.broken]
    return {name: value for name, value in script.flags.items() if name not in wrong}


def is_number(text: str) -> bool:
    """Return whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


class Claims:
    """Callable that reads a script's claims; `known` are the arguments it understands."""

    known = SIMPLE.keys() | SEVERAL

    def __call__(self, script: Script, gpus: int | None) -> dict[str, tuple[Any, str]]:
        """Return our key -> (value, the words that say it). `gpus`: used where the script names no number."""
        flags, said = readable(script), {}
        for name, (key, read) in SIMPLE.items():
            if name in flags:
                try:
                    said[key] = (read(flags[name]), f"--{name} {flags[name]}")
                except (ValueError, OverflowError):
                    said[key] = (flags[name], f"--{name} {flags[name]} (no number)")
        internvl = "conv_style" in flags
        if internvl and "ps_version" not in flags:
            said["model.spec.projector.version"] = ("v2", "no --ps_version: its default is v2 since July 2024")
        said |= duration(flags) | batch(script, flags, gpus) | parts(flags, internvl) | lora(flags)
        if "bf16" in flags or "fp16" in flags:
            kind = "bfloat16" if yes(flags.get("bf16", "")) else "float16" if yes(flags.get("fp16", "")) else "float32"
            said["precision"] = (kind, f"--bf16 {flags.get('bf16', 'not given')}")
        if match := re.search(r"zero_?(?:stage)?(\d)", Path(flags.get("deepspeed", "")).name):
            said["zero.stage"] = (int(match[1]), f"--deepspeed {flags['deepspeed']}")
        version = flags.get("rope_pos_id_version")
        if version is not None:
            stride = {"default": None, "v2pe_rnd": "random"}
            value = stride[version] if version in stride else float(flags.get("rope_pos_id_stride", "nan"))
            said["strides"] = (value, f"--rope_pos_id_version {version}")
        if "dynamic_image_size" in flags and yes(flags["dynamic_image_size"]):
            said["model.spec.image_rule.kind"] = ("tiles", "--dynamic_image_size True")
            tiles = flags.get("max_dynamic_patch", "12")  # the trainer's default
            said["model.spec.image_rule.max_tiles"] = (count(tiles), f"--max_dynamic_patch {tiles}")
        # a model assembled from parts has no single start
        if "model_name_or_path" in flags and not {"vision_tower", "vision_path"} & flags.keys():
            said["model.start"] = (Path(flags["model_name_or_path"]).name, "--model_name_or_path")
        return said


claims = Claims()


def duration(flags: dict[str, str]) -> dict[str, tuple[Any, str]]:
    """Return steps or epochs; a positive number of steps wins, as in transformers."""
    if count(flags.get("max_steps", "-1")) > 0:
        return {"steps": (count(flags["max_steps"]), f"--max_steps {flags['max_steps']}")}
    if "num_train_epochs" in flags:
        return {"epochs": (float(flags["num_train_epochs"]), f"--num_train_epochs {flags['num_train_epochs']}")}
    return {}


def batch(script: Script, flags: dict[str, str], gpus: int | None) -> dict[str, tuple[Any, str]]:
    """Return the samples (or packs) of a step, and how they are packed."""
    said: dict[str, tuple[Any, str]] = {}
    each, times = flags.get("per_device_train_batch_size"), flags.get("gradient_accumulation_steps", "1")
    processes = script.gpus or gpus
    if each is not None and processes:
        groups = processes // max(1, count(flags.get("chunk_num", "1")))
        counted = "" if script.gpus else ", assumed as in the recipe"
        words = f"{each} x {times} x {groups} groups of {processes} GPUs{counted}"
        said["batch.samples"] = (count(each) * count(times) * groups, words)
    if "use_packed_ds" in flags:
        packed = yes(flags["use_packed_ds"])
        said["batch.packing"] = ("greedy" if packed else "none", f"--use_packed_ds {flags['use_packed_ds']}")
    elif each is not None:
        said["batch.packing"] = ("none", "samples are padded")
    if yes(flags.get("group_by_modality_length", "")):
        said["batch.grouping"] = ("modality", "--group_by_modality_length True")
    return said


def parts(flags: dict[str, str], internvl: bool) -> dict[str, tuple[Any, str]]:
    """Return the patterns of what is trained."""
    if internvl:
        frozen = {"language_model.*": "freeze_llm", "projector.*": "freeze_mlp", "encoder.*": "freeze_backbone"}
        trained = [pattern for pattern, name in frozen.items() if not yes(flags.get(name, ""))]
        return {"trainable": (trained, ", ".join(f"--{n} {flags.get(n, 'False')}" for n in frozen.values()))}
    if "freeze_backbone" not in flags and "tune_vision_tower" not in flags and "vision_tower" not in flags:
        return {}
    trained, words = ["projector.*", "language_model.*"], []
    if yes(flags.get("freeze_backbone", "")):
        trained, words = ["projector.*", "language_model.lm_head.*"], ["--freeze_backbone leaves lm_head"]
    if "vision_add_five_stage" in flags:
        trained.append("encoder.stages.4.*")
        words.append("--vision_add_five_stage")
    if yes(flags.get("tune_vision_tower", "")):
        first = count(flags.get("tune_vit_from_layer", "0"))
        trained += [f"encoder.stages.{i}.*" for i in range(first, 5)]
        words.append(f"--tune_vit_from_layer {first}")
    if yes(flags.get("freeze_mm_mlp_adapter", "")):
        trained.remove("projector.*")
    if yes(flags.get("tune_entire_model", "")):
        trained, words = ["encoder.*", "projector.*", "language_model.*"], ["--tune_entire_model"]
    if yes(flags.get("tune_mm_mlp_adapter", "")):
        trained, words = ["projector.*"], ["--tune_mm_mlp_adapter"]
    return {"trainable": (trained, ", ".join(words) or "the encoder freezes itself")}


def lora(flags: dict[str, str]) -> dict[str, tuple[Any, str]]:
    """Return rank, scale and dropout of adapters."""
    rank = next((count(flags[n]) for n in ("use_llm_lora", "use_backbone_lora") if count(flags.get(n, "0"))), 0)
    if rank:  # InternVL's wrapper takes twice the rank and 0.05
        return {"lora.rank": (rank, "--use_llm_lora"), "lora.alpha": (2.0 * rank, "twice the rank")}
    if yes(flags.get("lora_enable", "")):
        given = {"lora.rank": ("lora_r", 64), "lora.alpha": ("lora_alpha", 16), "lora.dropout": ("lora_dropout", 0.05)}
        return {key: (float(flags.get(name, default)), f"--{name}") for key, (name, default) in given.items()}
    return {"lora.rank": (None, "no adapters")} if "conv_style" in flags else {}
