"""The language model: transformers' Llama with a rotary module that keeps float64 positions exact."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from vlm.models.attention import NAME
from vlm.models.specs import LanguageSpec, RopeScaling


class ExactRotary(nn.Module):
    """cos and sin of exact positions: phases in float64, cast last.

    With `dynamic` scaling the base is a pure function of the current length (the published table is sticky: once
    scaled, it stays scaled for later short inputs). V2PE positions are never scaled: set `scaling` to None.
    `rounded`: round the tables to the activation dtype first, as published, before the rotation.
    """

    def __init__(self, head_size: int, theta: float, max_positions: int, scaling: RopeScaling | None):
        super().__init__()
        self.head_size, self.theta, self.max_positions, self.scaling = head_size, theta, max_positions, scaling

    def inverse_frequencies(self, length: float, device: torch.device) -> Tensor:
        """float64 [head_size / 2] for a sequence of `length` positions."""
        theta = self.theta
        if self.scaling and self.scaling.kind == "dynamic" and length > self.max_positions:
            factor = self.scaling.factor
            stretch = factor * length / self.max_positions - (factor - 1)
            theta *= stretch ** (self.head_size / (self.head_size - 2))
        exponent = torch.arange(0, self.head_size, 2, dtype=torch.float64, device=device) / self.head_size
        return theta**-exponent

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """x gives dtype and device; position_ids [B, L], any dtype -> cos, sin [B, L, head_size]."""
        position = position_ids.to(torch.float64)
        length = float(position.max()) + 1 if self.scaling and self.scaling.kind == "dynamic" else 0.0
        if self.scaling and self.scaling.kind == "linear":
            position = position / self.scaling.factor
        phase = position[..., None] * self.inverse_frequencies(length, position.device)
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
        attn_implementation=NAME,
    )
    model = LlamaForCausalLM(config)
    head = spec.width // spec.heads
    model.model.rotary_emb = ExactRotary(head, spec.rope_theta, spec.max_positions, spec.rope_scaling)
    return model
