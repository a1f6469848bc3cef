"""Masked, chunked cross-entropy against the logits of all positions: V = 92,553, 70 % of labels masked, D = 512.

Forward and backward. The peer follows the published modeling code, with its shifted copy of the logits.
A ratio on a CPU shows the algorithm, not the speed on a GPU. Companion: peak bytes that torch's allocator held beyond
the inputs; the gradients of the head (190 MB in float32) are among them on both sides. At 8,192 tokens only memory is
measured. bfloat16 is what the three systems train in; in float32 no exact method gets past the ratio of the products,
10/3, and what the peer loses to memory.
"""

import itertools

import torch
import torch.nn.functional as F
from harness import paired, peak_bytes, report

from vlm.models.loss import LossHead, weighted_cross_entropy

V, D = 92_553, 512


def main() -> None:
    rows = []
    for length, dtype in itertools.product((4096, 8192), (torch.bfloat16, torch.float32)):
        torch.manual_seed(0)
        hidden = torch.randn(1, length, D, dtype=dtype, requires_grad=True)
        head = LossHead(D, V, bias=False, dtype=dtype)
        weight = head.weight
        torch.nn.init.normal_(weight, std=0.02)
        target = torch.randint(0, V, (1, length))
        target[torch.rand(1, length) < 0.7] = -100
        target[:, -1] = -100  # targets are shifted already: the last position has none
        weights = (target != -100).float()

        def ours(hidden=hidden, head=head, target=target, weights=weights):
            loss = weighted_cross_entropy(hidden, head, target, weights) / weights.sum()
            return loss, *torch.autograd.grad(loss, (hidden, head.weight))

        def peer(hidden=hidden, weight=weight, target=target):
            logits = F.linear(hidden, weight).float()
            shifted = logits[:, :-1].contiguous().view(-1, V)  # the copy that the published modeling code makes
            loss = F.cross_entropy(shifted, target[0, :-1], ignore_index=-100)
            return loss, *torch.autograd.grad(loss, (hidden, weight))

        found: list[tuple] = []
        bytes_ours = peak_bytes(lambda ours=ours, found=found: found.append(ours()))
        bytes_peer = peak_bytes(lambda peer=peer, found=found: found.append(peer()))
        for a, b in zip(*found, strict=True):
            if dtype == torch.float32:
                assert torch.allclose(a, b, atol=1e-5, rtol=1e-4)
            assert (a - b).norm() < (1e-5 if dtype == torch.float32 else 5e-3) * b.norm()
        del found
        row = {
            "tokens": length,
            "precision": str(dtype).removeprefix("torch."),
            "labelled": int((target != -100).sum()),
            "peak_bytes_ours": bytes_ours,
            "peak_bytes_peer": bytes_peer,
            "bytes_ratio": bytes_peer / bytes_ours,
        }
        rows.append(row | (paired(ours, peer) if length == 4096 else {}))
    report("loss", rows)


if __name__ == "__main__":
    main()
