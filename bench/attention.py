"""Attention of a packed row: one segment for each document, against a dense block-diagonal mask; forward and backward.

The peer's mask is made outside the clock, once. Useful work: pairs of tokens of one document, in n x n pairs. Packs are
of the size that the published recipes train on (4,096 and 8,192 tokens, even and ragged); the last two are shorter than
any of them, where a CPU kernel's smaller blocks cost more for each pair. A ratio on a CPU shows the algorithm, not the
speed on a GPU. Companion: peak bytes that torch's allocator held beyond the inputs, in all and for each token.
"""

import torch
import torch.nn.functional as F
from harness import paired, peak_bytes, report

from vlm.models.attention import varlen

HEADS, KV_HEADS, SIZE = 4, 2, 64
PACKS = {
    "2 x 2,048": [2048] * 2,
    "4 x 1,024": [1024] * 4,
    "8 x 1,024": [1024] * 8,
    "ragged": [2600, 1800, 1300, 900, 640, 480, 320, 152],
    "8 x 512": [512] * 8,
    "4 x 256": [256] * 4,
}


def main() -> None:
    rows = []
    for name, lengths in PACKS.items():
        n = sum(lengths)
        generator = torch.Generator().manual_seed(n)
        query, *others = (
            torch.randn(1, heads, n, SIZE, generator=generator, requires_grad=True)
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        )
        inputs = (query, *others)
        borders = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32)
        document = torch.repeat_interleave(torch.tensor(lengths))
        mask = (document[:, None] == document) & torch.ones(n, n, dtype=torch.bool).tril()

        def ours(inputs=inputs, borders=borders):
            out = varlen(*inputs, None, borders, None)
            return out, *torch.autograd.grad(out.sum(), inputs)

        def peer(inputs=inputs, mask=mask):
            out = F.scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=True)
            return out, *torch.autograd.grad(out.sum(), inputs)

        error = max((a - b).abs().max().item() for a, b in zip(ours(), peer(), strict=True))
        assert error < 1e-4, error
        bytes_ours, bytes_peer = peak_bytes(ours), peak_bytes(peer) + mask.nbytes
        row = {
            "pack": name,
            "tokens": n,
            "useful_work_ratio": n**2 / sum(length**2 for length in lengths),
            **paired(ours, peer, 5),
            "peak_bytes_ours": bytes_ours,
            "peak_bytes_peer": bytes_peer,
            "bytes_a_token_ours": bytes_ours / n,
            "bytes_a_token_peer": bytes_peer / n,
            "max_difference": error,
        }
        rows.append(row)
    report("attention", rows)


if __name__ == "__main__":
    main()
