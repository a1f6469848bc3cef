"""A small world to build long documents from: pictures of noise and stripes, prose, a tokenizer and its rules."""

import hashlib
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm.core.sample.encode import ImageTokenIds, SampleEncoder
from vlm.core.sample.tiling import ImageRule
from vlm.core.sample.tokenizer import load_tokenizer
from vlm.core.synth.long.long_mr import LongMrOptions, build_long_mr
from vlm.core.synth.long.record_cost import Ruler
from vlm.core.synth.sentences import SENTENCES
from vlm.core.synth.train_tokenizer import train_tokenizer
from vlm.core.synth.vqa_records import vqa_record, write_jsonl

RULE = ImageRule(kind="tiles", size=56, max_tiles=4)
K = 4


def make_world(root: Path, *, images: int = 24) -> Path:
    """images/, text/, set/vqa.jsonl and tokenizer/ below `root`."""
    (root / "images").mkdir(parents=True)
    for i in range(images):
        rng = np.random.default_rng(i)
        size = [(120, 120), (160, 110), (110, 180)][i % 3]
        tint = rng.integers(0, 200, 3)
        noise = rng.integers(0, 55, (size[1], size[0], 3)) + tint
        Image.fromarray(noise.astype(np.uint8)).save(root / "images" / f"{i}.png")
    for t in range(8):
        rng = random.Random(t)
        paragraphs = (" ".join(rng.sample(SENTENCES, 5)) for _ in range(60))
        (root / "text").mkdir(exist_ok=True)
        (root / "text" / f"{t}.txt").write_text("\n\n".join(paragraphs))
    records = [
        vqa_record(f"q{i}", f"../images/{i}.png", [("What is this?", f"noise {i}"), ("Which number?", str(i))])
        for i in range(images)
    ]
    (root / "set").mkdir()
    write_jsonl(root / "set" / "vqa.jsonl", records)
    train_tokenizer(root / "tokenizer", [root / "set" / "vqa.jsonl"], vocab_size=500)
    return root


@lru_cache
def ruler(root: Path) -> Ruler:
    """Rules of a V2PE-like miniature: 4 tokens a tile."""
    return Ruler(root / "tokenizer", "internlm2-chat", RULE, K)


@lru_cache
def encoder(root: Path) -> SampleEncoder:
    """The same rules, as a model would apply them to the written files."""
    tokenizer = load_tokenizer(root / "tokenizer")
    return SampleEncoder(tokenizer, "internlm2-chat", RULE, K, ImageTokenIds.internvl(tokenizer))


def build(world: Path, out: Path, options: LongMrOptions, **more: Any) -> str:
    """A Long-MR set of that world: "built", or "present" if it is there already."""
    return build_long_mr(out, options, ruler(world), images=[world / "images"], texts=[world / "text"], **more)


def tree(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file but the lock."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
