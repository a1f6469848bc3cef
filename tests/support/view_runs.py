"""Runs for the pages of `vlm view`: a training that is being written, and evaluations with any number of samples."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from support import report_run
from vlm.eval.report.write import write_report

HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'

WRITER = """
import json, math, random, sys, time
path, began = sys.argv[1], int(sys.argv[2])
random.seed(1)
for step in range(began, 4000):
    loss = 1.2 + 4 * math.exp(-step / 150) + random.gauss(0, 0.08)
    line = {"step": step, "loss": loss, "lr": 1e-3 * min(1, step / 60) * 0.5 * (1 + math.cos(math.pi * step / 4000)),
            "grad_norm": 1 + random.random(), "useful_tokens": 4000, "samples": 15 if step % 100 == 7 else 16,
            "tokens_per_s": 2000 + 60 * random.random(), "seconds": 2 + random.random() / 9,
            "memory_gb": 3.1 + step / 5000, "data_wait_s": random.random() / 20}
    text = json.dumps(line) + "\\n"
    with open(path, "a") as out:
        out.write(text[:30])
        out.flush()
        time.sleep(0.1 if step >= began + 400 else 0)
        out.write(text[30:])
time.sleep(3600)
"""


def write_training(folder: Path, steps: int = 4000) -> subprocess.Popen:
    """Start a process that writes a training as it goes: 400 steps at once, then ten a second, in torn pieces."""
    folder.mkdir(parents=True)
    record = {"recipe": {"name": folder.name, "steps": steps, "batch": {"samples": 16}}}
    (folder / "recipe.json").write_text(json.dumps(record))
    reason = f"/data/{HOSTILE}.jpg: no such file"
    lost = [
        {"step": k, "id": f"a:{k}", "what": "dropped", "stage": "media", "reason": reason} for k in range(7, 400, 100)
    ]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lost))
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder / "metrics.jsonl"), "0"])
    note = {"purpose": f"vlm train --recipe {folder.name}", "pid": writer.pid, "host": socket.gethostname()}
    (folder / ".lock.json").write_text(json.dumps(note))
    return writer


def draw_digits(folder: Path) -> list[str]:
    folder.mkdir(parents=True)
    names = []
    for digit in range(10):
        image = Image.new("RGB", (120, 120), ("#f2efe8", "#dfe8f2")[digit % 2])
        ImageDraw.Draw(image).text((38, 10), str(digit), fill="#223", font_size=90)
        image.save(folder / f"{digit}.png")
        names.append(str(folder / f"{digit}.png"))
    return names


def write_samples(root: Path, n: int) -> None:
    """Write two evaluations of one benchmark with `n` samples each; words of a prompt are drawn from 2,000."""
    images = draw_digits(root / "dataset/digits")
    rng = random.Random(3)
    words = ["".join(rng.choice("bcdfgklmnprst") + rng.choice("aeiou") for _ in range(3)) for _ in range(2000)]
    prompts = [" ".join(rng.choices(words, k=60)) for _ in range(n)]
    for model, skill in (("v2pe-32k", 0.8), ("internvl2-2b", 0.6)):
        rows = []
        for i in range(n):
            shown = [images[(i * 7 + k) % 10] for k in range(3)]
            digit, good = (i * 7 + 2) % 10, rng.random() < skill
            prompt = f"<image>{prompts[i]}<image><image> Which digit is in the last picture?"
            about = {"group": ("retrieval-image", "count-image", "reason-image")[i % 3]}
            about |= {"meta": {"context_length": 900 + i}, "asked": [2], "tokens": 900 + i}
            answer = str(digit if good else (digit + 1) % 10)
            if i == 5:
                answer = HOSTILE
            rows.append(
                report_run.row("digit-haystack", f"q{i}", shown, prompt, str(digit), answer, float(good), **about)
            )
        folder = root / f"runs/study/eval/{model}/digit-haystack/stride64"
        report_run.evaluation(folder, rows, "digit-haystack", model, stride=64)


def make_home(root: Path, n: int = 20_000) -> Path:
    """Write a home with two runs and a report; return it. Pictures are below dataset/."""
    write_samples(root, n)
    run = report_run.make_run(root / "runs")
    (root / "runs/media").rename(root / "dataset/discs")
    for path in run.rglob("results.jsonl"):
        path.write_text(path.read_text().replace(str(root / "runs/media"), str(root / "dataset/discs")))
    before = os.environ.get("VLM_HOME")
    os.environ["VLM_HOME"] = str(root)
    try:
        write_report([run], run / "report/index.html", samples_per_benchmark=12)
    finally:
        if before is None:
            del os.environ["VLM_HOME"]
        else:
            os.environ["VLM_HOME"] = before
    return root
