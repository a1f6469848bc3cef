"""The format of transformers' own InternVL (`InternVLForConditionalGeneration`, folders named `-hf`).

It names no chat template: `internvl2_5` with a Qwen2, or where its own ends a turn with a newline; else
`internlm2-chat`. Our keys under `vlm` may name another.
"""

import re
from pathlib import Path
from typing import Any

from vlm.core.errors import CheckpointError
from vlm.core.sample.tiling import IMAGENET, ImageRule
from vlm.models.checkpoint.formats import schema
from vlm.models.checkpoint.formats.schema import QWEN2, CheckpointLayout, FolderFiles, Json, StoredFacts
from vlm.models.checkpoint.locate import read_image_processor
from vlm.models.checkpoint.renaming import Patterns, inverted, prefixed, weight_and_bias, without_layers
from vlm.models.specs import ImageTokenSpec, InternVitSpec, ModelSpec, UnshuffleSpec

MODEL_TYPES = ("internvl",)
"""Values of `model_type` in the `config.json` of this format."""

ENCODER: Patterns = {
    "embeddings.cls_token": "encoder.embeddings.class_embedding",
    "embeddings.position_embeddings": "encoder.embeddings.position_embedding",
    "embeddings.patch_embeddings.projection.{kind}": "encoder.embeddings.patch_embedding.{kind}",
    "embeddings.mask_token": None,  # of masked-image pre-training
    "encoder.layer.{}.lambda_1": "encoder.encoder.layers.{}.ls1",
    "encoder.layer.{}.lambda_2": "encoder.encoder.layers.{}.ls2",
    "encoder.layer.{}.layernorm_before.{kind}": "encoder.encoder.layers.{}.norm1.{kind}",
    "encoder.layer.{}.layernorm_after.{kind}": "encoder.encoder.layers.{}.norm2.{kind}",
    "encoder.layer.{}.attention.q_proj.{kind}": "encoder.encoder.layers.{}.attn.q.{kind}",  # see fused_tensors
    "encoder.layer.{}.attention.k_proj.{kind}": "encoder.encoder.layers.{}.attn.k.{kind}",
    "encoder.layer.{}.attention.v_proj.{kind}": "encoder.encoder.layers.{}.attn.v.{kind}",
    "encoder.layer.{}.attention.q_norm.weight": "encoder.encoder.layers.{}.attn.q_norm.weight",
    "encoder.layer.{}.attention.k_norm.weight": "encoder.encoder.layers.{}.attn.k_norm.weight",
    "encoder.layer.{}.attention.projection_layer.{kind}": "encoder.encoder.layers.{}.attn.proj.{kind}",
    "encoder.layer.{}.mlp.fc1.{kind}": "encoder.encoder.layers.{}.mlp.fc1.{kind}",
    "encoder.layer.{}.mlp.fc2.{kind}": "encoder.encoder.layers.{}.mlp.fc2.{kind}",
}

PROJECTOR: Patterns = {
    "layer_norm.{kind}": "projector.0.{kind}",
    "linear_1.{kind}": "projector.1.{kind}",
    "linear_2.{kind}": "projector.3.{kind}",
}

_PICTURES: Patterns = {
    **prefixed(weight_and_bias(ENCODER), "vision_tower.", ""),
    **prefixed(weight_and_bias(PROJECTOR), "multi_modal_projector.", ""),
}
_SAVED: Patterns = {**_PICTURES, **prefixed(QWEN2, "language_model.", "language_model.")}

PATTERNS: dict[str, Patterns] = {
    "saved": _SAVED,
    "any": {
        **_SAVED,
        **prefixed(_PICTURES, "model.", ""),
        **{
            k if k.startswith("lm_head") else k.replace("model.", "model.language_model.", 1): v
            and f"language_model.{v}"
            for k, v in QWEN2.items()
        },
    },
}
"""Their names -> ours. `saved`: as published and written; `any`: also as in memory since transformers 4.52."""

LANGUAGES = {
    "llama": {
        "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "intermediate_size": 11008,
    },
    "qwen2": {
        "vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "intermediate_size": 22016,
    },
}  # fmt: skip
"""`model_type` of a language model that we have -> sizes of the library's class; configurations saved by its versions 4
hold only what differs from them."""
IN_MEMORY: Patterns = {theirs: ours for theirs, ours in PATTERNS["any"].items() if theirs not in _SAVED}
"""Names of the modules that peft meets."""


VISION = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "image_size": 448, "patch_size": 14,
}  # fmt: skip
"""Sizes of the library's class of the encoder."""

CHAT_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "processor_config.json")
END_OF_TURN = re.compile(r"<\|im_end\|>\\{1,2}n")
"""The end token and an escaped newline, in a chat template or in one inside a JSON file."""


def is_newer(folder: Path) -> bool:
    """Return whether the chat template of a folder is that of InternVL2.5 and later: a newline ends each turn."""
    files = (folder / name for name in CHAT_FILES)
    return any(END_OF_TURN.search(file.read_text(encoding="utf-8")) for file in files if file.is_file())


def expect(config: Json, where: str, **wanted: Any) -> None:
    """Raise CheckpointError for a setting that our model does not have; a missing key has the library's default."""
    for key, value in wanted.items():
        if (found := config.get(key, value)) != value:
            raise CheckpointError(f"{where}: {key} {found!r} is not supported", expected=f"{value!r}")


def side(value: int | list[int]) -> int:
    """Return the side of a square that the configuration gives as a number or as two."""
    return value[0] if isinstance(value, list) else value


def read(folder: Path, config: Json) -> CheckpointLayout:
    """Read spec and names from `config.json` and, if they are there, the files of the image processor.

    Raises:
        CheckpointError: a setting that our model does not have.
        KeyError: a key is missing.
    """
    vit, llm, where = {**VISION, **config["vision_config"]}, config["text_config"], f"{folder}/config.json"
    expect(config, where, projector_hidden_act="gelu", vision_feature_select_strategy="default")
    if (kind := llm.get("model_type", "qwen2")) not in LANGUAGES:
        expected = f"one of {', '.join(LANGUAGES)}"
        raise CheckpointError(f"{where}: text_config: model_type {kind!r} is not supported", expected=expected)
    llm = {**LANGUAGES[kind], **llm}
    expect(llm, f"{where}: text_config", attention_bias=False, mlp_bias=False, hidden_act="silu")
    expect(llm, f"{where}: text_config", head_dim=llm["hidden_size"] // llm["num_attention_heads"])
    expect(vit, f"{where}: vision_config", use_mean_pooling=True, use_absolute_position_embeddings=True)
    expect(vit, f"{where}: vision_config", hidden_act="gelu", num_channels=3)
    if vit.get("use_qk_norm", False):  # the library's q/k norm knows no other
        expect(vit, f"{where}: vision_config", layer_norm_eps=1e-6)
    depth, select = vit["num_hidden_layers"], config.get("vision_feature_layer", -1)
    if not isinstance(select, int):
        raise CheckpointError(f"{where}: vision_feature_layer {select!r}", expected="one layer")
    used, size = schema.selected_depth(depth, select), side(vit["image_size"])
    rule = read_image_processor(folder)
    language = schema.read_llama({"tie_word_embeddings": False, **llm, "model_type": kind})
    tied = config.get("tie_word_embeddings", True)  # the class's default
    newer = kind == "qwen2" or is_newer(folder)
    spec = ModelSpec(
        family="internvl2_5" if newer else "internvl2",
        vision=InternVitSpec(
            width=vit["hidden_size"],
            depth=used,
            heads=vit["num_attention_heads"],
            mlp_width=vit["intermediate_size"],
            image_size=size,
            patch_size=side(vit["patch_size"]),
            norm=vit.get("norm_type", "layer_norm"),
            norm_eps=vit.get("layer_norm_eps", 1e-6),
            qkv_bias=vit.get("attention_bias", False),
            qk_norm=vit.get("use_qk_norm", False),
            layer_scale_init=vit.get("layer_scale_init_value", 0.1),
        ),
        projector=UnshuffleSpec(version="v2", ratio=config.get("downsample_ratio", 0.5)),
        language=schema.with_stored_head(
            language.model_copy(update={"tied": tied}), folder, PATTERNS["any"], copies=True
        ),
        image_rule=ImageRule(
            kind="tiles" if rule.get("crop_to_patches", True) else "square",
            size=rule.get("size", {}).get("height", size),
            max_tiles=rule.get("max_patches", 12),
            min_tiles=rule.get("min_patches", 1),
            mean=rule.get("image_mean", IMAGENET[0]),
            std=rule.get("image_std", IMAGENET[1]),
        ),
        image_tokens=ImageTokenSpec(context_id=config.get("image_token_id", 151667)),
        template="internvl2_5" if newer else "internlm2-chat",
    )
    patterns = PATTERNS["any"]
    for prefix in ("", "model."):
        patterns = without_layers(patterns, f"{prefix}vision_tower.encoder.layer", range(used, depth))
    return CheckpointLayout("hf", spec, patterns)


def write(spec: ModelSpec, facts: StoredFacts) -> list[FolderFiles]:
    """Return the folder to write.

    Raises:
        ConfigError: a part that the format cannot hold.
    """
    vision, projector = schema.intern_parts(spec, "hf")
    if projector.version != "v2":
        raise schema.no_place("the token order of pixel unshuffle v1 (column by column)", "hf", "pixel unshuffle v2")
    if vision.qk_norm and vision.norm_eps != 1e-6:
        raise schema.no_place(f"a q/k norm with eps {vision.norm_eps}", "hf", "1e-6, which transformers has built in")
    rule = spec.image_rule
    scaling = spec.language.rope_scaling if spec.strides is None else None  # the library would scale V2PE's positions
    text = {**schema.write_llama(spec.language), **facts.ids, "model_type": spec.language.kind}
    del text["rope_scaling"], text["rope_theta"]
    if spec.language.kind == "llama":
        text |= {"attention_bias": False, "mlp_bias": False, "head_dim": spec.language.width // spec.language.heads}
    elif spec.language.kind == "qwen2":
        text["use_sliding_window"] = False
    else:
        raise schema.no_place(f"the language model {spec.language.kind}", "hf", "llama or qwen2")
    text["rope_parameters"] = {
        "rope_type": scaling.kind if scaling else "default",
        "rope_theta": spec.language.rope_theta,
        **({"factor": float(scaling.factor)} if scaling else {}),
    }
    config = {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "dtype": facts.dtype,
        "tie_word_embeddings": spec.language.tied,
        "downsample_ratio": projector.ratio,
        "image_seq_length": facts.tokens_per_tile,
        "image_token_id": spec.image_tokens.context_id,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "text_config": text,
        "vision_config": write_vision(vision),
    }
    pre = schema.write_image_processor(
        spec,
        image_processor_type="GotOcr2ImageProcessor",
        size={"height": rule.size, "width": rule.size},
        crop_to_patches=rule.kind == "tiles",
        min_patches=rule.min_tiles if rule.kind == "tiles" else 1,
        max_patches=rule.max_tiles if rule.kind == "tiles" else 1,  # transformers' processor cuts by default
    )
    del pre["crop_size"], pre["do_center_crop"]
    return [FolderFiles(inverted(PATTERNS["saved"]), {"config.json": config, "preprocessor_config.json": pre})]


def write_vision(vision: InternVitSpec) -> Json:
    """Return the `vision_config` of an InternViT."""
    return {
        "model_type": "internvl_vision",
        "hidden_size": vision.width,
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.heads,
        "intermediate_size": vision.mlp_width,
        "image_size": [vision.image_size] * 2,
        "patch_size": [vision.patch_size] * 2,
        "num_channels": 3,
        "norm_type": vision.norm,
        "layer_norm_eps": vision.norm_eps,
        "attention_bias": vision.qkv_bias,
        "use_qk_norm": vision.qk_norm,
        "layer_scale_init_value": vision.layer_scale_init,
        "hidden_act": "gelu",
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
    }
