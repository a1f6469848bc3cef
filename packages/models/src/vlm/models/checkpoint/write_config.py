"""Our spec -> the files of each published layout: `config.json` in the schema that its readers know, and the patterns.

What a schema cannot say (strides, template, ...) `convert` adds under the key `vlm`; `layouts.py` is the way back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vlm.core.errors import ConfigError
from vlm.core.sample.tiling import IMAGENET
from vlm.models.checkpoint import patterns as adapters
from vlm.models.specs import ConvNextSpec, InternVitSpec, LanguageSpec, MlpSpec, ModelSpec, UnshuffleSpec

TOWER = "vision_tower"
Json = dict[str, Any]


@dataclass(frozen=True)
class Folder:
    """One folder of a layout: where our tensors go (`patterns`, ours -> theirs; None: our names) and its JSON files."""

    patterns: adapters.Patterns | None
    files: dict[str, Json]
    name: str = ""


@dataclass(frozen=True)
class Facts:
    """What a configuration holds besides the spec: the stored dtype, ids of special tokens, tokens of one image."""

    dtype: str
    tokens_per_tile: int
    ids: dict[str, int] = field(default_factory=dict)


def no_home(found: str, layout: str, expected: str) -> ConfigError:
    return ConfigError(
        f"{found} has no place in the {layout} layout",
        expected=expected,
        fix="choose another --to; `--to vlm` holds every model",
    )


def llama(spec: LanguageSpec) -> Json:
    """The keys of a Llama configuration as transformers 4 wrote them: both InternLM2 and LLaVA read them so."""
    scaling = spec.rope_scaling
    return {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "intermediate_size": spec.mlp_width,
        "max_position_embeddings": spec.max_positions,
        "rope_theta": spec.rope_theta,
        "rope_scaling": {"type": scaling.kind, "factor": float(scaling.factor)} if scaling else None,
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "tie_word_embeddings": spec.tied,
        "use_cache": True,
    }


def processor(spec: ModelSpec, **changes: Any) -> Json:
    """A CLIP image processor with the family's size and statistics."""
    rule = spec.image_rule
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": rule.size},
        "do_center_crop": True,
        "crop_size": {"height": rule.size, "width": rule.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(rule.mean),
        "image_std": list(rule.std),
        "do_convert_rgb": True,
        "resample": 3,
        **changes,
    }


def intern_parts(spec: ModelSpec, layout: str) -> tuple[InternVitSpec, UnshuffleSpec]:
    """The parts that both InternVL layouts hold. Raises ConfigError for others."""
    if not isinstance(spec.vision, InternVitSpec):
        raise no_home(f"the encoder {spec.vision.kind}", layout, "an InternViT")
    if not isinstance(spec.projector, UnshuffleSpec):
        raise no_home(f"the projector {spec.projector.kind}", layout, "a pixel unshuffle projector")
    if spec.image_rule.kind not in ("tiles", "square"):
        raise no_home(f"the image rule {spec.image_rule.kind}", layout, "tiles or square")
    if spec.image_tokens.context is None:
        raise no_home("a placeholder outside the vocabulary", layout, "an image context token")
    return spec.vision, spec.projector


def internvl(spec: ModelSpec, facts: Facts) -> list[Folder]:
    """InternVL2 / V2PE with InternLM2's names; any other family with Llama's."""
    vision, projector = intern_parts(spec, "internvl")
    rule, fused = spec.image_rule, spec.family == "internvl2"
    if (rule.mean, rule.std) != IMAGENET:
        raise no_home(
            f"the pixel mean {rule.mean}", "internvl", f"{IMAGENET[0]}, which the published code has built in"
        )
    language = {**llama(spec.language), **facts.ids, "torch_dtype": facts.dtype}
    if fused:
        language |= {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
        # the published InternLM2 cannot be built without a scaling; linear by 1 says nothing
        language["rope_scaling"] = language["rope_scaling"] or {"type": "linear", "factor": 1.0}
        language["attn_implementation"] = "eager" if spec.strides is None else "flash_attention_2"
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
        "template": spec.template,
        "force_image_size": rule.size,
        "dynamic_image_size": rule.kind == "tiles",
        "use_thumbnail": rule.thumbnail,
        "min_dynamic_patch": rule.min_tiles,
        "max_dynamic_patch": rule.max_tiles,
        "pad2square": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "rope_pos_id_version": version,
        "rope_pos_id_stride": as_int(spec.strides),
        "llm_config": {**language, "rope_pos_id_version": version},
        "vision_config": {
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
        },
    }
    if spec.system is not None:
        config["system_message"] = spec.system
    patterns = adapters.INTERNVL_INTERNLM2 if fused else adapters.INTERNVL_LLAMA
    return [Folder(adapters.inverted(patterns), {"config.json": config, "preprocessor_config.json": processor(spec)})]


def as_int(strides: float | None) -> float | None:
    """The published flag is an int."""
    return int(strides) if strides is not None and strides == int(strides) else strides


def llava(spec: ModelSpec, facts: Facts) -> list[Folder]:
    """ConvLLaVA: language model and projector, and the ConvNeXt in a folder of its own."""
    if not isinstance(spec.vision, ConvNextSpec):
        raise no_home(f"the encoder {spec.vision.kind}", "llava", "a ConvNeXt")
    if not isinstance(spec.projector, MlpSpec):
        raise no_home(f"the projector {spec.projector.kind}", "llava", "an MLP")
    if spec.image_rule.kind not in ("pad", "crop"):
        raise no_home(f"the image rule {spec.image_rule.kind}", "llava", "pad or crop")
    if spec.image_tokens.context is not None:
        raise no_home(f"the token {spec.image_tokens.context}", "llava", "a placeholder outside the vocabulary")
    depth, vision, stages = spec.projector.depth, spec.vision, len(spec.vision.depths)
    config = {
        **llama(spec.language),
        **facts.ids,
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "torch_dtype": facts.dtype,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mm_vision_tower": f"./{TOWER}",
        "mm_hidden_size": vision.widths[-1],
        "mm_projector_type": "linear" if depth == 1 else f"mlp{depth}x_gelu",
        "mm_vision_select_layer": -1,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad" if spec.image_rule.kind == "pad" else "square",
        "image_grid_pinpoints": None,
        "use_mm_proj": True,
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
    }
    tower = {
        "architectures": ["ConvNextModel"],
        "model_type": "convnext",
        "torch_dtype": facts.dtype,
        "depths": list(vision.depths),
        "hidden_sizes": list(vision.widths),
        "num_stages": stages,
        "stage_names": ["stem", *(f"stage{i + 1}" for i in range(stages))],
        "out_features": [f"stage{stages}"],
        "out_indices": [stages],
        "image_size": spec.image_rule.size,
        "num_channels": 3,
        "patch_size": 4,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-6,
        "layer_scale_init_value": vision.layer_scale_init,
        "drop_path_rate": vision.drop_path,
    }
    main = adapters.inverted(adapters.LLAVA_LINEAR if depth == 1 else adapters.LLAVA)
    files = {"config.json": tower, "preprocessor_config.json": processor(spec)}
    return [Folder(main, {"config.json": config}), Folder(adapters.inverted(adapters.CONVNEXT_TOWER), files, TOWER)]


def hf(spec: ModelSpec, facts: Facts) -> list[Folder]:
    """transformers' InternVLForConditionalGeneration with a Llama."""
    vision, projector = intern_parts(spec, "hf")
    if projector.version != "v2":
        raise no_home("the token order of pixel unshuffle v1 (column by column)", "hf", "pixel unshuffle v2")
    if vision.qk_norm and vision.norm_eps != 1e-6:
        raise no_home(f"a q/k norm with eps {vision.norm_eps}", "hf", "1e-6, which transformers has built in")
    rule, scaling = spec.image_rule, spec.language.rope_scaling
    text = {**llama(spec.language), **facts.ids, "model_type": "llama", "attention_bias": False, "mlp_bias": False}
    del text["rope_scaling"], text["rope_theta"]
    text["head_dim"] = spec.language.width // spec.language.heads
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
        "vision_config": {
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
        },
    }
    pre = processor(
        spec,
        image_processor_type="GotOcr2ImageProcessor",
        size={"height": rule.size, "width": rule.size},
        crop_to_patches=rule.kind == "tiles",
        min_patches=rule.min_tiles,
        max_patches=rule.max_tiles,
    )
    del pre["crop_size"], pre["do_center_crop"]
    return [Folder(adapters.inverted(adapters.INTERNVL_HF), {"config.json": config, "preprocessor_config.json": pre})]


def ours(spec: ModelSpec, facts: Facts) -> list[Folder]:
    """Our own layout: the spec itself."""
    return [Folder(None, {"config.json": {"model_type": "vlm", "spec": spec.model_dump(mode="json")}})]


WRITERS: dict[str, Callable[[ModelSpec, Facts], list[Folder]]] = {
    "internvl": internvl,
    "llava": llava,
    "hf": hf,
    "vlm": ours,
}
"""Layouts that `vlm weights convert --to` writes."""
