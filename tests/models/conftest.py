"""Tiny models of every family with the tokenizers of the golden fixtures, and inputs for them."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

from support.tiny_models import GOLDEN, TOKENIZERS, lively_model, random_ids, random_tiles
from vlm.core.synth.train_tokenizer import train_tokenizer
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.load import save_model
from vlm.models.specs import load_preset
from vlm.models.vlm import VisionLanguageModel


@pytest.fixture(scope="session")
def golden_data() -> Path:
    """The fixtures of the golden tests."""
    return GOLDEN


@pytest.fixture(params=TOKENIZERS)
def preset(request) -> str:
    """Each family's tiny preset in turn."""
    return request.param


@pytest.fixture(scope="session")
def tiny() -> Callable[..., VisionLanguageModel]:
    """`tiny(preset, **language)`: a fresh model in eval mode whose answers depend on every input."""
    return lively_model


@pytest.fixture(scope="session")
def checkpoint(tiny, tmp_path_factory) -> Callable[[str], Path]:
    """`checkpoint(preset)`: the folder of such a model with its tokenizer, in our layout. Not to be written to."""

    @cache
    def save(preset: str = "tiny-internvl2") -> Path:
        folder = tmp_path_factory.mktemp("pretrained") / preset
        save_model(tiny(preset), folder, tokenizer=TOKENIZERS[preset])
        return folder

    return save


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A checkpoint in our layout with a tokenizer.json, as `vlm weights make` writes it."""
    folder = tmp_path_factory.mktemp("whole")
    records = [{"id": i, "conversations": [{"from": "human", "value": f"what is {i}?"}]} for i in range(20)]
    (folder / "text.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    train_tokenizer(folder / "tokenizer", [folder / "text.jsonl"], vocab_size=300)
    model = build(load_preset("tiny-internvl2"), tokenizer=folder / "tokenizer", seed=1)
    save_model(model, folder / "model", tokenizer=folder / "tokenizer")
    return folder / "model"


@pytest.fixture
def broken(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "broken")


@pytest.fixture(scope="session")
def prompt() -> Callable[..., Tensor]:
    """`prompt(model, 3, "image", 4)`: ids [1, n] of random text and of tiles between them, brackets left out."""
    return random_ids


@pytest.fixture(scope="session")
def tiles() -> Callable[..., Tensor]:
    """`tiles(model, n)`: n random normalized tiles."""
    return random_tiles


@pytest.fixture
def picture(tmp_path) -> Callable[..., Path]:
    """`picture(color, size)`: the path of a picture with a gradient in it."""

    def make(color: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (60, 60)) -> Path:
        path = tmp_path / f"{'-'.join(map(str, (*color, *size)))}.png"
        image = Image.linear_gradient("L").resize(size).convert("RGB")
        Image.blend(image, Image.new("RGB", size, color), 0.5).save(path)
        return path

    return make
