"""Published checkpoint layouts <-> ours, as literal patterns. `{}` stands for a layer index; None drops a key by name.

Ours: `encoder.*`, `projector.*`, `language_model.*` (transformers' Llama names). Where one tensor here is three there
(`vlm.models.checkpoint.fused_tensors`), a pattern names the pieces.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from vlm.models.specs import LanguageSpec

Patterns = dict[str, str | None]

VIT: Patterns = {
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

UNSHUFFLE_MLP: Patterns = {
    f"mlp1.{i}.{kind}": f"projector.{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")
}

LLAMA: Patterns = {
    name: name
    for name in (
        "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
        *(
            f"model.layers.{{}}.{part}.weight"
            for part in (
                "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
            )
        ),
    )
}  # fmt: skip
LLAMA["model.layers.{}.self_attn.rotary_emb.inv_freq"] = None  # a constant that older libraries stored

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

CONVNEXT: Patterns = {
    "embeddings.patch_embeddings.{kind}": "encoder.stem.0.{kind}",
    "embeddings.layernorm.{kind}": "encoder.stem.1.{kind}",
    "encoder.stages.{}.downsampling_layer.{}.{kind}": "encoder.stages.{}.downsample.{}.{kind}",
    "encoder.stages.{}.layers.{}.layer_scale_parameter": "encoder.stages.{}.blocks.{}.gamma",
    "encoder.stages.{}.layers.{}.dwconv.{kind}": "encoder.stages.{}.blocks.{}.conv_dw.{kind}",
    "encoder.stages.{}.layers.{}.layernorm.{kind}": "encoder.stages.{}.blocks.{}.norm.{kind}",
    "encoder.stages.{}.layers.{}.pwconv1.{kind}": "encoder.stages.{}.blocks.{}.mlp.fc1.{kind}",
    "encoder.stages.{}.layers.{}.pwconv2.{kind}": "encoder.stages.{}.blocks.{}.mlp.fc2.{kind}",
    "layernorm.{kind}": None,  # the library's final norm, never used by the published tower
}

CONVNEXT_TIMM: Patterns = {
    "stem.{}.{kind}": "encoder.stem.{}.{kind}",
    "stages.{}.downsample.{}.{kind}": "encoder.stages.{}.downsample.{}.{kind}",
    "stages.{}.blocks.{}.gamma": "encoder.stages.{}.blocks.{}.gamma",
    "stages.{}.blocks.{}.conv_dw.{kind}": "encoder.stages.{}.blocks.{}.conv_dw.{kind}",
    "stages.{}.blocks.{}.norm.{kind}": "encoder.stages.{}.blocks.{}.norm.{kind}",
    "stages.{}.blocks.{}.mlp.fc1.{kind}": "encoder.stages.{}.blocks.{}.mlp.fc1.{kind}",
    "stages.{}.blocks.{}.mlp.fc2.{kind}": "encoder.stages.{}.blocks.{}.mlp.fc2.{kind}",
    **{f"{name}.{{kind}}": None for name in ("norm_pre", "head", "head.norm", "head.fc", "head.pre_logits.fc")},
}

VIT_HF: Patterns = {
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

PROJECTOR_HF: Patterns = {
    "layer_norm.{kind}": "projector.0.{kind}",
    "linear_1.{kind}": "projector.1.{kind}",
    "linear_2.{kind}": "projector.3.{kind}",
}


def both_kinds(patterns: Patterns) -> Patterns:
    """`{kind}` written out for weight and bias."""
    return {
        k.replace("{kind}", kind): v and v.replace("{kind}", kind)
        for k, v in patterns.items()
        for kind in ("weight", "bias")
    }


def without_layers(patterns: Patterns, path: str, layers: Iterable[int]) -> Patterns:
    """The patterns, with those layers of `path.{}` dropped by name: what stands behind the selected layer."""
    marked = path + ".{}"
    dropped: Patterns = {
        k.replace(marked, f"{path}.{layer}", 1): None for layer in layers for k in patterns if k.startswith(marked)
    }
    return {**dropped, **patterns}


def prefixed(patterns: Patterns, theirs: str, ours: str) -> Patterns:
    return {theirs + k: v and ours + v for k, v in patterns.items()}


INTERNVL_LLAMA: Patterns = {**VIT, **UNSHUFFLE_MLP, **prefixed(LLAMA, "language_model.", "language_model.")}
INTERNVL_INTERNLM2: Patterns = {**VIT, **UNSHUFFLE_MLP, **prefixed(INTERNLM2, "language_model.", "language_model.")}
LLAVA: Patterns = {
    **prefixed(LLAMA, "", "language_model."),
    **both_kinds({"model.mm_projector.{}.{kind}": "projector.{}.{kind}"}),
}
LLAVA_LINEAR: Patterns = {  # the projector type "linear" is one layer without a number
    **prefixed(LLAMA, "", "language_model."),
    **both_kinds({"model.mm_projector.{kind}": "projector.0.{kind}"}),
}
CONVNEXT_TOWER: Patterns = both_kinds(CONVNEXT)
CONVNEXT_ANY: Patterns = {**CONVNEXT_TOWER, **both_kinds(CONVNEXT_TIMM)}
LLAVA_COPY: Patterns = prefixed(CONVNEXT_ANY, "model.vision_tower.vision_tower.", "")
"""The second copy of the vision weights in a LLaVA folder."""

_HF: Patterns = {
    **prefixed(both_kinds(VIT_HF), "vision_tower.", ""),
    **prefixed(both_kinds(PROJECTOR_HF), "multi_modal_projector.", ""),
}
INTERNVL_HF: Patterns = {**_HF, **prefixed(LLAMA, "language_model.", "language_model.")}
"""transformers' own `-hf` layout as it is published and saved."""
INTERNVL_HF_ANY: Patterns = {
    **INTERNVL_HF,
    **prefixed(_HF, "model.", ""),  # and under the names that the model has in memory since transformers 4.52
    **{
        k if k.startswith("lm_head") else k.replace("model.", "model.language_model.", 1): v and "language_model." + v
        for k, v in LLAMA.items()
    },
}

WQKV = re.compile(r"(.*self_attn\.)wqkv$")


def split_wqkv(fused: Tensor, spec: LanguageSpec) -> tuple[Tensor, Tensor, Tensor]:
    """InternLM2's fused rows, grouped by kv head as [q ... q | k | v], -> q, k, v rows of Llama."""
    head, group = spec.width // spec.heads, spec.heads // spec.kv_heads
    rows = fused.unflatten(0, (spec.kv_heads, group + 2, head))
    return rows[:, :group].flatten(0, 2), rows[:, group].flatten(0, 1), rows[:, group + 1].flatten(0, 1)


def fuse_wqkv(q: Tensor, k: Tensor, v: Tensor, spec: LanguageSpec) -> Tensor:
    """The inverse of `split_wqkv`."""
    head, group = spec.width // spec.heads, spec.heads // spec.kv_heads
    parts = [
        q.unflatten(0, (spec.kv_heads, group, head)),
        k.unflatten(0, (spec.kv_heads, 1, head)),
        v.unflatten(0, (spec.kv_heads, 1, head)),
    ]
    return torch.cat(parts, dim=1).flatten(0, 2)


@dataclass
class Renaming:
    """What a set of patterns makes of a checkpoint's keys: every key is renamed, dropped by name, or unknown."""

    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("^" + re.escape(pattern).replace(r"\{\}", r"(\d+)") + "$")


def rename(keys: list[str], patterns: Patterns) -> Renaming:
    """Account for every key."""
    result = Renaming()
    for key in keys:
        for pattern, target in patterns.items():
            if match := compiled(pattern).match(key):
                if target is None:
                    result.dropped.append(key)
                else:
                    result.renamed[key] = target.format(*match.groups())
                break
        else:
            result.unknown.append(key)
    return result


def inverted(patterns: Patterns) -> Patterns:
    """Ours -> theirs."""
    return {v: k for k, v in patterns.items() if v is not None}
