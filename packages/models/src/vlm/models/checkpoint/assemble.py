"""A start checkpoint from published parts: an image encoder, a projector, a language model and a tokenizer.

>>> spec = load_preset("convllava-768")                                                    # doctest: +SKIP
>>> start = assemble(spec, tokenizer=vicuna, encoder=convnext, language=vicuna)            # doctest: +SKIP
>>> start.write(Path("pretrained/convllava-768-start"))                                    # doctest: +SKIP
>>> start.fresh                                                                            # doctest: +SKIP
['encoder.stages.4', 'projector']

Every stored tensor is used, dropped by name, or an error. Fresh are the parts that are not given, and the stages that a
ConvNeXt has in the preset but not in its folder (stage 5 of ConvLLaVA).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import timm
import torch
from torch import Tensor

from vlm.core.errors import CheckpointError
from vlm.core.extras import require
from vlm.core.home import new_folder
from vlm.core.progress import Report, silent
from vlm.core.sample.tokenizer import load_tokenizer
from vlm.models.checkpoint.formats import internvl, llava
from vlm.models.checkpoint.formats.schema import QWEN2
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import initialized, write_checkpoint
from vlm.models.checkpoint.locate import find_checkpoint
from vlm.models.checkpoint.reader import CheckpointReader
from vlm.models.checkpoint.renaming import Patterns, prefixed, rename, weight_and_bias
from vlm.models.checkpoint.safetensors_io import WeightReader, load_pickle
from vlm.models.projector import make_projector
from vlm.models.specs import ModelSpec, TimmSpec
from vlm.models.vision.encoders import make_encoder
from vlm.models.vision.intern_vit import resized_positions
from vlm.models.vlm import VisionLanguageModel, make_model

EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
"""One row for each token: new tokens get the mean of the old rows, as the published code does for the head."""

IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")
"""Tokens added to the tokenizer of a GGUF file."""

ENCODER_NAMES: dict[str, Patterns] = {
    "intern_vit": {**internvl.ENCODER, **{k.removeprefix("vision_model."): v for k, v in internvl.ENCODER.items()}},
    "convnext": {**llava.ENCODER_ANY, **prefixed(llava.ENCODER_ANY, "convnext.", "")},
}
"""Names of an encoder that is stored alone, by the kind of its spec, with and without a prefix."""

PROJECTOR_NAMES: dict[str, Patterns] = {
    "pixel_unshuffle": {**internvl.PROJECTOR, **{k.removeprefix("mlp1."): v for k, v in internvl.PROJECTOR.items()}},
    "mlp": weight_and_bias({f"{prefix}mm_projector.{{}}.{{kind}}": "projector.{}.{kind}" for prefix in ("", "model.")}),
}
"""Names of a projector that is stored alone, by the kind of its spec."""

POSITIONS = "encoder.embeddings.position_embedding"
LANGUAGE_NAMES: Patterns = prefixed(QWEN2, "", "language_model.")


@dataclass(frozen=True)
class StoredPart:
    """Where a tensor of ours is stored: a reader, a state dict or a whole checkpoint, and its key there."""

    source: WeightReader | CheckpointReader | Mapping[str, Tensor]
    key: str

    def read(self) -> Tensor:
        """Return the tensor, as stored."""
        stored = isinstance(self.source, WeightReader | CheckpointReader)
        return self.source.read(self.key) if stored else self.source[self.key]  # type: ignore[union-attr,index]

    def meta(self) -> Tensor:
        """Return a tensor of its shape and dtype without memory."""
        if isinstance(self.source, WeightReader):
            return self.source.items[self.key].meta()
        if isinstance(self.source, CheckpointReader):
            return self.source.meta(self.key)
        return self.source[self.key].to("meta")


class Assembly:
    """Parts that were found to fit a spec: `model()` builds it in memory, `write()` tensor by tensor on disk.

    Attributes:
        spec: the model, with vocabulary and context id of the tokenizer.
        fresh: names of the modules that are drawn from the seed.
        left_out: names of the stored blocks that lie behind the last one of the preset's encoder.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Path,
        found: dict[str, StoredPart],
        wanted: dict[str, Tensor],
        seed: int,
        left_out: list[str],
    ):
        self.left_out = left_out
        self.spec, self.tokenizer, self.seed = spec, tokenizer, seed
        self._found, self._wanted = found, wanted
        self._missing = [name for name in wanted if name not in found]

    @property
    def fresh(self) -> list[str]:
        """Return the names of fresh modules, e.g. `encoder.stages.4` and `projector`."""
        stages = "encoder.stages."
        return sorted({".".join(n.split(".")[:3]) if n.startswith(stages) else n.split(".")[0] for n in self._missing})

    @cached_property
    def _drawn(self) -> dict[str, Tensor]:
        """Fresh tensors, as `initialized` draws them; a language model that is given is never made."""
        if not self._missing:
            return {}
        if any(name.startswith("language_model.") for name in self._missing):
            state = initialized(self.spec, self.seed).state_dict()
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                encoder = make_encoder(self.spec.vision)
                projector = make_projector(self.spec.projector, encoder.width, self.spec.language.width)
            state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
            state |= {f"projector.{k}": v for k, v in projector.state_dict().items()}
        return {name: state[name] for name in self._missing}

    def _read(self, name: str) -> Tensor:
        """Return a tensor in its stored dtype, with rows for new tokens."""
        if name in self._drawn:
            return self._drawn[name]
        tensor, rows = self._found[name].read(), self._wanted[name].shape[:1]
        if name in (EMBEDDING, HEAD) and len(tensor) < rows[0]:
            mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
            tensor = torch.cat([tensor, mean.expand(rows[0] - len(tensor), -1)])
        if name == POSITIONS and tensor.shape != self._wanted[name].shape:
            side = math.isqrt(self._wanted[name].shape[1] - 1)
            tensor = resized_positions(tensor, math.isqrt(tensor.shape[1] - 1), side, side)
        return tensor

    def model(self) -> VisionLanguageModel:
        """Return the model in float32."""
        model = initialized(self.spec, self.seed)
        model.load_state_dict({name: self._read(name) for name in self._found}, strict=False)
        return model

    def write(self, out: Path, *, dtype: torch.dtype | None = None, report: Report = silent) -> None:
        """Write a checkpoint in our format with at most one tensor in memory; `out` is replaced at once.

        Args:
            out: the folder.
            dtype: of all floating-point tensors; None keeps each as it is stored, and fresh ones in float32.
            report: called with (bytes done, bytes in all).
        """

        def cast(tensor: Tensor) -> Tensor:
            return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)

        def stored(name: str) -> Tensor:
            return self._drawn[name] if name in self._drawn else self._found[name].meta()

        shapes = {
            name: torch.empty(want.shape, dtype=cast(stored(name).to("meta")).dtype, device="meta")
            for name, want in self._wanted.items()
        }
        with new_folder(out) as folder:
            write_checkpoint(
                folder, self.spec, shapes, lambda name: cast(self._read(name)), tokenizer=self.tokenizer, report=report
            )


def assemble(
    spec: ModelSpec,
    *,
    tokenizer: Path,
    encoder: Path | None = None,
    language: Path | None = None,
    projector: Path | None = None,
    base: Path | None = None,
    resize_positions: bool = False,
    seed: int = 0,
) -> Assembly:
    """Find every tensor of a model in published parts; nothing is computed or written yet.

    Args:
        spec: the shape; vocabulary and context id are those of the tokenizer.
        tokenizer: folder with tokenizer files, which must have the image tokens.
        encoder: folder of an InternViT or a ConvNeXt, or the state dict of a timm trunk; without it fresh.
        language: folder of a Llama: safetensors, pickles or one GGUF file; without it fresh.
        projector: state dict (`.pth`) or folder; without it fresh.
        base: checkpoint in any format, whose parts are taken where none is given.
        resize_positions: resize the position table of an InternViT of another image size to the preset's (bicubic).
        seed: of the fresh parts, which are in float32.

    Raises:
        CheckpointError: unknown or missing tensors, or a shape that the preset does not have.
    """
    spec = with_tokenizer(spec, tokenizer)
    found: dict[str, StoredPart] = {}
    given = {"encoder": encoder, "language_model": language, "projector": projector}
    if base is not None:
        kept = tuple(f"{part}." for part, path in given.items() if path is None)
        found |= {name: part for name, part in find_base(base).items() if name.startswith(kept)}
    if encoder is not None:
        found |= find_encoder(spec, encoder)
    left_out = drop_last_blocks(spec, found)
    if language is not None:
        found |= find_tensors(language, LANGUAGE_NAMES)
    if projector is not None:
        found |= find_tensors(projector, PROJECTOR_NAMES[spec.projector.kind])
    with torch.device("meta"):
        wanted = dict(make_model(spec).state_dict())
    if spec.language.tied:
        wanted.pop(HEAD)
        found.pop(HEAD, None)
    check_missing(spec, wanted, found, [f"{part}." for part, path in given.items() if path is None and base is None])
    if extra := [name for name in found if name not in wanted]:
        raise CheckpointError(f"{len(extra)} tensors have no place in the preset, first {extra[0]}")
    for name, part in found.items():
        have, want = list(part.meta().shape), list(wanted[name].shape)
        if name == POSITIONS and have != want and have[2:] == want[2:] and is_square(have[1] - 1):
            if not resize_positions:
                fix = "choose the right preset, or resize the table: --resize-positions"
                raise CheckpointError(f"{part.key} is {have}", expected=f"{want} for {name}", fix=fix)
            continue
        if have != want and not (name in (EMBEDDING, HEAD) and have[1:] == want[1:] and have[0] < want[0]):
            raise CheckpointError(f"{part.key} is {have}", expected=f"{want} for {name}", fix="choose the right preset")
    return Assembly(spec, tokenizer, found, wanted, seed, left_out)


def is_square(count: int) -> bool:
    """Return whether so many positions make a square grid."""
    return count > 0 and math.isqrt(count) ** 2 == count


def find_base(path: Path) -> dict[str, StoredPart]:
    """Return our name -> where it is, for a whole checkpoint in any format.

    Raises:
        CheckpointError: no checkpoint, or one with unknown, missing or misshapen tensors.
    """
    folder = find_checkpoint(path)
    reader = CheckpointReader(read_layout(folder), folder)
    reader.check()
    return {name: StoredPart(reader, name) for name in reader.wanted}


def drop_last_blocks(spec: ModelSpec, found: dict[str, StoredPart]) -> list[str]:
    """Remove the blocks of an InternViT behind the preset's last one, and return their names.

    InternVL-Chat-V1-2 uses the first 45 of the 48 blocks of InternViT-6B-448px-V1-0 (`vision_select_layer` -4).
    """
    if spec.vision.kind != "intern_vit":
        return []
    path = "encoder.encoder.layers."
    beyond = [n for n in found if n.startswith(path) and int(n.removeprefix(path).split(".")[0]) >= spec.vision.depth]
    for name in beyond:
        del found[name]
    return list(dict.fromkeys(".".join(name.split(".")[:4]) for name in beyond))


def build(
    spec: ModelSpec, *, tokenizer: Path, encoder: Path | None = None, language: Path | None = None, seed: int = 0
) -> VisionLanguageModel:
    """Return the model of `assemble` in memory, in float32."""
    return assemble(spec, tokenizer=tokenizer, encoder=encoder, language=language, seed=seed).model()


def find_tensors(path: Path, patterns: Patterns) -> dict[str, StoredPart]:
    """Return our name -> where it is, for a folder of weights, a folder with a GGUF file, or a pickled state dict.

    Raises:
        CheckpointError: a key has no pattern.
    """
    source: WeightReader | dict[str, Tensor]
    if not path.is_dir():
        source = load_pickle(path)
    elif files := sorted(path.glob("*.gguf")):
        source = read_gguf(path, files)
    else:
        source = WeightReader(path)
    renaming = rename(source.items if isinstance(source, WeightReader) else source, patterns)
    if renaming.unknown:
        raise CheckpointError(
            f"{path}: {len(renaming.unknown)} unknown tensors, first {renaming.unknown[0]}",
            expected="the part alone, under its published names",
        )
    return {ours: StoredPart(source, key) for key, ours in renaming.renamed.items()}


def find_encoder(spec: ModelSpec, path: Path) -> dict[str, StoredPart]:
    """Return our name -> where it is, for a folder, or for the state dict of a timm trunk.

    The tensors of a timm file are in timm's order under other names.

    Raises:
        CheckpointError: the preset has another encoder; number, order and shapes do not agree one to one.
    """
    vision = spec.vision
    if path.is_dir() and vision.kind in ENCODER_NAMES:
        return find_tensors(path, ENCODER_NAMES[vision.kind])
    if not isinstance(vision, TimmSpec) or path.is_dir():
        found = "a published encoder" if path.is_dir() else "a timm trunk"
        raise CheckpointError(f"{path} holds {found} but the encoder is {vision.kind}")
    with torch.device("meta"):
        ours = timm.create_model(vision.name, pretrained=False).state_dict()
        trunk = make_encoder(vision).state_dict()
    theirs = load_pickle(path)
    if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
        raise CheckpointError(f"{path}: {len(theirs)} tensors do not match {vision.name} one to one by order and shape")
    keys = dict(zip((f"trunk.{name}" for name in ours), theirs, strict=True))
    return {f"encoder.{name}": StoredPart(theirs, keys[name]) for name in trunk if name in keys}


def check_missing(
    spec: ModelSpec, wanted: dict[str, Tensor], found: dict[str, StoredPart], not_given: list[str]
) -> None:
    """Raise CheckpointError unless what is missing may be fresh: parts not given, whole stages behind stored ones."""
    allowed, vision = list(not_given), spec.vision
    if vision.kind == "timm":
        allowed.append("encoder.stages.")
    elif vision.kind == "convnext" and (stages := {n.split(".")[2] for n in found if n.startswith("encoder.stages.")}):
        allowed += [f"encoder.stages.{i}." for i in range(len(vision.depths)) if str(i) not in stages]
    missing = [name for name in wanted if name not in found]
    if wrong := [name for name in missing if not name.startswith(tuple(allowed))]:
        raise CheckpointError(
            f"{len(wrong)} tensors are in no part, first {wrong[0]}", expected="whole parts that fit the preset"
        )


def read_gguf(folder: Path, files: list[Path]) -> dict[str, Tensor]:
    """Return the state dict of a Llama that is stored as GGUF, dequantized to float32."""
    require("gguf", str(folder))
    from transformers import AutoModelForCausalLM

    if len(files) != 1:
        raise CheckpointError(f"{len(files)} GGUF files in {folder}", expected="exactly one")
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=files[0].name, dtype=torch.float32)
    return {k: v.clone() for k, v in model.state_dict().items()}


def export_gguf_tokenizer(folder: Path, out: Path) -> None:
    """Write the tokenizer of a GGUF file as `tokenizer.json`, with the image tokens added."""
    require("gguf", str(folder))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)
    tokenizer.add_tokens(list(IMAGE_TOKENS), special_tokens=True)
    tokenizer.save_pretrained(out)


def with_tokenizer(spec: ModelSpec, folder: Path) -> ModelSpec:
    """Return the spec with vocabulary size and context id of a tokenizer folder.

    Raises:
        CheckpointError: the tokenizer has no image context token.
    """
    tokenizer = load_tokenizer(folder)
    spec = spec.with_language(vocab=len(tokenizer))
    if spec.image_tokens.context is None:
        return spec
    context = tokenizer.token_id(spec.image_tokens.context)
    if context is None:
        raise CheckpointError(f"{folder} has no token {spec.image_tokens.context}", fix="add the image tokens")
    return spec.model_copy(update={"image_tokens": spec.image_tokens.model_copy(update={"context_id": context})})
