"""Published `config.json` files -> our specs, and the patterns that go with each layout (`schemas.py` is the way
back)."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm.core.config import parse
from vlm.core.errors import CheckpointError
from vlm.core.sample.tiling import CLIP, IMAGENET, ImageRule
from vlm.models.checkpoint import patterns as adapters
from vlm.models.checkpoint.llava_tower import projector_depth, tower_config
from vlm.models.checkpoint.locate import read_config
from vlm.models.checkpoint.safetensors_io import has_weights
from vlm.models.specs import (
    ConvNextSpec,
    ImageTokens,
    InternVitSpec,
    LanguageSpec,
    MlpSpec,
    ModelSpec,
    RopeScaling,
    UnshuffleSpec,
)

CONTEXT_FROM_END = 7
"""InternVL appends nine tokens; the context token is the third in InternVL2 and the first new one of seven in V1-2:
both are row `vocab - 7`."""


@dataclass(frozen=True)
class Layout:
    """A checkpoint on disk: its spec and where each tensor goes. `towers`: further folders with their own patterns;
    `copy`: patterns of what may be stored a second time in the folder itself."""

    name: str
    spec: ModelSpec
    patterns: adapters.Patterns | None
    towers: tuple[tuple[Path, adapters.Patterns], ...] = ()
    copy: adapters.Patterns | None = None

    @property
    def files(self) -> list[Path]:
        """Configuration files of the further folders."""
        names = ("config.json", "preprocessor_config.json")
        return [tower / n for tower, _ in self.towers for n in names if (tower / n).exists()]


def language_spec(config: dict[str, Any]) -> LanguageSpec:
    """Llama or InternLM2 configuration keys -> LanguageSpec."""
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {k: rope[k] for k in ("rope_type", "factor") if k in rope}
    kind = scaling.get("type", scaling.get("rope_type", "default"))
    known = {"linear", "dynamic", "default", "v2pe"}  # the release writes "v2pe" over the scaling: it means none
    if kind not in known:
        raise CheckpointError(f"rope scaling {kind!r} is not supported", expected=f"one of {sorted(known)}")
    factor = scaling.get("factor", 1.0)
    scaled = kind == "dynamic" or (kind == "linear" and factor != 1.0)  # linear by 1 says nothing
    return LanguageSpec(
        vocab=config["vocab_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        mlp_width=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        rope_theta=config.get("rope_theta") or rope.get("rope_theta", 10000.0),
        rope_scaling=RopeScaling(kind=kind, factor=factor) if scaled else None,
        norm_eps=config["rms_norm_eps"],
        tied=config.get("tie_word_embeddings", False),
    )


def selected_depth(depth: int, select: int) -> int:
    """How many blocks run for hidden state `select` of depth + 1; state 0 is the embedding."""
    return depth + 1 + select if select < 0 else select


def internvl(folder: Path, config: dict[str, Any]) -> Layout:
    """InternVL2 / V2PE (InternLM2) and InternVL-Chat-V1-2 (Llama)."""
    vit, llm = config["vision_config"], config["llm_config"]
    fused = "InternLM2ForCausalLM" in llm.get("architectures", [])
    language = language_spec(llm)
    version = config.get("rope_pos_id_version", "default")
    v2pe = version != "default"
    if v2pe:
        language = language.model_copy(update={"rope_scaling": None})
    depth = vit["num_hidden_layers"]
    used = selected_depth(depth, config.get("select_layer", -1))
    spec = ModelSpec(
        family="internvl2" if fused else "internvl-chat-v1-2",
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
        projector=UnshuffleSpec(version=config.get("ps_version", "v1"), ratio=config["downsample_ratio"]),
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
        image_tokens=ImageTokens(context_id=language.vocab - CONTEXT_FROM_END),
        template=config.get("template") or ("internlm2-chat" if fused else "Hermes-2"),
        strides=config.get("rope_pos_id_stride") if v2pe else None,
        system=config.get("system_message"),
    )
    patterns = adapters.INTERNVL_INTERNLM2 if fused else adapters.INTERNVL_LLAMA
    patterns = adapters.without_layers(patterns, "vision_model.encoder.layers", range(used, depth))
    return Layout("internvl", spec, patterns)


def llava(folder: Path, config: dict[str, Any]) -> Layout:
    """ConvLLaVA: language model and projector here, the ConvNeXt in the folder (or hub repo) named by the config, and
    perhaps a copy of it here."""
    path, vision, pre = tower_config(folder, config["mm_vision_tower"])
    crop, kind = pre["crop_size"], config["mm_projector_type"]
    if (select := config.get("mm_vision_select_layer", -1)) != -1:
        raise CheckpointError(f"{folder}: mm_vision_select_layer {select}", expected="-1, as all released models have")
    if (aspect := config.get("image_aspect_ratio")) == "anyres":
        raise CheckpointError(f"{folder}: image_aspect_ratio {aspect!r}", expected="pad, as all released models have")
    spec = ModelSpec(
        family="convllava",
        vision=ConvNextSpec(
            depths=tuple(vision["depths"]),
            widths=tuple(vision["hidden_sizes"]),
            layer_scale_init=vision.get("layer_scale_init_value", 1e-6),
            drop_path=vision.get("drop_path_rate", 0.0),
        ),
        projector=MlpSpec(depth=projector_depth(kind, folder)),
        language=language_spec(config),
        image_rule=ImageRule(
            kind="pad" if aspect == "pad" else "crop",
            size=crop["height"] if isinstance(crop, dict) else crop,
            mean=pre.get("image_mean", CLIP[0]),
            std=pre.get("image_std", CLIP[1]),
        ),
        image_tokens=ImageTokens(context=None, start=None, end=None, context_id=-200),
        template="llava_v1",
    )
    return Layout(
        "llava",
        spec,
        adapters.LLAVA_LINEAR if kind == "linear" else adapters.LLAVA,
        towers=((path, adapters.CONVNEXT_ANY),) if has_weights(path) else (),
        copy=adapters.LLAVA_COPY,
    )


def expect(config: dict[str, Any], where: str, **wanted: Any) -> None:
    """Raises CheckpointError for a setting that our model does not have. Absent keys have the library's default."""
    for key, value in wanted.items():
        if (found := config.get(key, value)) != value:
            raise CheckpointError(f"{where}: {key} {found!r} is not supported", expected=f"{value!r}")


def side(value: int | list[int]) -> int:
    return value[0] if isinstance(value, list) else value


def hf(folder: Path, config: dict[str, Any]) -> Layout:
    """transformers' own `-hf` layout of InternVL, with a Llama. It names no template: `internlm2-chat`, unless our keys
    do (a folder that `vlm weights convert --to hf` wrote)."""
    vit, llm, where = config["vision_config"], config["text_config"], f"{folder}/config.json"
    expect(config, where, projector_hidden_act="gelu", vision_feature_select_strategy="default")
    expect(llm, f"{where}: text_config", model_type="llama", attention_bias=False, mlp_bias=False, hidden_act="silu")
    expect(llm, f"{where}: text_config", head_dim=llm["hidden_size"] // llm["num_attention_heads"])
    expect(vit, f"{where}: vision_config", use_mean_pooling=True, use_absolute_position_embeddings=True)
    expect(vit, f"{where}: vision_config", hidden_act="gelu", num_channels=3)
    if vit.get("use_qk_norm", False):  # the library's q/k norm knows no other
        expect(vit, f"{where}: vision_config", layer_norm_eps=1e-6)
    depth, select = vit["num_hidden_layers"], config.get("vision_feature_layer", -1)
    if not isinstance(select, int):
        raise CheckpointError(f"{where}: vision_feature_layer {select!r}", expected="one layer")
    used, size = selected_depth(depth, select), side(vit["image_size"])
    pre = folder / "preprocessor_config.json"
    rule = json.loads(pre.read_text(encoding="utf-8")) if pre.exists() else {}
    language = language_spec({"tie_word_embeddings": False, **llm})
    tied = config.get("tie_word_embeddings", llm.get("tie_word_embeddings", True))
    spec = ModelSpec(
        family="internvl2",
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
        language=language.model_copy(update={"tied": tied}),
        image_rule=ImageRule(
            kind="tiles" if rule.get("crop_to_patches", True) else "square",
            size=rule.get("size", {}).get("height", size),
            max_tiles=rule.get("max_patches", 12),
            min_tiles=rule.get("min_patches", 1),
            mean=rule.get("image_mean", IMAGENET[0]),
            std=rule.get("image_std", IMAGENET[1]),
        ),
        image_tokens=ImageTokens(context_id=config["image_token_id"]),
        template="internlm2-chat",
    )
    patterns = adapters.INTERNVL_HF_ANY
    for prefix in ("", "model."):
        patterns = adapters.without_layers(patterns, f"{prefix}vision_tower.encoder.layer", range(used, depth))
    return Layout("hf", spec, patterns)


def ours(folder: Path, config: dict[str, Any]) -> Layout:
    """Our own layout: the spec stands in `config.json`, tensors have our names."""
    return Layout("vlm", parse(config["spec"], ModelSpec, where=f"{folder}/config.json: spec"), None)


READERS = {"vlm": ours, "internvl_chat": internvl, "llava": llava, "llava_llama": llava, "internvl": hf}


def with_own_keys(layout: Layout, config: dict[str, Any], where: str) -> Layout:
    """What a published schema cannot say stands under `vlm`, by the names of ModelSpec."""
    own = config.get("vlm", {})
    if "strides" in own and "rope_pos_id_version" in config and own["strides"] != layout.spec.strides:
        raise CheckpointError(
            f"{where}: vlm.strides is {own['strides']} but the published keys say {layout.spec.strides}",
            expected="rope_pos_id_version and rope_pos_id_stride to agree with vlm.strides",
            fix="correct one of them, or delete vlm.strides",
        )
    spec = parse({**layout.spec.model_dump(), **own}, ModelSpec, where=f"{where}: vlm") if own else layout.spec
    return replace(layout, spec=spec)


def read_layout(folder: Path) -> Layout:
    """The layout of a checkpoint folder. Raises CheckpointError for an unknown family."""
    config = read_config(folder)
    reader = READERS.get(config.get("model_type", ""))
    if reader is None:
        raise CheckpointError(
            f"{folder}/config.json: model_type {config.get('model_type')!r} is not known",
            expected=f"one of {', '.join(sorted(READERS))}",
            fix="give the folder of an InternVL, ConvLLaVA or vlm checkpoint",
        )
    try:
        return with_own_keys(reader(Path(folder), config), config, f"{folder}/config.json")
    except KeyError as error:
        raise CheckpointError(f"{folder}/config.json lacks {error}", expected="a published configuration") from error
