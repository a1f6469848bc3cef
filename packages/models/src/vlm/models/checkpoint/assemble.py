"""A start checkpoint from published parts, tensor by tensor: an image encoder, a projector, a language model.

Every stored tensor is used, dropped by name, or an error. What is fresh is said: a projector that is not given, and
the stages that a ConvNeXt has in the preset but not in its folder (stage 5 of ConvLLaVA).
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlm.core.errors import CheckpointError
from vlm.core.home import write_json
from vlm.core.progress import Report, silent
from vlm.models.checkpoint.formats import internvl, llava
from vlm.models.checkpoint.formats.schema import LLAMA
from vlm.models.checkpoint.load import copy_tokenizer
from vlm.models.checkpoint.parts import with_tokenizer
from vlm.models.checkpoint.renaming import Patterns, prefixed, rename
from vlm.models.checkpoint.safetensors_io import WeightReader, load_pickle, write_shards
from vlm.models.projector import make_projector
from vlm.models.specs import ModelSpec
from vlm.models.vlm import ENCODERS, make_model

ROWS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
"""One row for each token: new tokens get the mean of the old rows, as the published code does for the head."""


@dataclass(frozen=True)
class Part:
    """Where a tensor of ours lies: a reader or a state dict, and its name there."""

    source: WeightReader | dict[str, Tensor]
    key: str

    def read(self) -> Tensor:
        return self.source[self.key] if isinstance(self.source, dict) else self.source.read(self.key)

    def meta(self) -> Tensor:
        """Shape and dtype without memory."""
        return self.source[self.key].to("meta") if isinstance(self.source, dict) else self.source.items[self.key].meta()


def patterns_of(spec: ModelSpec, part: str) -> Patterns:
    """Names of a part that is stored alone -> ours, with and without the prefix that it has in a whole model."""
    if part == "language":
        return prefixed(LLAMA, "", "language_model.")
    if part == "projector":
        alone = internvl.PROJECTOR
        return {**alone, **{key.removeprefix("mlp1."): name for key, name in alone.items()}}
    if spec.vision.kind == "convnext":
        return {**llava.ENCODER_ANY, **prefixed(llava.ENCODER_ANY, "convnext.", "")}
    return {**internvl.ENCODER, **{key.removeprefix("vision_model."): name for key, name in internvl.ENCODER.items()}}


def found_in(path: Path, patterns: Patterns) -> dict[str, Part]:
    """Our name -> where it lies in a folder of weights or a pickled file. Raises CheckpointError for unknown keys."""
    source: WeightReader | dict[str, Tensor] = WeightReader(path) if path.is_dir() else load_pickle(path)
    names = list(source) if isinstance(source, dict) else list(source.items)
    renaming = rename(names, patterns)
    if renaming.unknown:
        raise CheckpointError(
            f"{path}: {len(renaming.unknown)} unknown tensors, first {renaming.unknown[0]}",
            expected="the part alone, under its published names",
        )
    return {ours: Part(source, key) for key, ours in renaming.renamed.items()}


def fresh_names(spec: ModelSpec, missing: list[str], found: dict[str, Part], *, projector: bool) -> list[str]:
    """Those of `missing` that may be fresh: all of a projector, whole stages behind the stored ones.

    Raises:
        CheckpointError: anything else is missing.
    """
    stages = {name.split(".")[2] for name in found if name.startswith("encoder.stages.")}
    allowed = ["projector."] if not projector else []
    if spec.vision.kind == "convnext" and stages:
        allowed += [f"encoder.stages.{i}." for i in range(len(spec.vision.depths)) if str(i) not in stages]
    if wrong := [name for name in missing if not name.startswith(tuple(allowed))]:
        raise CheckpointError(
            f"{len(wrong)} tensors are in no part, first {wrong[0]}", expected="whole parts that fit the preset"
        )
    return missing


def assemble(
    spec: ModelSpec,
    out: Path,
    *,
    tokenizer: Path,
    encoder: Path,
    language: Path,
    projector: Path | None = None,
    seed: int = 0,
    report: Report = silent,
) -> list[str]:
    """Write a checkpoint in our layout with at most one shard in memory; the modules that are fresh.

    Args:
        spec: the shape, its vocabulary and context id taken from `tokenizer`, which must have the image tokens.
        encoder, language: folders of safetensors or pickles under their published names, each dtype as it is stored.
        projector: a state dict (`.pth`) or a folder; without it the projector is fresh from `seed`, in float32.

    Raises:
        CheckpointError: unknown or missing tensors, or a shape that the preset has not; nothing is written.
    """
    spec = with_tokenizer(spec, tokenizer)
    found = found_in(encoder, patterns_of(spec, "encoder")) | found_in(language, patterns_of(spec, "language"))
    if projector is not None:
        found |= found_in(projector, patterns_of(spec, "projector"))
    with torch.device("meta"):
        wanted = dict(make_model(spec).state_dict())
    if spec.language.tied:
        wanted.pop(ROWS[1])
        found.pop(ROWS[1], None)
    missing = [name for name in wanted if name not in found]
    fresh = fresh_names(spec, missing, found, projector=projector is not None)
    if extra := [name for name in found if name not in wanted]:
        raise CheckpointError(f"{len(extra)} tensors have no place in the preset, first {extra[0]}")
    for name, part in found.items():
        have, want = list(part.meta().shape), list(wanted[name].shape)
        if have != want and not (name in ROWS and have[1:] == want[1:] and have[0] < want[0]):
            raise CheckpointError(f"{part.key} is {have}", expected=f"{want} for {name}", fix="choose the right preset")
    made = fresh_tensors(spec, fresh, seed)

    def read(name: str) -> Tensor:
        if name in made:
            return made[name]
        tensor, rows = found[name].read(), wanted[name].shape[0]
        if name in ROWS and len(tensor) < rows:
            mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
            tensor = torch.cat([tensor, mean.expand(rows - len(tensor), -1)])
        return tensor

    types = {name: made[name].dtype if name in made else found[name].meta().dtype for name in wanted}
    shapes = {name: torch.empty(t.shape, dtype=types[name], device="meta") for name, t in wanted.items()}
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_shards(shapes, read, temporary, report=report)
    copy_tokenizer(tokenizer, temporary)
    write_json(temporary / "config.json", {"model_type": "vlm", "spec": spec.model_dump(mode="json")})
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
    return sorted({".".join(n.split(".")[:3]) if n.startswith("encoder.stages.") else n.split(".")[0] for n in fresh})


def fresh_tensors(spec: ModelSpec, names: list[str], seed: int) -> dict[str, Tensor]:
    """Freshly drawn tensors of the encoder and projector; the language model is never made."""
    if not names:
        return {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = ENCODERS[spec.vision.kind](spec.vision)
        projector = make_projector(spec.projector, encoder.width, spec.language.width)
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    state |= {f"projector.{k}": v for k, v in projector.state_dict().items()}
    return {name: state[name] for name in names}
