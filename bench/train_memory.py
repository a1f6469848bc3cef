"""Peak memory of a training step for each token of its row, 4K to 64K tokens: one process, and a ring of two.

One document with an image in it, gradient checkpointing on, forward and backward with the loss; peak is what torch's
CPU allocator held at once beyond model and inputs, of a ring that of the fuller process. Flat means that nothing grows
with the square of the length, and that logits are never whole. Writes JSON, and the curve `docs/img/train-memory.svg`.
"""

import json
import os
import tempfile
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from harness import peak_bytes, report

from vlm.models.sequence.group import SequenceGroup
from vlm.models.sequence_parallel import spread
from vlm.models.specs import load_preset
from vlm.models.vlm import VisionLanguageModel, make_model
from vlm.train.launch.launch import free_port

LENGTHS = [4096, 8192, 16384, 32768, 65536]
CURVE = Path(__file__).parents[1] / "docs/img/train-memory.svg"


def peak(model: VisionLanguageModel, length: int) -> int:
    """Bytes of a step on a row of that many tokens, all of them labeled but an image's."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(10, 300, (1, length), generator=generator)
    context = slice(7, 7 + model.tokens_per_tile)
    labels = ids.clone()
    ids[0, context], labels[0, context] = model.spec.image_tokens.context_id, -100
    batch = {
        "input_ids": ids,
        "labels": labels,
        "position_ids": torch.arange(length, dtype=torch.float64)[None] / 4,
        "cu_seqlens": torch.tensor([0, length], dtype=torch.int32),
        "pixel_values": torch.randn(1, 3, model.image_size, model.image_size, generator=generator),
    }
    model.zero_grad(set_to_none=False)
    return peak_bytes(lambda: model(**batch, logits=False).loss.backward())


def make() -> VisionLanguageModel:
    torch.manual_seed(0)
    model = make_model(load_preset("tiny-internvl2").with_language(width=32, heads=1, kv_heads=1)).train()
    model.set_gradient_checkpointing(True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def process(rank: int, port: int, file: str) -> None:
    """One of a ring of two."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = make()
    spread(model, SequenceGroup(dist.group.WORLD), "ring")
    peaks = torch.tensor([peak(model, length) for length in LENGTHS])
    dist.all_reduce(peaks, op=dist.ReduceOp.MAX)
    if rank == 0:
        Path(file).write_text(json.dumps(peaks.tolist()))
    dist.destroy_process_group()


def main() -> None:
    single = list(map(partial(peak, make()), LENGTHS))
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "peaks.json")
        mp.spawn(process, (free_port(), file), nprocs=2)
        ring = json.loads(Path(file).read_text())
    rows = [
        {
            "tokens": n,
            "bytes_one_process": one,
            "bytes_ring_of_2": two,
            "bytes_a_token_one_process": one / n,
            "bytes_a_token_ring_of_2": two / n,
        }
        for n, one, two in zip(LENGTHS, single, ring, strict=True)
    ]
    report("train_memory", rows)
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for key, label in (("one_process", "one process"), ("ring_of_2", "each process of a ring of two")):
        axes.plot(LENGTHS, [row[f"bytes_a_token_{key}"] / 1000 for row in rows], marker="o", label=label)
    axes.set(xscale="log", ylim=(0, None), xlabel="tokens of the row", ylabel="peak memory, kB a token")
    axes.set_xticks(LENGTHS, [f"{n // 1024}K" for n in LENGTHS], minor=False)
    axes.minorticks_off()
    axes.legend()
    figure.savefig(CURVE, metadata={"Date": None})


if __name__ == "__main__":
    main()
