"""Training, useful tokens in a second of CPU, against HF Trainer and TRL's SFTTrainer.

The same weights, samples in the same order, 16 of them a step, AdamW with the same rates, float32, one thread; the
encoder is frozen, positions are plain. The rate is constant from the first step, so no warm-up has to be aligned.
Half of the samples have a picture; their texts are of log-normal length (median 50 words, 8 to 400). Ours is
`vlm.train` with all that it writes; the peers' collator encodes with our processor and pads on the right to the
longest. TRL refuses packing and padding-free batches where there are pictures. Each library has a process of its own,
which trains when it is its turn, from the same start each time; what is counted begins with the end of the first step.
The peers put 8 samples into one forward pass, as is their default, and accumulate gradients until there are 16.
Companions: useful and computed tokens, the largest relative difference of the losses of a step.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import report
from peers import checkpoint, environment, make_tokenizer, small, version_in
from PIL import Image

from vlm.core.synth.sentences import SENTENCES

SAMPLES, MICRO, STEPS, RUNS, TOLERANCE = 16, 8, 4, 5, 0.001
ANSWER = "answer "
RECIPE = {
    "name": "peers",
    "title": "a run that others can do too",
    "model": {"start": "pretrained/ours", "preset": "quickstart-v2pe"},
    "data": [{"name": "peers", "file": "train.jsonl", "root": "."}],
    "trainable": ["projector.*", "language_model.*"],
    "optimizer": {
        "lr": 3e-4,
        "weight_decay": 0.01,
        "betas": [0.9, 0.98],
        "clip": 1.0,
        "schedule": "constant",
        "warmup": 0,
        "decay": "trainer",
    },
    "batch": {"samples": SAMPLES, "max_tokens": 8192},
    "max_length": 2048,
    "loss": "token",
    "steps": STEPS,
    "save_every": 1000,
    "max_lost": 0.0,
    "sources": {"": "ours"},
}


def write_data(home: Path) -> None:
    """Write the records, as many as are seen, and their pictures."""
    rng = random.Random(0)
    lines = []
    for number in range(SAMPLES * STEPS):
        words: list[str] = []
        length = min(400, max(8, round(rng.lognormvariate(3.9, 0.8))))
        while len(words) < length:
            words += rng.choice(SENTENCES).split()
        record: dict[str, Any] = {"id": str(number)}
        asked = "What is known?"
        if number % 2:
            record["image"] = f"{number}.png"
            asked = f"<image>\n{asked}"
            Image.effect_noise((112, 112), 60).convert("RGB").save(home / record["image"])
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": " ".join(words[:length])}]
        lines.append(json.dumps({**record, "conversations": turns}) + "\n")
    (home / "train.jsonl").write_text("".join(lines))


class Clock:
    """Seconds of CPU of this process from the end of its first step to that of its last."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def tick(self) -> None:
        self.ends.append(time.process_time())

    def __float__(self) -> float:
        assert len(self.ends) == STEPS
        return self.ends[-1] - self.ends[0]


def train_ours(home: Path) -> dict[str, Any]:
    """Run the recipe; a step ends where its line is written."""
    from vlm.core.config import parse
    from vlm.train.recipe.recipe import Recipe
    from vlm.train.run import loop

    clock = Clock()

    class Ticks(loop.Log):
        def write(self, **line: Any) -> None:
            super().write(**line)
            clock.tick()

    out, before = Path(tempfile.mkdtemp(dir=home)), loop.Log
    loop.Log = Ticks
    try:
        loop.train(parse(RECIPE, Recipe, where="peers"), out, quiet=True)
    finally:
        loop.Log = before
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    useful = [line["useful_tokens"] for line in lines]
    computed = [line["useful_tokens"] / (1 - line["padding_share"]) for line in lines]
    return {
        "seconds": float(clock),
        "losses": [line["loss"] for line in lines],
        "useful": sum(useful[1:]),
        "computed": round(sum(computed[1:])),
    }


def train_peer(home: Path, *, trl: bool) -> dict[str, Any]:
    """Run HF Trainer or TRL's SFTTrainer over the same samples."""
    import transformers
    from torch.nn.utils.rnn import pad_sequence

    from vlm.core.config import parse
    from vlm.models.processor import load_processor
    from vlm.train.recipe.recipe import Recipe
    from vlm.train.run.stream import Stream

    ours = load_processor(home / "pretrained" / "ours")
    stream = Stream(parse(RECIPE, Recipe, where="peers"), ours)
    order = [(number, line) for step in range(STEPS) for _, number, line in stream.picks(step)]
    made: list[tuple[int, int]] = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        samples = []
        for row in rows:
            sample = stream.files[0][row["line"]]
            samples.append(ours.encode(sample.messages, strides=None, generation_prompt=False, id=sample.id))
        ids, labels = ([torch.from_numpy(getattr(s, k)) for s in samples] for k in ("input_ids", "labels"))
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }
        made.append((sum(map(len, ids)), batch["input_ids"].numel()))
        pixels = [ours.pixels(s.pixels) for s in samples if s.pixels is not None]
        return batch | ({"pixel_values": torch.cat(pixels)} if pixels else {})

    clock = Clock()

    class Ticks(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    settings = {
        "output_dir": tempfile.mkdtemp(dir=home),
        "per_device_train_batch_size": MICRO,
        "gradient_accumulation_steps": SAMPLES // MICRO,
        "max_steps": STEPS,
        "learning_rate": RECIPE["optimizer"]["lr"],
        "weight_decay": 0.01,
        "adam_beta2": 0.98,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    model = transformers.AutoModelForImageTextToText.from_pretrained(home / "hf", dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    rows = [{"line": line, "images": []} for _, line in order]
    common = {"model": model, "data_collator": collate, "callbacks": [Ticks()]}
    if not trl:
        trainer = transformers.Trainer(args=transformers.TrainingArguments(**settings), train_dataset=rows, **common)
    else:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        processor = transformers.AutoProcessor.from_pretrained(home / "hf")
        data = Dataset.from_list(rows)
        arguments = SFTConfig(max_length=None, **settings)
        trainer = SFTTrainer(args=arguments, train_dataset=data, processing_class=processor, **common)
    trainer.train()
    first = SAMPLES // MICRO
    useful, computed = (sum(row[k] for row in made[first : STEPS * first]) for k in (0, 1))
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"seconds": float(clock), "losses": losses, "useful": useful, "computed": computed}


class Side:
    """A library in a process of its own, which trains each time it is asked."""

    def __init__(self, name: str, python: Path | str, home: Path):
        settings = {"OMP_NUM_THREADS": "1", "VLM_HOME": str(home), "HF_HUB_OFFLINE": "1"}
        self.name, self.errors = name, (home / f"{name}.log").open("w+")
        self.process = subprocess.Popen(
            [python, __file__, str(home), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | settings,
        )

    def __call__(self) -> dict[str, Any]:
        """Train once; return seconds, losses and tokens."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("train\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                found: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
                return found
        self.errors.seek(0)
        raise SystemExit(f"{self.name} has failed: {self.errors.read()[-4000:]}")

    def end(self) -> None:
        """Let it end."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    trl = environment("trl==1.16.0")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        ours_at, _ = checkpoint(small(), home, make_tokenizer(home), dtype=torch.float32)
        (home / "pretrained").mkdir()
        ours_at.rename(home / "pretrained" / "ours")
        write_data(home)
        sides = {
            "ours": Side("ours", sys.executable, home),
            "HF Trainer": Side("trainer", sys.executable, home),
            "TRL SFTTrainer": Side("trl", trl, home),
        }
        found = [{name: side() for name, side in sides.items()} for _ in range(RUNS)]
        for side in sides.values():
            side.end()
    seconds = {name: min(one[name]["seconds"] for one in found) for name in sides}
    mine, rows = found[0]["ours"], []
    for name in list(sides)[1:]:
        peer = found[0][name]
        assert peer["useful"] == mine["useful"], (name, peer["useful"], mine["useful"])
        apart = max(abs(a - b) / a for a, b in zip(mine["losses"], peer["losses"], strict=True))
        assert apart < TOLERANCE, (name, mine["losses"], peer["losses"])
        assert mine["losses"][-1] < mine["losses"][0]
        rows.append(
            {
                "peer": name,
                "steps": STEPS - 1,
                "useful_tokens": mine["useful"],
                "ours_tokens_computed": mine["computed"],
                "peer_tokens_computed": peer["computed"],
                "first_loss": mine["losses"][0],
                "last_loss": mine["losses"][-1],
                "largest_loss_difference": apart,
                "ours_cpu_min_s": seconds["ours"],
                "peer_cpu_min_s": seconds[name],
                "ours_useful_tokens_per_cpu_s": mine["useful"] / seconds["ours"],
                "peer_useful_tokens_per_cpu_s": mine["useful"] / seconds[name],
                "times_faster": seconds[name] / seconds["ours"],
                "cpu_ratio": seconds["ours"] / seconds[name],
                "runs": RUNS,
            }
        )
    report("peer_trainers", rows, version_in(trl, "transformers", "accelerate", "trl"))


def answer_orders(home: Path, name: str) -> None:
    """Train for each line that comes, and say what was measured."""
    torch.set_num_threads(1)
    train = train_ours if name == "ours" else partial(train_peer, trl=name == "trl")
    for _ in sys.stdin:
        print(ANSWER + json.dumps(train(home)), flush=True)


if __name__ == "__main__":
    answer_orders(Path(sys.argv[1]), sys.argv[2]) if len(sys.argv) > 1 else main()
