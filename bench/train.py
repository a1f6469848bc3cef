"""Training steps on packed rows, against the same model on right-padded rows: forward, backward and AdamW.

48 text documents of log-normal length (median 300 tokens, 16 to 2,048), a step takes them all: packed by best fit into
rows of 2,048 with a border at each document, or one document a row padded to 2,048 (one sample at a time), or rows of
8 documents padded to the longest. All three have one loss, its mean over all labels, and the same gradients.
A ratio on a CPU shows the algorithm, not the speed on a GPU. Companions: useful / computed tokens; FLOPs of a packed
step as torch counts them, and their share of the product of two 2,048 x 2,048 matrices measured here.
"""

import time
from collections.abc import Callable, Iterator

import torch
from harness import paired, report
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode

from vlm.core.sample.packing import pack
from vlm.models.specs import load_preset
from vlm.models.vlm import make_model

DOCUMENTS, LONGEST, BATCH = 48, 2048, 8
Rows = list[dict[str, Tensor]]


def packed(documents: list[Tensor]) -> Rows:
    """Rows of at most LONGEST tokens; cu_seqlens marks the documents."""
    lengths = [len(d) for d in documents]
    rows = []
    for members in pack(lengths, [0] * len(lengths), LONGEST, 1, len(lengths)):
        chosen = [documents[i] for i in members]
        borders = torch.tensor([0, *(len(d) for d in chosen)]).cumsum(0).to(torch.int32)
        ids = torch.cat(chosen)[None]
        rows.append({"input_ids": ids, "labels": ids, "cu_seqlens": borders})
    return rows


def padded(documents: list[Tensor], size: int, length: int | None) -> Rows:
    """Rows of `size` documents, padded on the right to `length` or to the longest of them."""
    rows = []
    for first in range(0, len(documents), size):
        chosen = documents[first : first + size]
        most = length or max(map(len, chosen))
        ids = torch.stack([torch.nn.functional.pad(d, (0, most - len(d)), value=1) for d in chosen])
        mask = pad_sequence([torch.ones_like(d) for d in chosen], batch_first=True)
        mask = torch.nn.functional.pad(mask, (0, most - mask.shape[1]))
        rows.append({"input_ids": ids, "labels": ids.masked_fill(mask == 0, -100), "attention_mask": mask})
    return rows


def gemm_peak() -> float:
    """FLOP/s of the product of two square matrices, the best of five."""
    a = torch.randn(2048, 2048)

    def seconds() -> float:
        began = time.perf_counter()
        a @ a
        return time.perf_counter() - began

    return 2 * 2048**3 / min(seconds() for _ in range(6))


def stepper(rows: Rows, labels: int) -> Callable[[], Iterator[Tensor]]:
    """A whole step of a fresh model; returns the gradients' parameters."""
    torch.manual_seed(0)
    model = make_model(load_preset("quickstart-v2pe"))
    model.encoder.requires_grad_(False)
    trained = [p for name, p in model.named_parameters() if name.startswith("language_model")]
    optimizer = torch.optim.AdamW(trained, lr=0.0)

    def step() -> Iterator[Tensor]:
        optimizer.zero_grad()
        for row in rows:
            loss = model(**row, loss_denominator=labels, logits=False).loss
            assert loss is not None
            loss.backward()
        optimizer.step()
        return (p.grad for p in trained if p.grad is not None)

    return step


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.exp(torch.randn(DOCUMENTS, generator=generator) * 0.8 + 5.7).long().clamp(16, LONGEST)
    documents = [torch.randint(1, 1024, (int(n),), generator=generator) for n in lengths]
    useful = int(lengths.sum())
    labels = useful - DOCUMENTS
    ways = {
        "one sample a row, padded to 2,048": padded(documents, 1, LONGEST),
        f"{BATCH} samples a row, padded to the longest": padded(documents, BATCH, None),
    }
    best = packed(documents)
    ours = stepper(best, labels)
    with FlopCounterMode(display=False) as counter:
        ours()
    peak, flops = gemm_peak(), counter.get_total_flops()
    rows = []
    for name, theirs in ways.items():
        peer = stepper(theirs, labels)
        for a, b in zip(ours(), peer(), strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-5), (a - b).abs().max()
        times = paired(ours, peer, 3)
        rows.append(
            {
                "peer": name,
                "useful_tokens": useful,
                "useful_share_ours": useful / sum(r["input_ids"].numel() for r in best),
                "useful_share_peer": useful / sum(r["input_ids"].numel() for r in theirs),
                **times,
                "useful_tokens_per_s_ours": useful / times["ours_median_s"],
                "flops_a_step": flops,
                "gemm_peak_flops": peak,
                "share_of_gemm_peak": flops / times["ours_median_s"] / peak,
            }
        )
    report("train", rows)


if __name__ == "__main__":
    main()
