"""What the scripts `peer_*.py` share: checkpoints in our layout and in transformers', and other environments."""

import json
import random
import subprocess
import sys
from pathlib import Path

import torch

from vlm.core.synth.train_tokenizer import train_tokenizer
from vlm.models.checkpoint.assemble import with_tokenizer
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.load import write_checkpoint
from vlm.models.specs import ModelSpec, load_preset
from vlm.models.vlm import make_model

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".peers"
"""Folder of the environments of peers that need other packages than ours."""
NAMES = ("Ada", "Bo", "Cy", "Dan", "Eve", "Fay")
COLORS = ("red", "green", "blue", "yellow", "black", "white")
SHAPES = ("circle", "square")


def small(size: int = 112, depth: int = 8) -> ModelSpec:
    """The language model of the quickstart behind an InternViT for square images: transformers has no timm encoder.

    At 448 pixels an image has the 256 tokens of the published models.
    """
    quick = load_preset("quickstart-v2pe")
    vision = load_preset("tiny-internvl2").vision.model_copy(
        update={"width": 192, "depth": depth, "heads": 6, "mlp_width": 768, "image_size": size}
    )
    return quick.model_copy(update={"vision": vision, "image_rule": quick.image_rule.model_copy(update={"size": size})})


def quarter() -> ModelSpec:
    """InternVL2-2B with a quarter of the layers of both towers."""
    whole = load_preset("internvl2-2b")
    vision = whole.vision.model_copy(update={"depth": whole.vision.depth // 4})
    return whole.model_copy(update={"vision": vision}).with_language(depth=whole.language.depth // 4)


def make_tokenizer(folder: Path) -> Path:
    """Train a tokenizer of at most 1,024 entries on the questions of `questions`."""
    source = folder / "texts.jsonl"
    turns = [[{"from": "human", "value": asked}, {"from": "gpt", "value": said}] for asked, said in texts(2000)]
    source.write_text("".join(json.dumps({"conversations": turn}) + "\n" for turn in turns))
    train_tokenizer(folder / "tokenizer", [source], vocab_size=512)
    return folder / "tokenizer"


def texts(count: int) -> list[tuple[str, str]]:
    """Questions and answers."""
    rng = random.Random(1)
    return [
        (f"Does {rng.choice(NAMES)} see a {rng.choice(COLORS)} {rng.choice(SHAPES)}?", rng.choice(("yes", "no")))
        for _ in range(count)
    ]


def checkpoint(
    spec: ModelSpec, folder: Path, tokenizer: Path, *, dtype: torch.dtype, gain: float = 1.0
) -> tuple[Path, Path]:
    """Write random weights in our layout and, from there, in transformers'; return both folders.

    `gain` multiplies the matrices of the language model: of a small one the answers hardly depend on the prompt.
    """
    wanted = with_tokenizer(spec, tokenizer).with_language(vocab=spec.language.vocab)
    with torch.device("meta"):
        shapes = make_model(wanted).to(dtype).state_dict()
    generator = torch.Generator().manual_seed(0)

    def draw(name: str) -> torch.Tensor:
        empty = torch.empty(shapes[name].shape, dtype=dtype)
        if empty.dim() < 2:
            return empty.zero_() if name.endswith("bias") else empty.fill_(1)
        factor = gain if name.startswith("language_model") else 1
        return empty.normal_(std=0.02 * factor, generator=generator)

    ours = folder / "ours"
    ours.mkdir(parents=True)
    write_checkpoint(ours, wanted, shapes, draw, tokenizer=tokenizer)
    return ours, convert(ours, "hf", folder / "hf")


def environment(*packages: str) -> Path:
    """The Python of an environment with these packages, which is installed at the first call."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.environments import install

    return install(PLACE / packages[0].replace("==", "-"), packages)


def version_in(python: Path, *names: str) -> dict[str, str]:
    """Versions of libraries of an environment."""
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    found: dict[str, str] = json.loads(subprocess.check_output([python, "-c", code], text=True))
    return found
