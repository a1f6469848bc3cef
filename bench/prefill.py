"""Prefill of one long prompt: only the last position's logits, against all logits and eager attention.

The peer follows the published modeling code (V2PE, InternLM2): n x n scores with a float32 softmax, then logits of all
positions in float32. V = 92,553. A ratio on a CPU shows the algorithm, not the speed on a GPU.
Companion: peak bytes that torch's allocator held beyond weights and inputs, in all and for each token; `chunked` is
ours in chunks of 512 tokens, `peer_without_logits` shows what its attention takes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from harness import paired, peak_bytes, report
from torch import Tensor
from transformers import AttentionInterface

from vlm.models import load_preset
from vlm.models.checkpoint.load import initialized

CHUNK = 512


def eager(
    _: Any, query: Tensor, key: Tensor, value: Tensor, __: Any, scaling: float, **___: Any
) -> tuple[Tensor, None]:
    """[B, H, n, D] -> [B, n, H, D] by way of the whole score matrix."""
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    n = query.shape[2]
    hidden = torch.full((n, n), torch.finfo(query.dtype).min).triu(1)
    weights = (query @ key.transpose(2, 3) * scaling + hidden).softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), None


AttentionInterface.register("published_eager", eager)  # no mask function of that name: `eager` makes its own


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    config = model.language_model.config
    name, config._attn_implementation = config._attn_implementation, "published_eager"
    try:
        yield
    finally:
        config._attn_implementation = name


@torch.inference_mode()
def main() -> None:
    shape = {"vocab": 92_553, "width": 256, "depth": 2, "heads": 8, "kv_heads": 4, "mlp_width": 512}
    model = initialized(load_preset("tiny-internvl2").with_language(**shape), seed=0).eval()
    rows = []
    for n in (512, 1024, 2048, 4096):
        ids = torch.randint(10, 300, (1, n), generator=torch.Generator().manual_seed(n))
        place = torch.arange(n, dtype=torch.float64)[None] * 0.5  # V2PE: fractions of a position

        def ours(chunk=8192, ids=ids, place=place):
            settings = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
            return model.generate(ids, position_ids=place, prefill_chunk=chunk, **settings).logits[0]

        def chunked(ours=ours):
            return ours(CHUNK)

        def peer(ids=ids, place=place):
            with eager_attention(model):
                return model(ids, position_ids=place).logits.float()[:, -1]

        def eager_body(ids=ids, place=place):
            with eager_attention(model):
                return model.decode(model.embed(ids), attention_mask=None, position_ids=place, use_cache=False)

        expected = peer()
        error = max((call() - expected).abs().max().item() for call in (ours, chunked))
        assert error < 1e-5, error
        calls = {"ours": ours, "chunked": chunked, "peer": peer, "peer_without_logits": eager_body}
        peaks = {name: peak_bytes(call) for name, call in calls.items()}
        rows.append(
            {
                "tokens": n,
                "max_logit_difference": error,
                **{f"{name}_peak_bytes": peak for name, peak in peaks.items()},
                **{f"{name}_bytes_per_token": peak / n for name, peak in peaks.items()},
                **paired(ours, peer, 3),
            }
        )
    first, last = rows[0], rows[-1]
    for name in ("ours", "chunked"):  # flat in n, up to the part that does not depend on n
        assert last[f"{name}_bytes_per_token"] <= first[f"{name}_bytes_per_token"]
    name = "peer_without_logits_bytes_per_token"
    assert last[name] > 3 * first[name]  # n x n scores
    report("prefill", rows)


if __name__ == "__main__":
    main()
