"""The published models at their published size, with random weights: memory and time of what a user does with them.

    python bench/full_size.py [--only internvl2-2b convllava-1536 internvl-chat-v1-2] [--steps chat ...] [--place DIR]

Each step is a process of its own. `gb` is by how much its own memory grew at most from the moment the libraries and the
weights were there (`load`: with the pages of the mapped weights; `lora`: the whole process), `torch_gb` what torch held
of it at once, without what malloc keeps; `planned` is what `vlm plan` says. InternVL2-2B and ConvLLaVA-7B are written
in bfloat16 (4.4 and 14 GB); the 80 GB of InternVL-Chat-V1-2 are sparse files, holes that read as zeros. Rows that are
not asked for stay in the JSON.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from harness import peak_bytes, report

from vlm.models.specs import ModelSpec, load_preset

TOKENIZERS = Path(__file__).parents[1] / "tests/golden/data/tokenizers"
PRESETS = {"internvl2-2b": "internlm2", "convllava-1536": "llama", "internvl-chat-v1-2": "hermes2"}
NEW_TOKENS = 8
LONG = 8192


def published(preset: str) -> tuple[ModelSpec, dict[str, torch.Tensor]]:
    """The spec with a small tokenizer's context id and the published number of rows, and its tensors without memory."""
    from vlm.models.checkpoint.assemble import with_tokenizer
    from vlm.models.vlm import make_model

    wanted = load_preset(preset)
    spec = with_tokenizer(wanted, TOKENIZERS / PRESETS[preset]).with_language(vocab=wanted.language.vocab)
    with torch.device("meta"):
        return spec, make_model(spec).to(torch.bfloat16).state_dict()


def write_random(preset: str, folder: Path) -> None:
    """Write a checkpoint in our layout, one shard in memory."""
    from vlm.models.checkpoint.load import write_checkpoint

    spec, shapes = published(preset)
    generator = torch.Generator().manual_seed(0)

    def draw(name: str) -> torch.Tensor:
        empty = torch.empty(shapes[name].shape, dtype=torch.bfloat16)
        if empty.dim() < 2:
            return empty.zero_() if name.endswith("bias") else empty.fill_(0.1 if "gamma" in name else 1)
        return empty.normal_(std=0.02, generator=generator)

    folder.mkdir(parents=True)
    write_checkpoint(folder, spec, shapes, draw, tokenizer=TOKENIZERS / PRESETS[preset])


def write_sparse(preset: str, folder: Path) -> None:
    """Write a checkpoint in our layout whose tensors are holes of its files, of 5 GB each."""
    from vlm.core.home import write_json
    from vlm.models.checkpoint.formats.ours import write_spec
    from vlm.models.checkpoint.load import copy_tokenizer

    spec, shapes = published(preset)
    folder.mkdir(parents=True)
    files: list[dict[str, Any]] = []
    index: dict[str, str] = {}
    end = 5_000_000_000
    for name, tensor in shapes.items():
        if end + tensor.numel() * 2 > 5_000_000_000:
            files.append({})
            end = 0
        start, end = end, end + tensor.numel() * 2
        files[-1][name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
        index[name] = f"model-{len(files):05d}.safetensors"
    for number, header in enumerate(files, 1):
        text = json.dumps(header).encode()
        with (folder / f"model-{number:05d}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + max(about["data_offsets"][1] for about in header.values()))
    write_json(folder / "model.safetensors.index.json", {"weight_map": index})
    write_json(folder / "config.json", write_spec(spec))
    copy_tokenizer(TOKENIZERS / PRESETS[preset], folder)


class Holes:
    """Makes holes of the zeros in the weight files of a folder while they are written: 80 GB take the room of a few."""

    KINDS = ("*.safetensors*", "*.dat")

    def __init__(self, place: Path):
        self.place = place

    def __enter__(self) -> None:
        self.done = Event()
        self.worker = Thread(target=self.work, daemon=True)
        self.worker.start()

    def work(self) -> None:
        dug: set[int] = set()
        while not self.done.wait(1):
            with suppress(FileNotFoundError):  # the folder was renamed
                ages = {file: file.stat() for kind in self.KINDS for file in self.place.glob(f"**/{kind}")}
                for file in sorted(ages, key=lambda file: ages[file].st_mtime)[:-1]:  # the last one is still written
                    if ages[file].st_ino not in dug:
                        subprocess.run(["fallocate", "--dig-holes", str(file)], check=False, stderr=subprocess.DEVNULL)
                        dug.add(ages[file].st_ino)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.worker.join()


class Memory:
    """By how many GB this process grows at most: its own memory, or with the pages of files that it has mapped."""

    def __init__(self, kind: str = "RssAnon"):
        self.kind = kind

    def __enter__(self) -> "Memory":
        self.start = self.peak = self.now()
        self.done = Event()
        self.watcher = Thread(target=self.watch, daemon=True)
        self.watcher.start()
        return self

    def now(self) -> int:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[self.kind].split()[0]) * 1024

    def watch(self) -> None:
        while not self.done.wait(0.01):
            self.peak = max(self.peak, self.now())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.watcher.join()

    @property
    def grown(self) -> float:
        return (self.peak - self.start) / 1e9


def digest(folder: Path) -> str:
    """One digest of all tensors of a folder by name, read one at a time."""
    from vlm.models.checkpoint.layout import read_layout
    from vlm.models.checkpoint.load import renamed_tensors

    found = {}
    for name, tensor in renamed_tensors(read_layout(folder), folder):
        found[name] = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy()).hexdigest()
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def picture(place: Path, width: int, height: int) -> Path:
    """A picture of noise."""
    from PIL import Image

    path = place / f"{width}x{height}.png"
    if not path.exists():
        noise = torch.randint(0, 255, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        Image.fromarray(noise.numpy()).save(path)
    return path


def planned(model: Path, tokens: int, tiles: int, *, weights: bool = False) -> float:
    """GB that `vlm plan --eval` says for a prompt, with or without the weights."""
    from vlm.models.processor import load_processor
    from vlm.train.plan.evaluation import PromptSize, Share, estimate_evaluation

    gb = estimate_evaluation(load_processor(model).spec, PromptSize(tokens, tiles, NEW_TOKENS), Share("bfloat16")).gb
    return sum(gb.values()) - (0 if weights else gb["weights"])


def step_convert(model: Path, to: str) -> dict[str, Any]:
    """Ours into a published layout and back: the same bits."""
    from vlm.models.checkpoint.convert import convert

    there, back = model.with_name(f"{model.name}-{to}"), model.with_name(f"{model.name}-back")
    sparse = Holes(model.parent) if model.name == "internvl-chat-v1-2" else nullcontext()
    with Memory() as memory, sparse:
        convert(model, to, there)
        shutil.rmtree(back, ignore_errors=True)
        convert(there, "vlm", back)
    same = digest(model) == digest(back)
    shutil.rmtree(there)
    shutil.rmtree(back)
    if not same:
        raise SystemExit(f"{model} -> {to} -> ours: other bits")
    return {"gb": memory.grown}


def step_load(model: Path) -> dict[str, Any]:
    """The weights, in the precision they are stored in: mapped from the file, so that the kernel may take them back."""
    from vlm.models.checkpoint.load import load_model

    with Memory("VmRSS") as memory:
        loaded = load_model(model, dtype="bfloat16")
    return {"gb": memory.grown, "planned": sum(p.numel() for p in loaded.parameters()) * 2 / 1e9}


def step_chat(model: Path, tiles: int, tokens: int, rows: int = 1) -> dict[str, Any]:
    """A picture and a text of so many tokens in all: seconds to the first token, and of each further one.

    A prompt of more than LONG tokens is computed once, without the profiler.
    """
    from vlm.models.answers import answer
    from vlm.models.session import ChatSession

    v2pe = "internvl2" in model.name
    wide = picture(model.parent, 448 * tiles if tiles > 1 else 448, 448)
    session = ChatSession(model, dtype="bfloat16", max_tiles=tiles if v2pe else None, strides=16.0 if v2pe else None)
    few = len(session.processor.encode(session.messages("a", [wide]), strides=session.strides))
    words = max(1, tokens - few)
    batch = [session.processor.encode(session.messages(" a" * words, [wide]), strides=session.strides)] * rows
    times = {}
    long = tokens > LONG
    with Memory() as memory:
        for new in (1,) if long else (1, NEW_TOKENS):
            began = time.perf_counter()
            answer(session.model, session.processor, batch, max_new_tokens=new, min_new_tokens=new)
            times[new] = time.perf_counter() - began
    found = {"tokens": len(batch[0]), "tiles": batch[0].n_tiles, "rows": rows, "gb": memory.grown}
    if rows == 1 and not long:
        alone = partial(answer, session.model, session.processor, batch, max_new_tokens=1)
        found["torch_gb"] = peak_bytes(alone) / 1e9
    if rows == 1:
        found["planned"] = planned(model, len(batch[0]), batch[0].n_tiles)
    if not long:
        found["each_token_s"] = max(0.0, times[NEW_TOKENS] - times[1]) / (NEW_TOKENS - 1)
    return {**found, "first_token_s": times[1]}


def step_haystack(model: Path, samples: int) -> dict[str, Any]:
    """Samples of MM-NIAH's miniature at stride 64, by the command, weights included: its greatest prompt is planned."""
    from vlm.cli.main import main as vlm
    from vlm.core.sample.records import iter_jsonl

    out = model.parent / "eval"
    shutil.rmtree(out, ignore_errors=True)
    os.environ["VLM_HOME"] = str(model.parent)
    sys.argv = ["vlm", "eval", "mm-niah", "--mini", "--limit", str(samples), "-m", str(model), "--stride", "64"]
    sys.argv += ["--batch-size", "1", "--dtype", "bfloat16", "--max-new-tokens", str(NEW_TOKENS), "--out", str(out)]
    with Memory() as memory, redirect_stdout(sys.stderr):
        began = time.perf_counter()
        try:
            vlm()
        except SystemExit as end:
            if end.code not in (None, 0, 3):  # 3: random weights may answer nothing
                raise
        seconds = time.perf_counter() - began
    (results,) = out.glob("**/results.jsonl")
    answered = [record for _, record in iter_jsonl(results)]
    tokens = max(record["tokens"] for record in answered)
    tiles = max(len(record["images"]) for record in answered)  # square drawings, one tile each
    found = {"samples": len(answered), "tokens": tokens, "tiles": tiles, "gb": memory.grown}
    return {**found, "planned": planned(model, tokens, tiles, weights=True), "answers_s": seconds}


def step_offload(model: Path) -> dict[str, Any]:
    """One token with the decoder layers on the disk."""
    from vlm.models.checkpoint.load import load_model

    tempfile.tempdir = str(model.parent)
    with Memory() as memory, Holes(model.parent):
        began = time.perf_counter()
        loaded = load_model(model, dtype="bfloat16", offload="disk")
        ready = time.perf_counter()
        with torch.inference_mode():
            loaded.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=1, eos_token_id=2, pad_token_id=2)
        token = time.perf_counter() - ready
    return {"gb": memory.grown, "load_s": ready - began, "first_token_s": token}


def step_inspect(model: Path) -> dict[str, Any]:
    """What `vlm weights inspect --keys` reads: headers alone."""
    from vlm.models.checkpoint.layout import read_layout
    from vlm.models.checkpoint.reader import CheckpointReader

    with Memory() as memory:
        CheckpointReader(read_layout(model), model).check()
    return {"gb": memory.grown}


def step_lora(model: Path, tokens: int) -> dict[str, Any]:
    """Two steps of LoRA with gradient checkpointing, by the command; the bytes are those of the whole process."""
    place = model.parent / "lora"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    asked = {
        "image": str(picture(model.parent, 448, 448)),
        "conversations": [
            {"from": "human", "value": "<image>\n" + " a" * tokens},
            {"from": "gpt", "value": "a b"},
        ],
    }
    (place / "data.json").write_text(json.dumps([{"id": "0", **asked}, {"id": "1", **asked}]))
    vlm = [str(Path(sys.executable).with_name("vlm")), "train", "-m", str(model), "--data", str(place / "data.json")]
    vlm += ["--allow-outside", str(model.parent), "--lora", "--run", str(place / "run")]
    for one in ("steps=2", "batch.samples=1", f"max_length={tokens + 480}"):
        vlm += ["--set", one]
    said = subprocess.run([*vlm, "--dry-run", "--json"], stdout=subprocess.PIPE, text=True, check=True).stdout
    began = time.perf_counter()
    done = subprocess.Popen([*vlm, "--quiet"], stdout=sys.stderr)
    peak = 0
    while done.poll() is None:
        with suppress(OSError, ValueError):
            lines = dict(x.split(":", 1) for x in Path(f"/proc/{done.pid}/status").read_text().splitlines())
            peak = max(peak, int(lines.get("RssAnon", "0 kB").split()[0]) * 1024)
        time.sleep(0.02)
    if done.wait():
        raise SystemExit(f"the training ended with {done.returncode}")
    shutil.rmtree(place)
    plan = json.loads(said[said.index("{") :])["estimate"]
    return {"gb": peak / 1e9, "planned": plan["gb_needed"], "train_s": time.perf_counter() - began}


STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    name.removeprefix("step_"): value for name, value in list(globals().items()) if name.startswith("step_")
}


def run(step: str, model: Path, *settings: object) -> dict[str, Any]:
    """A step in a process of its own."""
    command = [sys.executable, __file__, "--step", step, str(model), *map(str, settings)]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    row = {"model": model.name, "step": step, **({"set": " ".join(map(str, settings))} if settings else {})}
    if done.returncode:
        return {**row, "failed": f"exit code {done.returncode}"}
    row |= json.loads(done.stdout.splitlines()[-1]) | {"whole_s": time.perf_counter() - began}
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 2048, 4096, 8192, 32768])
    parser.add_argument(
        "--place", type=Path, default=Path("full-size"), help="a folder with 50 GB of room (80 for V1-2)"
    )
    asked = parser.parse_args()
    before = Path(__file__).with_suffix(".json")
    rows = json.loads(before.read_text())["rows"] if before.exists() else []

    def do(step: str, *settings: object) -> None:
        if step in asked.steps:
            row = run(step, model, *settings)
            same = [i for i, old in enumerate(rows) if all(old.get(k) == row.get(k) for k in ("model", "step", "set"))]
            at = same[0] if same else len(rows)
            rows[at : at + 1] = [row]

    for preset in asked.only:
        model = asked.place / preset
        if not model.exists():
            half = model.with_name(f"{preset}.part")
            shutil.rmtree(half, ignore_errors=True)
            (write_sparse if preset == "internvl-chat-v1-2" else write_random)(preset, half)
            half.rename(model)
        do("inspect")
        if preset != "internvl-chat-v1-2":
            do("load")
        do("convert", "llava" if preset == "convllava-1536" else "internvl")
        if preset == "internvl-chat-v1-2":
            do("offload")
        elif preset == "internvl2-2b":
            for tiles in (1, 6, 12):
                do("chat", tiles, 256 * (tiles + (tiles > 1)) + 64)
            for tokens in asked.tokens:
                do("chat", 1, tokens)
            do("chat", 1, 512, 4)
            do("haystack", 3)
            do("lora", 512)
        else:
            do("chat", 1, 640)
            do("chat", 1, 640, 4)
    report("full_size", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        step, folder, *settings = sys.argv[2:]
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        typed = [int(x) if x.isdigit() else x for x in settings]
        print(json.dumps(STEPS[step](Path(folder), *typed)))
    else:
        main()
