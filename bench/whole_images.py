"""ConvLLaVA in miniature on long pictures: the same data padded to squares and whole, with the same budget of tokens.

A picture is a long strip of grey noise with one small colored disk; the answer is its color. Both models start from the
same fresh weights and see the same samples in the same order. Times are CPU seconds of this process.

    OMP_NUM_THREADS=1 python bench/whole_images.py --steps 600
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

COLORS = {"red": "#e02020", "green": "#20a020", "blue": "#2040e0", "yellow": "#e8d020", "white": "#f8f8f8"}
VISION = {"kind": "convnext", "depths": [1, 1, 1, 1, 1], "widths": [8, 16, 32, 64, 96], "layer_scale_init": 0.1}
LANGUAGE = {"width": 96, "depth": 2, "heads": 4, "kv_heads": 4, "mlp_width": 192, "max_positions": 512}


def draw(folder: Path, name: str, rng: random.Random) -> dict[str, object]:
    """Draw one picture; return its record."""
    from PIL import Image, ImageDraw

    length, width, lying = rng.randint(500, 900), rng.randint(56, 90), rng.random() < 0.5
    size = (length, width) if lying else (width, length)
    picture = Image.effect_noise(size, 20).convert("RGB")
    color, radius = rng.choice(list(COLORS)), 24
    x, y = (rng.randint(radius, side - radius) for side in size)
    ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLORS[color])
    picture.save(folder / "images" / name)
    turns = [{"from": "human", "value": "<image>\nWhich color?"}, {"from": "gpt", "value": color}]
    return {"id": name, "image": f"images/{name}", "conversations": turns}


def run(home: Path, rule: str, steps: int, tests: list[dict[str, object]]) -> dict[str, object]:
    """Train with an image rule and answer the questions that were held back."""
    from vlm.core.sample.records import image, text
    from vlm.models.answers import answer
    from vlm.models.checkpoint.load import load_model
    from vlm.models.processor import load_processor
    from vlm.train.recipe.recipe import Recipe
    from vlm.train.run.loop import train

    recipe = Recipe.model_validate(
        {
            "name": rule,
            "title": "long pictures",
            "model": {"start": "pretrained/start", "preset": "tiny-convllava", "spec": {"image_rule": rule}},
            "data": [{"name": "disks", "file": "dataset/disks/train.jsonl", "root": "dataset/disks"}],
            "trainable": ["*"],
            "optimizer": {"lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.01, "warmup": 0.05},
            "batch": {"samples": 16, "max_tokens": 1024},
            "steps": steps,
            "max_length": 256,
            "sources": {"": "ours"},
        }
    )
    began = time.process_time()
    folder = train(recipe, home / "runs" / rule, quiet=True)
    seconds = time.process_time() - began
    lines = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    model, processor = load_model(folder), load_processor(folder)
    root, right, tokens = home / "dataset" / "disks", 0, 0
    for start in range(0, len(tests), 50):
        part = tests[start : start + 50]
        prompts = []
        for record in part:
            question = record["conversations"][0]["value"].removeprefix("<image>\n")
            content = [image(root / str(record["image"])), text("\n" + question)]
            prompts.append(processor.encode([{"role": "user", "content": content}]))
        tokens += sum(prompt.n_tiles * processor.tokens_per_tile for prompt in prompts)
        replies = answer(model, processor, prompts, max_new_tokens=4)
        right += sum(reply.text == one["conversations"][1]["value"] for reply, one in zip(replies, part, strict=True))
    loss = sum(line["loss"] for line in lines[-20:]) / len(lines[-20:])
    return {
        "rule": rule,
        "accuracy": right / len(tests),
        "questions": len(tests),
        "image_tokens": tokens / len(tests),
        "loss_of_last_20_steps": round(loss, 4),
        "cpu_seconds_training": round(seconds, 1),
    }


def main() -> None:
    """Make the data and the start, train twice, print one line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        os.environ["VLM_HOME"] = temporary

        import torch

        from vlm.core.synth.train_tokenizer import train_tokenizer
        from vlm.models.checkpoint.assemble import build
        from vlm.models.checkpoint.load import save_model
        from vlm.models.specs import ModelSpec, load_preset

        torch.set_num_threads(1)
        folder, rng = home / "dataset" / "disks", random.Random(options.seed)
        (folder / "images").mkdir(parents=True)
        records = [draw(folder, f"{i}.png", rng) for i in range(16 * options.steps // 4 + 400)]
        tests, records = records[:400], records[400:]
        (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        train_tokenizer(home / "tokenizer", [folder / "train.jsonl"], vocab_size=400)
        tiny = load_preset("tiny-convllava").model_dump()
        rule = {**tiny["image_rule"], "size": 256}
        language = {**tiny["language"], **LANGUAGE}
        spec = ModelSpec.model_validate(
            {**tiny, "system": "", "vision": VISION, "image_rule": rule, "language": language}
        )
        start = build(spec, tokenizer=home / "tokenizer", seed=options.seed)
        save_model(start, home / "pretrained" / "start", tokenizer=home / "tokenizer")
        for name in ("pad", "whole"):
            print(json.dumps(run(home, name, options.steps, tests)), flush=True)


if __name__ == "__main__":
    main()
