"""Compare two checkpoints: tensor by tensor, then module by module on the same input.

>>> difference = diff("pretrained/a", "pretrained/b")    # doctest: +SKIP
>>> difference.equal, difference.first                   # doctest: +SKIP

One model is in memory at a time; the activations of the first are kept on disk.
"""

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm.core.errors import ConfigError
from vlm.core.sample.media import load_image
from vlm.core.sample.positions import positions
from vlm.core.sample.records import Part, image, text
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import load_model
from vlm.models.checkpoint.locate import find_checkpoint
from vlm.models.checkpoint.reader import CheckpointReader
from vlm.models.processor import load_processor
from vlm.models.specs import ModelSpec
from vlm.models.vlm import VisionLanguageModel

WORDS = 12  # random ids before and behind the image


@dataclass(frozen=True)
class Gap:
    """One tensor or activation that differs: both shapes and the greatest absolute difference (None: shapes differ)."""

    name: str
    a: list[int]
    b: list[int]
    max_abs: float | None


@dataclass
class CheckpointDifference:
    """What `diff` found. `settings` (dotted key of the spec -> [a, b]) alone do not make two checkpoints unequal."""

    tensors: list[Gap] = field(default_factory=list)
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    dtypes: dict[str, list[str]] = field(default_factory=dict)
    settings: dict[str, list[Any]] = field(default_factory=dict)
    modules: list[Gap] = field(default_factory=list)
    compared: int = 0
    skipped: str | None = None

    @property
    def first(self) -> Gap | None:
        """Return the first module, in the order of execution, whose activations differ."""
        return self.modules[0] if self.modules else None

    @property
    def equal(self) -> bool:
        """Return whether tensors and activations are the same."""
        return not (self.tensors or self.only_a or self.only_b or self.modules or self.skipped)

    def as_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return {"equal": self.equal, "first": asdict(self.first) if self.first else None, **asdict(self)}


def diff(
    a: str | Path,
    b: str | Path,
    *,
    picture: Path | None = None,
    question: str | None = None,
    seed: int = 0,
    atol: float = 0.0,
) -> CheckpointDifference:
    """Compare two checkpoints, in any formats, in float32.

    Args:
        a: a folder, or a name below `pretrained/`.
        b: another one.
        picture: image to run; by default random pixels.
        question: text to run, with the tokenizer of A; by default random ids before and behind the image.
        seed: of the random input.
        atol: activations differ if a value differs by more than this.

    Raises:
        CheckpointError: one of the checkpoints is incomplete or damaged.
    """
    folders = [find_checkpoint(path) for path in (a, b)]
    layouts = [read_layout(folder) for folder in folders]
    found = CheckpointDifference(settings=settings(*(layout.spec for layout in layouts)))
    one, other = (CheckpointReader(layout, folder) for layout, folder in zip(layouts, folders, strict=True))
    one.check()
    other.check()
    compare_tensors(one, other, found)
    del one, other
    if obstacle := same_input(*(layout.spec for layout in layouts)):
        found.skipped = obstacle
        return found
    with tempfile.TemporaryDirectory() as temporary:
        batch = make_batch(folders[0], layouts[0].spec, picture, question, seed)
        store = Path(temporary)
        recorded: dict[str, Path] = {}
        run_forward(folders[0], batch, lambda name, value: keep(store, recorded, name, value))
        seen: set[str] = set()
        run_forward(folders[1], batch, lambda name, value: compare_one(recorded, seen, found, name, value, atol))
    found.only_a += [f"module {name}" for name in recorded if name not in seen]
    return found


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return a nested dict as a flat one with dotted keys."""
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, part in value.items() for k, v in flat(part, f"{key}.{name}".lstrip(".")).items()}


def settings(a: ModelSpec, b: ModelSpec) -> dict[str, list[Any]]:
    """Return the dotted keys of the specs with different values."""
    one, other = flat(a.model_dump(mode="json")), flat(b.model_dump(mode="json"))
    keys = dict.fromkeys([*one, *other])
    return {k: [one.get(k), other.get(k)] for k in keys if one.get(k) != other.get(k)}


def greatest(a: Tensor, b: Tensor) -> float:
    """Return the greatest absolute difference; infinite where only one is not a number."""
    gap = (a.double() - b.double()).abs()
    gap[(a == b) | (a.isnan() & b.isnan())] = 0
    return gap.nan_to_num(nan=math.inf, posinf=math.inf).max().item() if gap.numel() else 0.0


def gap(name: str, a: Tensor, b: Tensor, atol: float = 0.0) -> Gap | None:
    """Return a Gap if two tensors differ by more than `atol`."""
    if a.shape != b.shape:
        return Gap(name, list(a.shape), list(b.shape), None)
    worst = greatest(a, b)
    return Gap(name, list(a.shape), list(b.shape), worst) if worst > atol else None


def compare_tensors(a: CheckpointReader, b: CheckpointReader, found: CheckpointDifference) -> None:
    """Compare values across dtypes; differing dtypes are listed separately."""
    found.only_a, found.only_b = ([n for n in x.wanted if n not in y.wanted] for x, y in ((a, b), (b, a)))
    for name in (n for n in a.wanted if n in b.wanted):
        one, other = a.read(name), b.read(name)
        if one.dtype != other.dtype:
            found.dtypes[name] = [str(t.dtype).removeprefix("torch.") for t in (one, other)]
        if differs := gap(name, one, other):
            found.tensors.append(differs)


def same_input(a: ModelSpec, b: ModelSpec) -> str | None:
    """Return why the two cannot take the same input; None if they can."""
    for what, one, other in (
        ("image size", a.image_rule.size, b.image_rule.size),
        ("vocabulary", a.language.vocab, b.language.vocab),
        ("context id", a.image_tokens.context_id, b.image_tokens.context_id),
    ):
        if one != other:
            return f"no input fits both: the {what} is {one} in A, {other} in B"
    return None


def make_batch(
    folder: Path, spec: ModelSpec, picture: Path | None, question: str | None, seed: int
) -> Callable[[VisionLanguageModel], dict[str, Tensor]]:
    """Return a function from a model to its arguments; it depends only on A and the seed."""
    generator = torch.Generator().manual_seed(seed)
    rule = spec.image_rule
    if question is not None:
        if not question.strip():
            raise ConfigError("the text is empty", expected="some text")
        processor = load_processor(folder)
        parts: list[Part] = [image(picture.resolve()), text("\n")] if picture else []
        encoded = processor.encode([{"role": "user", "content": [*parts, text(question)]}])
        given = {
            "input_ids": torch.from_numpy(encoded.input_ids)[None],
            "position_ids": torch.from_numpy(encoded.position_ids)[None],
        }
        if encoded.pixels is not None and len(encoded.pixels):
            given["pixel_values"] = processor.pixels(encoded.pixels)
            if encoded.grids is not None:
                given["image_grids"] = torch.tensor(encoded.grids)
        return lambda _: given
    if picture is None:
        grid = (1, 1)
        pixels = torch.randn(1, 3, rule.size, rule.size, generator=generator)
    else:
        drawn = load_image(picture)
        grid = rule.plan(*drawn.size).grid
        pixels = torch.from_numpy(rule.normalize(rule.apply(drawn)))
    words = torch.randint(0, spec.language.vocab, (2, WORDS), generator=generator)
    words[words == spec.image_tokens.context_id] = 0

    def batch(model: VisionLanguageModel) -> dict[str, Tensor]:
        tokens = len(pixels) * model.tokens_per_tile
        ids = torch.cat([words[0], torch.full((tokens,), spec.image_tokens.context_id), words[1]])
        layout: list[tuple[Any, int]] = [("text", WORDS - 1), ("image", len(pixels)), ("text", WORDS - 1)]
        exact = positions(layout, tokens_per_tile=model.tokens_per_tile, strides=spec.strides)
        place = torch.from_numpy(exact)[None] if spec.strides is not None else torch.arange(len(ids))[None]
        whole = {"image_grids": torch.tensor([grid])} if rule.kind == "whole" else {}
        return {"input_ids": ids[None], "position_ids": place, "pixel_values": pixels, **whole}

    return batch


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor of a module's output."""
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return next((t for t in map(first_tensor, parts) if t is not None), None)


@contextmanager
def listening(model: nn.Module, hear: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `hear(name, output)` for each module as it finishes; a second call of a module is `name (2)`."""
    calls: Counter[str] = Counter()

    def hook(name: str) -> Callable[..., None]:
        def finished(_: nn.Module, __: Any, output: Any) -> None:
            if (tensor := first_tensor(output)) is not None:
                calls[name] += 1
                hear(name if calls[name] == 1 else f"{name} ({calls[name]})", tensor.detach())

        return finished

    handles = [part.register_forward_hook(hook(name)) for name, part in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_forward(
    folder: Path, batch: Callable[[VisionLanguageModel], dict[str, Tensor]], hear: Callable[[str, Tensor], None]
) -> None:
    """Run one forward pass of a checkpoint; the model is freed afterward."""
    model = load_model(folder)
    with torch.no_grad(), listening(model, hear):
        model(**batch(model))


def keep(folder: Path, recorded: dict[str, Path], name: str, value: Tensor) -> None:
    """Store an activation of A on disk."""
    recorded[name] = folder / f"{len(recorded)}.pt"
    torch.save(value.clone(), recorded[name])


def compare_one(
    recorded: dict[str, Path], seen: set[str], found: CheckpointDifference, name: str, value: Tensor, atol: float
) -> None:
    """Compare an activation of B with the stored one of A, and remove that."""
    if name not in recorded:
        found.only_b.append(f"module {name}")
        return
    seen.add(name)
    found.compared += 1
    if differs := gap(name, torch.load(recorded[name], weights_only=True), value, atol):
        found.modules.append(differs)
    recorded[name].unlink()
