"""A teacher-forced evaluation of one long sample: in one process, whose attention goes block by block, and over rings.

    python tests/support/long_ring.py --tokens 16384 --processes 1 2 4 [--out result.json]

With --out, each number of processes is written when it is done, and not run again by the same command.
Every process computes with one thread, so that minutes of processor time can be added. Memory is the growth of a
process's peak while it computes: libraries, weights and the sample itself are there before.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where this file is started by itself

LANGUAGE = {"width": 32, "heads": 1, "kv_heads": 1, "depth": 2, "mlp_width": 64}
STRIDE = 1.0
ANSWER = " ".join(["the hidden word is vale"] * 4)


def make_model(folder: Path) -> None:
    """Write a tiny model whose answers depend on every input."""
    from support.tiny_models import TOKENIZERS, lively_model
    from vlm.models.checkpoint.load import save_model

    save_model(lively_model(**LANGUAGE), folder, tokenizer=TOKENIZERS["tiny-internvl2"])


def make_sample(model: Path, tokens: int, folder: Path) -> Any:
    """Return one encoded sample of exactly so many tokens: 16 pictures in a text, a question, the answer."""
    import numpy as np
    from PIL import Image

    from vlm.core.sample.records import Message
    from vlm.eval.backends.native import Checkpoint
    from vlm.eval.backends.teacher_forcing import TeacherForcedBackend

    backend = TeacherForcedBackend(Checkpoint(model), stride=STRIDE)
    pictures = []
    for i in range(16):
        pixels = np.random.default_rng(i).integers(0, 256, (56, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        pictures.append({"type": "image", "path": str(folder / f"{i}.png")})

    def sample(words: int) -> Any:
        parts: list[Any] = []
        for i, picture in enumerate(pictures):
            more = words // 16 + (words % 16 if i == 0 else 0)
            parts += [picture, {"type": "text", "text": " a" * more + f" part {i} ends\n"}]
        question: Message = {"role": "user", "content": parts}
        answer: Message = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
        return backend.encode("long", [question, answer])

    few = len(sample(1000)), len(sample(2000))
    each = (few[1] - few[0]) / 1000
    words = round((tokens - few[0]) / each) + 1000
    found = sample(words)
    while len(found) != tokens and words > 0:
        words += round((tokens - len(found)) / each) or (1 if len(found) < tokens else -1)
        found = sample(words)
    return found


def memory() -> tuple[int, int]:
    """Return (now, peak) bytes of this process in memory."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    return now, peak


def rank_main(model: Path, sample_file: Path, out: Path) -> None:
    """Compute one process's share; write its predictions, logits, memory and times."""
    import torch

    from vlm.eval.backends.native import Checkpoint
    from vlm.eval.backends.teacher_forcing import RingBackend, TeacherForcedBackend
    from vlm.train.run.processes import meshed, world

    torch.set_num_threads(1)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    checkpoint = Checkpoint(model)
    sample = pickle.loads(sample_file.read_bytes())
    logits: dict[int, list[float]] = {}

    def keep(_: Any, given: Any, made: Any) -> None:
        for row in made.reshape(-1, made.shape[-1]).tolist():
            logits[len(logits)] = row

    if size > 1:
        ring = RingBackend(checkpoint, stride=STRIDE, group=meshed(world(), size).sequence)
        compute = ring.share
    else:
        compute = TeacherForcedBackend(checkpoint, stride=STRIDE).predicted
    checkpoint.model.language_model.lm_head.register_forward_hook(keep)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, began, spent = memory()[0], time.perf_counter(), time.process_time()
    predicted = compute(sample)
    found = {"predicted": predicted, "logits": list(logits.values()), "bytes": memory()[1] - before}
    found |= {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - spent}
    (out / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


def measure(tokens: int, processes: list[int], say: Any = print, out_file: Path | None = None) -> list[dict[str, Any]]:
    """Run the sample in each number of processes; return what they predicted, their bytes and their times."""
    from vlm.train.launch.launch import launch

    rows: list[dict[str, Any]] = json.loads(out_file.read_text()) if out_file and out_file.exists() else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        sample = make_sample(folder / "model", tokens, folder)
        assert len(sample) == tokens, len(sample)
        (folder / "sample").write_bytes(pickle.dumps(sample))
        done = {(row["tokens"], row["processes"]) for row in rows}
        for size in (size for size in processes if (tokens, size) not in done):
            out = folder / f"out-{size}"
            out.mkdir()
            command = [sys.executable, __file__, "--rank", str(folder / "model"), str(folder / "sample"), str(out)]
            code = launch(command, size, out) if size > 1 else subprocess.run(command).returncode
            assert code == 0, "\n".join(path.read_text()[-2000:] for path in out.glob("*.log"))
            ranks = [json.loads((out / f"{rank}.json").read_text()) for rank in range(size)]
            logits = sorted(row for rank in ranks for row in rank["logits"])
            row = {"tokens": tokens, "processes": size, "predicted": ranks[0]["predicted"], "logits": logits}
            row |= {key: [rank[key] for rank in ranks] for key in ("bytes", "seconds", "processor_seconds")}
            rows.append(row)
            if out_file:
                out_file.write_text(json.dumps(rows) + "\n")
            seconds, spent = max(row["seconds"]), sum(row["processor_seconds"])
            mb = ", ".join(f"{n / 1e6:.1f}" for n in row["bytes"])
            say(
                f"{tokens:,} tokens, {size} processes: {mb} MB a process, {seconds:.1f} s,"
                f" {spent:.1f} s of processor time, largest difference of a logit {difference(rows[0], row):.2g}",
                flush=True,
            )
    return rows


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference of a logit between two results; logits are in the same order."""
    assert len(one["logits"]) == len(other["logits"]) > 0
    pairs = zip(one["logits"], other["logits"], strict=True)
    return max(abs(a - b) for x, y in pairs for a, b in zip(x, y, strict=True))


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = measure(asked.tokens, asked.processes, out_file=asked.out)
    for row in rows[1:]:
        assert row["predicted"] == rows[0]["predicted"], "another prediction"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank_main(*map(Path, sys.argv[2:5]))
    else:
        main()
