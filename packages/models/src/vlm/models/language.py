"""The language model: transformers' Llama with a rotary module that keeps float64 positions exact."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from vlm.models.attention import NAME
from vlm.models.specs import LanguageSpec, RopeScaling


class ExactRotary(nn.Module):
    """cos and sin of exact positions: phases in float64, cast last.

    With `dynamic` scaling the base is a pure function of the current length (the published table is sticky: once
    scaled, it stays scaled for later short inputs). Scaling is for the plain count 0, 1, 2, ..., which comes as
    integers; V2PE positions come as floats and are never scaled, as published.
    """

    def __init__(self, head_size: int, theta: float, max_positions: int, scaling: RopeScaling | None):
        super().__init__()
        self.head_size, self.theta, self.max_positions, self.scaling = head_size, theta, max_positions, scaling

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """x gives dtype and device; position_ids [B, L], any dtype -> cos, sin [B, L, head_size]."""
        position = position_ids.to(torch.float64)
        scaling = None if position_ids.is_floating_point() else self.scaling
        theta = self.theta
        if scaling and scaling.kind == "linear":
            position = position / scaling.factor
        elif scaling and (length := int(position_ids.max()) + 1) > self.max_positions:
            stretch = scaling.factor * length / self.max_positions - (scaling.factor - 1)
            theta *= stretch ** (self.head_size / (self.head_size - 2))
        exponent = torch.arange(0, self.head_size, 2, dtype=torch.float64, device=position.device) / self.head_size
        phase = position[..., None] * theta**-exponent
        phase = torch.cat([phase, phase], dim=-1)
        return phase.cos().to(x.dtype), phase.sin().to(x.dtype)


def make_language_model(spec: LanguageSpec) -> LlamaForCausalLM:
    """A Llama of that shape, initialised as transformers does (normal, 0.02)."""
    config = LlamaConfig(
        vocab_size=spec.vocab,
        hidden_size=spec.width,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        intermediate_size=spec.mlp_width,
        max_position_embeddings=spec.max_positions,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=spec.tied,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=NAME,  # type: ignore[call-arg]
    )
    model = LlamaForCausalLM(config)
    head = spec.width // spec.heads
    model.model.rotary_emb = ExactRotary(head, spec.rope_theta, spec.max_positions, spec.rope_scaling)
    return model
