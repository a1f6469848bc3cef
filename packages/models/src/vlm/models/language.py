"""The language model: transformers' own with rotary tables of exact positions, and rotation in float32."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, apply_rotary_pos_emb

from vlm.core.errors import UnknownName
from vlm.models import blocks
from vlm.models.attention import NAME, attend
from vlm.models.batch import upload
from vlm.models.loss import LossHead
from vlm.models.specs import LanguageSpec, RopeScaling


class ExactRotary(nn.Module):
    """cos and sin of exact positions: phases in float64, cast to float32 last.

    With `published`, phases are float32 and the tables are rounded to the dtype of the activations, as the released
    weights were trained: in bfloat16, at position 30,000 and stride 1, 92 % of the entries of neighboring image tokens
    are the same.

    With `dynamic` scaling the base is a pure function of the length of the sequence: the row, or the document of a
    packed row (the published table is sticky: once scaled, it stays scaled for later short inputs). Scaling is for the
    plain count 0, 1, 2, ..., which comes as integers; V2PE positions come as floats and are never scaled, as published.
    """

    def __init__(
        self, head_size: int, theta: float, max_positions: int, scaling: RopeScaling | None, published: bool = False
    ):
        super().__init__()
        self.head_size, self.theta, self.max_positions, self.scaling = head_size, theta, max_positions, scaling
        self.published = published

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos, sin [B, L, head_size] on the device of x, float64 for a float64 model, else float32.

        position_ids [B, L], float or integer; or int64 [B, L, 2]: each position beside the length of its document.
        """
        phases = torch.float32 if self.published else torch.float64
        length = position_ids.amax(-1, keepdim=True) + 1  # [B, 1]
        if position_ids.dim() == 3:
            position_ids, length = position_ids.unbind(-1)
        position = position_ids.to(phases)
        scaling = None if position_ids.is_floating_point() else self.scaling
        theta: float | Tensor = self.theta
        if scaling and scaling.kind == "linear":
            position = position / scaling.factor
        elif scaling and (length.device.type != "cpu" or (length > self.max_positions).any()):  # asking a GPU is a wait
            stretch = (scaling.factor * length.to(phases) / self.max_positions - (scaling.factor - 1)).clamp(min=1)
            theta = theta * stretch[..., None] ** (self.head_size / (self.head_size - 2))
        exponent = torch.arange(0, self.head_size, 2, dtype=phases, device=position.device) / self.head_size
        phase = position[..., None] * theta**-exponent
        phase = torch.cat([phase, phase], dim=-1)
        tables = phase.cos(), phase.sin()
        if self.published:
            tables = tables[0].to(x.dtype), tables[1].to(x.dtype)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return tables[0].to(dtype), tables[1].to(dtype)


class ExactForward(nn.Module):
    """A forward pass for the attention of a Llama or a relative of it, as a base class before theirs.

    q and k are rotated in the dtype of the tables (float32) and then cast back, as the published code does. Stock
    transformers rotates in the dtype of the weights: in bfloat16 neighboring image tokens become one.
    """

    config: Any
    head_dim: int
    scaling: float
    layer_idx: int
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v [B, L, heads, head size] of hidden states [B, L, C]."""
        q, k, v = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return q, k, v

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states [B, L, C] -> [B, L, C]; `position_embeddings` from `ExactRotary`."""
        assert position_embeddings is not None
        q, k, v = (t.transpose(1, 2) for t in self.project(hidden_states))
        if blocks.pays(q, blocks.ROTATED):
            q, k = (blocks.rotated(t, *position_embeddings, v.dtype) for t in (q, k))
        else:
            q, k = (t.to(v.dtype) for t in apply_rotary_pos_emb(q, k, *position_embeddings))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        backend = AttentionInterface().get_interface(self.config._attn_implementation, attend)
        out, _ = backend(self, q, k, v, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(out.flatten(2)), None


class BlockedNorm(nn.Module):
    """The norm of a Llama or a relative of it, in blocks where that is faster; a base class before theirs."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalize over the last axis; the dtype stays."""
        return blocks.rms_norm(hidden_states, self.weight, self.variance_epsilon)


class ExactNorm(BlockedNorm, LlamaRMSNorm):
    """Llama's norm."""


class ExactAttention(ExactForward, LlamaAttention):  # type: ignore[misc]  # no attention weights are returned
    """Llama's parameters with the forward pass of `ExactForward`."""


def document_positions(cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Return 0, 1, 2, ... in each document of a packed row, and the length of each token's document; int64 [1, L].

    They are computed on the CPU if `cu_seqlens` is there: on a device the host would have to wait for their number.
    """
    lengths = cu_seqlens.diff().long()
    start, length = (t.repeat_interleave(lengths) for t in (cu_seqlens[:-1].long(), lengths))
    return (torch.arange(len(start), device=start.device) - start)[None], length[None]


def with_lengths(position_ids: Tensor | None, cu_seqlens: Tensor, device: torch.device) -> Tensor:
    """Return positions of a packed row for `ExactRotary`: floats as they are, counts beside their document's length.

    Without `position_ids` they count 0, 1, 2, ... in each document.
    """
    if position_ids is not None and position_ids.is_floating_point():
        return position_ids
    counting, length = (upload(t, device) for t in document_positions(cu_seqlens))
    position_ids = counting if position_ids is None else position_ids
    return torch.stack([position_ids, length.expand_as(position_ids)], dim=-1)  # rotary scaling goes by the length


LANGUAGE_MODELS = {"llama": "vlm.models.language:make_llama", "qwen2": "vlm.models.qwen2:make_qwen2"}
"""Kind of a `LanguageSpec` -> the function that makes such a model, as an import string."""


def make_language_model(spec: LanguageSpec) -> Any:
    """Make a language model of that spec, initialized as transformers does; attention `auto`.

    Raises:
        UnknownName: no such kind.
    """
    if spec.kind not in LANGUAGE_MODELS:
        raise UnknownName("language model", spec.kind, LANGUAGE_MODELS)
    module, function = LANGUAGE_MODELS[spec.kind].split(":")
    return getattr(import_module(module), function)(spec)


def make_llama(spec: LanguageSpec) -> Any:
    """Make a Llama (weights drawn from a normal distribution of 0.02)."""
    return with_exact_parts(LlamaForCausalLM(LlamaConfig(**shared_config(spec))), spec, ExactAttention, ExactNorm)


def shared_config(spec: LanguageSpec) -> dict[str, Any]:
    """Return the keys of a configuration that Llama and its relatives in transformers share."""
    return {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "intermediate_size": spec.mlp_width,
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "tie_word_embeddings": spec.tied,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": NAME,
        "vlm_attention": "auto",
    }


def with_exact_parts(model: Any, spec: LanguageSpec, attention: type[nn.Module], norm: type[nn.Module]) -> Any:
    """Return a model of transformers with our output head, rotary tables, attention and norms.

    `attention(config, layer)` and `norm(width, eps)` have the parameters of the model's own, and the forward passes of
    `ExactForward` and `BlockedNorm`.
    """
    model.lm_head = with_parts_of(model.lm_head, LossHead(spec.width, spec.vocab, bias=False, device="meta"))
    head = spec.width // spec.heads
    published = spec.rotary_tables == "published"
    model.model.rotary_emb = ExactRotary(head, spec.rope_theta, spec.max_positions, spec.rope_scaling, published)

    def norm_like() -> nn.Module:
        with torch.device("meta"):
            return norm(spec.width, eps=spec.norm_eps)

    for i, layer in enumerate(model.model.layers):
        with torch.device("meta"):
            exact = attention(model.config, i)
        layer.self_attn = with_parts_of(layer.self_attn, exact)  # parameters as transformers has drawn them
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(layer, name, with_parts_of(getattr(layer, name), norm_like()))
    model.model.norm = with_parts_of(model.model.norm, norm_like())
    return model


def with_parts_of(old: nn.Module, new: nn.Module) -> Any:
    """Return `new`, made on the meta device, with the parameters and child modules of `old`."""
    for name, parameter in old.named_parameters(recurse=False):
        setattr(new, name, parameter)
    for name, child in old.named_children():
        setattr(new, name, child)
    return new.train(old.training)
