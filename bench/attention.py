"""Attention of a packed row: one segment for each document, against a dense block-diagonal mask; forward and backward.

The peer's mask is made outside the clock, once. Useful work: pairs of tokens of one document, in n x n pairs.
A ratio on a CPU shows the algorithm, not the speed on a GPU. Companion: peak bytes that torch's allocator held beyond
the inputs, in all and for each token.
"""

import torch
import torch.nn.functional as F
from harness import paired, peak_bytes, report

from vlm.models.attention import varlen

HEADS, KV_HEADS, SIZE = 4, 2, 64


def main() -> None:
    rows = []
    for documents, length in ((4, 256), (4, 512), (4, 1024), (8, 512), (2, 2048)):
        n = documents * length
        generator = torch.Generator().manual_seed(n)
        query, *others = (
            torch.randn(1, heads, n, SIZE, generator=generator, requires_grad=True)
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        )
        inputs = (query, *others)
        borders = torch.arange(0, n + 1, length, dtype=torch.int32)
        document = torch.arange(n) // length
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
            "tokens": n,
            "documents": documents,
            "useful_work_ratio": float(documents),
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
