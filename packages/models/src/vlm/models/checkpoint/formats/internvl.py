"""The format of OpenGVLab's InternVL, with the names of InternLM2, Llama or Qwen2 in its language model.

InternLM2: InternVL2, V2PE, and InternVL2.5 of 2B and 8B. Llama: InternVL-Chat-V1-2, InternVL2-40B. Qwen2: InternVL2-1B,
InternVL2.5 of 1B and 4B, InternVL3.

Source: the public configurations and checkpoints of OpenGVLab (InternVL2-2B, V2PE, InternVL-Chat-V1-2, InternVL3-1B).
"""

from pathlib import Path

from vlm.core.errors import CheckpointError
from vlm.core.sample.chat import get_template
from vlm.core.sample.positions import STRIDES, default_stride
from vlm.core.sample.tiling import IMAGENET, ImageRule
from vlm.models.checkpoint.formats import schema
from vlm.models.checkpoint.formats.schema import LLAMA, QWEN2, CheckpointLayout, FolderFiles, Json, StoredFacts
from vlm.models.checkpoint.renaming import Patterns, inverted, prefixed, without_layers
from vlm.models.specs import ImageTokenSpec, InternVitSpec, ModelSpec, UnshuffleSpec

MODEL_TYPES = ("internvl_chat",)
"""Values of `model_type` in the `config.json` of this format."""

CONTEXT_FROM_END = 7
"""InternVL appends nine tokens. The context token is the third of nine in InternVL2 and the first new one of seven in
V1-2: both are row `vocab - 7`, and with Qwen2 too (151,667 of 151,674), unless tokens were added: the tokenizer beside
the weights is asked first."""

ENCODER: Patterns = {
    f"vision_model.{name}": f"encoder.{name}"
    for name in (
        "embeddings.class_embedding",
        "embeddings.position_embedding",
        "embeddings.patch_embedding.weight",
        "embeddings.patch_embedding.bias",
        *(
            f"encoder.layers.{{}}.{part}"
            for part in (
                "ls1", "ls2", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias",
                "attn.qkv.weight", "attn.qkv.bias", "attn.q_norm.weight", "attn.k_norm.weight",
                "attn.proj.weight", "attn.proj.bias",
                "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
            )
        ),
    )
}  # fmt: skip

PROJECTOR: Patterns = {f"mlp1.{i}.{kind}": f"projector.{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")}

INTERNLM2: Patterns = {
    "model.tok_embeddings.weight": "model.embed_tokens.weight",
    "model.norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "model.layers.{}.attention.wqkv.weight": "model.layers.{}.self_attn.wqkv",  # q, k, v: see fused_tensors
    "model.layers.{}.attention.wo.weight": "model.layers.{}.self_attn.o_proj.weight",
    "model.layers.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "model.layers.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "model.layers.{}.feed_forward.w1.weight": "model.layers.{}.mlp.gate_proj.weight",
    "model.layers.{}.feed_forward.w3.weight": "model.layers.{}.mlp.up_proj.weight",
    "model.layers.{}.feed_forward.w2.weight": "model.layers.{}.mlp.down_proj.weight",
}

PATTERNS: dict[str, Patterns] = {
    "internlm2": {**ENCODER, **PROJECTOR, **prefixed(INTERNLM2, "language_model.", "language_model.")},
    "llama": {**ENCODER, **PROJECTOR, **prefixed(LLAMA, "language_model.", "language_model.")},
    "qwen2": {**ENCODER, **PROJECTOR, **prefixed(QWEN2, "language_model.", "language_model.")},
}
"""By the language model's family: their names -> ours."""

LANGUAGES = {"InternLM2ForCausalLM": "internlm2", "LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
"""Architecture in `llm_config` -> key of `PATTERNS`."""

FAMILIES = {"internvl2_5": "internvl2_5", "internlm2-chat": "internvl2", "Hermes-2": "internvl-chat-v1-2"}
"""Template -> family."""

HERMES = {"Hermes-2": "Hermes-2-2024-07"}
"""Published template -> ours with the system text of InternVL2, whose 1B and 40B have this template. V1-2 has it too,
with another text and the first pixel unshuffle."""

VISION_DEFAULTS = {
    "hidden_size": 3200, "num_hidden_layers": 48, "num_attention_heads": 25, "intermediate_size": 12800,
    "image_size": 224, "patch_size": 14, "layer_norm_eps": 1e-6, "qkv_bias": False, "qk_normalization": True,
}  # fmt: skip
"""Values that the published class has for missing keys; a configuration may be saved without them."""
RELEASED = ("V2PE-32K", "V2PE-256K")
"""Folders of the published V2PE checkpoints. Both were trained with `v2pe_rnd` (published training scripts)."""

DEFAULT_TEMPLATES = {"internlm2": "internlm2-chat", "llama": "Hermes-2", "qwen2": "internvl2_5"}
"""Key of `PATTERNS` -> template of a configuration that names none."""


def language_of(llm: Json) -> str:
    """Return the key of `PATTERNS` for an `llm_config`.

    Raises:
        CheckpointError: a language model that we do not have, e.g. InternLM3 or Qwen3.
    """
    name = (llm.get("architectures") or ["LlamaForCausalLM"])[0]
    if name not in LANGUAGES:
        raise CheckpointError(f"llm_config: {name} is not supported", expected=f"one of {', '.join(LANGUAGES)}")
    return LANGUAGES[name]


def read(folder: Path, config: Json) -> CheckpointLayout:
    """Read spec and names from a published `config.json`.

    Raises:
        CheckpointError: a language model or a rope scaling that our model does not have.
        KeyError: a key is missing.
    """
    vit, llm = {**VISION_DEFAULTS, **config["vision_config"]}, config["llm_config"]
    kind = language_of(llm)
    llm = {"tie_word_embeddings": config.get("tie_word_embeddings", False), **llm}
    language = schema.read_llama({**llm, "model_type": "qwen2" if kind == "qwen2" else "llama"})
    language = schema.with_stored_head(language, folder, PATTERNS[kind])
    template, unshuffle = config.get("template") or DEFAULT_TEMPLATES[kind], config.get("ps_version", "v1")
    family = FAMILIES.get(template) or FAMILIES[DEFAULT_TEMPLATES[kind]]
    if template in HERMES and unshuffle == "v2":
        family, template = "internvl2", HERMES[template]
    strides, choices = read_strides(folder, config)
    if strides is not None or choices is not None:
        language = language.model_copy(update={"rope_scaling": None})
    depth = vit["num_hidden_layers"]
    used = schema.selected_depth(depth, config.get("select_layer", -1))
    spec = ModelSpec(
        family=family,
        vision=InternVitSpec(
            width=vit["hidden_size"],
            depth=used,
            heads=vit["num_attention_heads"],
            mlp_width=vit["intermediate_size"],
            image_size=vit["image_size"],
            patch_size=vit["patch_size"],
            norm="layer_norm" if vit.get("norm_type") == "layer_norm" else "rms_norm",
            norm_eps=vit["layer_norm_eps"],
            qkv_bias=vit["qkv_bias"],
            qk_norm=vit["qk_normalization"],
            layer_scale_init=vit.get("initializer_factor", 1.0),
            drop_path=vit.get("drop_path_rate", 0.0),
        ),
        projector=UnshuffleSpec(version=unshuffle, ratio=config["downsample_ratio"]),
        language=language,
        image_rule=ImageRule(
            kind="tiles" if config.get("dynamic_image_size") else "square",
            size=config.get("force_image_size") or vit["image_size"],
            max_tiles=config.get("max_dynamic_patch", 12),
            min_tiles=config.get("min_dynamic_patch", 1),
            thumbnail=config.get("use_thumbnail", True),
            mean=IMAGENET[0],
            std=IMAGENET[1],
        ),
        image_tokens=ImageTokenSpec(context_id=schema.context_id(folder, language.vocab - CONTEXT_FROM_END)),
        template=template,
        strides=strides,
        stride_choices=choices,
        system=config.get("system_message"),
    )
    return CheckpointLayout(
        "internvl", spec, without_layers(PATTERNS[kind], "vision_model.encoder.layers", range(used, depth))
    )


def read_strides(folder: Path, config: Json) -> tuple[float | None, tuple[float, ...] | None]:
    """Return the default stride of a configuration and the strides that training drew from; None twice without V2PE.

    The published chat code reads neither from `config.json`, so that a configuration may name no stride. Of the
    released checkpoints it is known how they were trained; for others a guess would be silent: they have choices
    without a default, and `ModelSpec.check_stride` refuses them where the default is asked for.
    """
    version, stride = config.get("rope_pos_id_version") or "default", config.get("rope_pos_id_stride")
    released = folder.name in RELEASED and "vlm" not in config
    if version == "default" and not released:
        return None, None
    choices = STRIDES if released or version == "v2pe_rnd" else None if stride is not None else ()
    if released and (version == "default" or stride is None):
        tile = (config.get("force_image_size") or config["vision_config"]["image_size"]) // config["vision_config"][
            "patch_size"
        ]
        return default_stride(STRIDES, int(tile * config["downsample_ratio"]) ** 2), choices
    return stride, choices


def write(spec: ModelSpec, facts: StoredFacts) -> list[FolderFiles]:
    """Return the folder to write: Qwen2's names for a Qwen2, Llama's where the release has a Llama, else InternLM2's.

    Raises:
        ConfigError: a part that the format cannot hold.
    """
    vision, projector = schema.intern_parts(spec, "internvl")
    rule, kind = spec.image_rule, spec.language.kind
    if kind not in PATTERNS:
        raise schema.no_place(f"the language model {kind}", "internvl", "llama, InternLM2 or qwen2")
    if kind == "llama" and spec.family in ("internvl2", "internvl2_5") and spec.template not in HERMES.values():
        kind = "internlm2"
    if (rule.mean, rule.std) != IMAGENET:
        raise schema.no_place(
            f"the pixel mean {rule.mean}", "internvl", f"{IMAGENET[0]}, which the published code has built in"
        )
    language = {**schema.write_llama(spec.language), **facts.ids, "torch_dtype": facts.dtype}
    if kind == "internlm2":
        language |= {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
        # the published InternLM2 cannot be built without a scaling; linear by 1 changes nothing
        language["rope_scaling"] = language["rope_scaling"] or {"type": "linear", "factor": 1.0}
        language["attn_implementation"] = "eager" if spec.strides is None else "flash_attention_2"
    elif kind == "qwen2":
        language |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0}
        language |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": spec.language.depth}
        # its tokenizer has none, and transformers 4.37 generates nothing without: the release names the padding
        if (pad := language.get("pad_token_id", language.get("eos_token_id"))) is not None:
            language.setdefault("bos_token_id", pad)
        if spec.strides is not None:  # the library would scale V2PE's positions
            language["rope_scaling"] = None
    else:
        language |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        language |= {"attention_bias": False, "attention_dropout": 0.0}
    version = "default" if spec.strides is None else "v2pe_fix"
    config = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "torch_dtype": facts.dtype,
        "tie_word_embeddings": spec.language.tied,
        "downsample_ratio": projector.ratio,
        "ps_version": projector.version,
        "select_layer": -1,
        "template": next((name for name, ours in HERMES.items() if ours == spec.template), spec.template),
        "force_image_size": rule.size,
        "dynamic_image_size": rule.kind == "tiles",
        "use_thumbnail": rule.thumbnail,
        "min_dynamic_patch": rule.min_tiles,
        "max_dynamic_patch": rule.max_tiles,
        "pad2square": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "rope_pos_id_version": version,
        "rope_pos_id_stride": whole_number(spec.strides),
        "llm_config": {**language, "rope_pos_id_version": version},
        "vision_config": write_vision(vision),
    }
    # always: published loaders have texts of their own for a template
    config["system_message"] = get_template(spec.template).system if spec.system is None else spec.system
    files = {"config.json": config, "preprocessor_config.json": schema.write_image_processor(spec)}
    return [FolderFiles(inverted(PATTERNS[kind]), files)]


def write_vision(vision: InternVitSpec) -> Json:
    """Return the `vision_config` of an InternViT."""
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": vision.width,
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.heads,
        "intermediate_size": vision.mlp_width,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "num_channels": 3,
        "norm_type": vision.norm,
        "layer_norm_eps": vision.norm_eps,
        "qkv_bias": vision.qkv_bias,
        "qk_normalization": vision.qk_norm,
        "initializer_factor": vision.layer_scale_init,
        "drop_path_rate": vision.drop_path,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "use_flash_attn": True,
    }


def whole_number(strides: float | None) -> float | None:
    """Return the strides as an int where they are one, as the published flag is."""
    return int(strides) if strides is not None and strides == int(strides) else strides
