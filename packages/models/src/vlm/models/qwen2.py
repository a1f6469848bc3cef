"""Qwen2 (InternVL2.5, InternVL3): a Llama with biases on q, k and v alone; its output head may be tied or not."""

from typing import Any

from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2RMSNorm

from vlm.models.language import BlockedNorm, ExactForward, shared_config, with_exact_parts
from vlm.models.specs import LanguageSpec


class ExactQwen2Attention(ExactForward, Qwen2Attention):
    """Qwen2's parameters with the forward pass of `ExactForward`."""


class ExactQwen2Norm(BlockedNorm, Qwen2RMSNorm):
    """Qwen2's norm."""


def make_qwen2(spec: LanguageSpec) -> Any:
    """Make a Qwen2 without a sliding window (no released model has one), initialized as transformers does."""
    config = Qwen2Config(**shared_config(spec), use_sliding_window=False)
    return with_exact_parts(Qwen2ForCausalLM(config), spec, ExactQwen2Attention, ExactQwen2Norm)
