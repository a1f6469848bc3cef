"""Published `config.json` files -> our specs, and the patterns that go with each layout."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.core.config import parse
from vlm.core.errors import CheckpointError
from vlm.core.tiling import CLIP, IMAGENET, ImageRule
from vlm.models import adapters
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
    """A checkpoint on disk: its spec and where each tensor goes. `towers`: further folders with their own patterns."""

    name: str
    spec: ModelSpec
    patterns: adapters.Patterns | None
    towers: tuple[tuple[Path, adapters.Patterns], ...] = ()


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint folder. Raises CheckpointError when absent or not JSON."""
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no config.json in {folder}", expected="a checkpoint folder", fix="`vlm list weights` shows what is here"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}", fix="download the checkpoint again") from error


def language_spec(config: dict[str, Any]) -> LanguageSpec:
    """Llama or InternLM2 configuration keys -> LanguageSpec."""
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {k: rope[k] for k in ("rope_type", "factor") if k in rope}
    kind = scaling.get("type", scaling.get("rope_type", "default"))
    known = {"linear", "dynamic", "default", "v2pe"}  # the release writes "v2pe" over the scaling: it means none
    if kind not in known:
        raise CheckpointError(f"rope scaling {kind!r} is not supported", expected=f"one of {sorted(known)}")
    return LanguageSpec(
        vocab=config["vocab_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        mlp_width=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        rope_theta=config.get("rope_theta") or rope.get("rope_theta", 10000.0),
        rope_scaling=RopeScaling(kind=kind, factor=scaling["factor"]) if kind in ("linear", "dynamic") else None,
        norm_eps=config["rms_norm_eps"],
        tied=config.get("tie_word_embeddings", False),
    )


def internvl(folder: Path, config: dict[str, Any]) -> Layout:
    """InternVL2 / V2PE (InternLM2) and InternVL-Chat-V1-2 (Llama)."""
    vit, llm = config["vision_config"], config["llm_config"]
    fused = "InternLM2ForCausalLM" in llm.get("architectures", [])
    language = language_spec(llm)
    version = config.get("rope_pos_id_version", "default")
    v2pe = version != "default"
    if v2pe:
        language = language.model_copy(update={"rope_scaling": None})
    depth, select = vit["num_hidden_layers"], config.get("select_layer", -1)
    used = depth + 1 + select if select < 0 else select  # state 0 is the embedding
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
    """ConvLLaVA: language model and projector here, the ConvNeXt in the folder (or hub repo) named by the config."""
    tower = config["mm_vision_tower"]
    path = (folder / tower).resolve() if (folder / tower).exists() else folder.parent / Path(tower).name
    vision, pre = read_config(path), path / "preprocessor_config.json"
    rule = json.loads(pre.read_text()) if pre.exists() else {"crop_size": {"height": vision["image_size"]}}
    crop = rule["crop_size"]
    kind = config["mm_projector_type"]
    if (select := config.get("mm_vision_select_layer", -1)) != -1:
        raise CheckpointError(f"{folder}: mm_vision_select_layer {select}", expected="-1, as all released models have")
    spec = ModelSpec(
        family="convllava",
        vision=ConvNextSpec(
            depths=tuple(vision["depths"]),
            widths=tuple(vision["hidden_sizes"]),
            layer_scale_init=vision.get("layer_scale_init_value", 1e-6),
            drop_path=vision.get("drop_path_rate", 0.0),
        ),
        projector=MlpSpec(depth=1 if kind == "linear" else int(kind.removeprefix("mlp")[0])),
        language=language_spec(config),
        image_rule=ImageRule(
            kind="pad", size=crop["height"] if isinstance(crop, dict) else crop, mean=CLIP[0], std=CLIP[1]
        ),
        image_tokens=ImageTokens(context=None, start=None, end=None, context_id=-200),
        template="llava_v1",
    )
    return Layout("llava", spec, adapters.LLAVA, towers=((path, adapters.CONVNEXT_TOWER),))


def ours(folder: Path, config: dict[str, Any]) -> Layout:
    """Our own layout: the spec stands in `config.json`, tensors have our names."""
    return Layout("vlm", parse(config["spec"], ModelSpec, where=f"{folder}/config.json: spec"), None)


READERS = {"vlm": ours, "internvl_chat": internvl, "llava": llava, "llava_llama": llava}


def read_layout(folder: Path) -> Layout:
    """The layout of a checkpoint folder. Raises CheckpointError for an unknown family."""
    config = read_config(folder)
    reader = READERS.get(config.get("model_type", ""))
    if reader is None:
        raise CheckpointError(
            f"{folder}: model_type {config.get('model_type')!r} is not known", expected=f"one of {sorted(READERS)}"
        )
    try:
        return reader(Path(folder), config)
    except KeyError as error:
        raise CheckpointError(f"{folder}/config.json lacks {error}", expected="a published configuration") from error
