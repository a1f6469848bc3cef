"""Masked, chunked cross-entropy against full logits: V = 92,553, 70 % of labels masked, D = 512, forward and backward.

A ratio on a CPU shows the algorithm, not the speed on a GPU. Companion: peak bytes of live tensors beyond the inputs.
"""

import torch
import torch.nn.functional as F
from harness import paired, report

from vlm.models.loss import weighted_cross_entropy

V, D = 92_553, 512


def main() -> None:
    rows = []
    for length in (4096, 8192):
        torch.manual_seed(0)
        hidden = torch.randn(1, length, D, requires_grad=True)
        weight = (torch.randn(V, D) * 0.02).requires_grad_()
        target = torch.randint(0, V, (1, length))
        target[torch.rand(1, length) < 0.7] = -100
        weights = (target != -100).float()

        def ours(hidden=hidden, weight=weight, target=target, weights=weights):
            loss = weighted_cross_entropy(hidden, lambda h: F.linear(h, weight), target, weights) / weights.sum()
            return loss, *torch.autograd.grad(loss, (hidden, weight))

        def peer(hidden=hidden, weight=weight, target=target):
            loss = F.cross_entropy(F.linear(hidden, weight)[0].float(), target[0], ignore_index=-100)
            return loss, *torch.autograd.grad(loss, (hidden, weight))

        for a, b in zip(ours(), peer(), strict=True):
            assert torch.allclose(a, b, atol=1e-5, rtol=1e-4)
        labelled = int((target != -100).sum())
        full, chunk = length * V * 4, min(1024, labelled) * V * 4
        rows.append(
            {
                "tokens": length,
                "labelled": labelled,
                "logits_bytes_peer": full,
                "logits_bytes_ours": chunk,
                **paired(ours, peer, 3),
            }
        )
    report("loss", rows)


if __name__ == "__main__":
    main()
