"""Build a model from parts: a preset, a pretrained encoder, a pretrained language model, a tokenizer.

Every tensor of a part is used, dropped by name, or the build fails.
"""

from pathlib import Path

import timm
import torch
from torch import Tensor

from vlm.core.errors import CheckpointError
from vlm.models.checkpoint.load import initialized, tensors
from vlm.models.specs import ModelSpec, TimmSpec
from vlm.models.vision.convnext import TimmEncoder
from vlm.models.vlm import VisionLanguageModel

NEW_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")


def load_timm_trunk(model: VisionLanguageModel, file: Path) -> None:
    """Fill a timm trunk from a state dict whose tensors stand in timm's order under other names.

    Raises CheckpointError unless number, order and shapes agree one to one.
    """
    spec = model.spec.vision
    if not isinstance(spec, TimmSpec) or not isinstance(model.encoder, TimmEncoder):
        raise CheckpointError(f"{file} holds a timm trunk but the encoder is {spec.kind}")
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    full = timm.create_model(spec.name, pretrained=False)
    names = list(full.state_dict())
    shapes = [list(t.shape) for t in full.state_dict().values()]
    if [list(t.shape) for t in theirs.values()] != shapes:
        raise CheckpointError(f"{file}: {len(theirs)} tensors do not match {spec.name} one to one by order and shape")
    full.load_state_dict(dict(zip(names, theirs.values(), strict=True)))
    source = full.state_dict()
    model.encoder.trunk.load_state_dict({k: source[k] for k in model.encoder.trunk.state_dict()})


def read_gguf_llama(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """(configuration, float32 state dict) of a Llama stored as GGUF, dequantized."""
    from transformers import AutoModelForCausalLM

    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise CheckpointError(f"{len(files)} GGUF files in {folder}", expected="exactly one")
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=files[0].name, dtype=torch.float32)
    return model.config.to_dict(), {k: v.clone() for k, v in model.state_dict().items()}


def export_gguf_tokenizer(folder: Path, out: Path) -> None:
    """Write the tokenizer of a GGUF file in the tokenizer.json layout, with the image tokens added."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)
    tokenizer.add_tokens(list(NEW_TOKENS), special_tokens=True)
    tokenizer.save_pretrained(out)


def load_language(model: VisionLanguageModel, folder: Path) -> None:
    """Fill the language model from a Llama folder (safetensors or GGUF); new rows are the mean of the old ones."""
    if list(folder.glob("*.gguf")):
        _, state = read_gguf_llama(folder)
    else:
        state = dict(tensors(folder))
    wanted = model.language_model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = wanted[name].shape[0]
        if name in state and state[name].shape[0] < rows:
            mean = state[name].mean(0, keepdim=True)
            state[name] = torch.cat([state[name], mean.expand(rows - state[name].shape[0], -1)])
    if model.spec.language.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    wrong = [k for k in wanted if k not in state or state[k].shape != wanted[k].shape]
    if wrong:
        raise CheckpointError(f"{folder}: {len(wrong)} tensors missing or of another shape, first {wrong[0]}")
    model.language_model.load_state_dict({k: state[k] for k in wanted})


def with_tokenizer(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The spec with vocabulary size and context id of a tokenizer folder (tokenizer.json)."""
    from vlm.core.sample.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    spec = spec.with_language(vocab=len(tokenizer))
    if spec.image_tokens.context is None:
        return spec
    context = tokenizer.token_id(spec.image_tokens.context)
    if context is None:
        raise CheckpointError(f"{folder} has no token {spec.image_tokens.context}", fix="add the image tokens")
    return spec.model_copy(update={"image_tokens": spec.image_tokens.model_copy(update={"context_id": context})})


def build(
    spec: ModelSpec, *, tokenizer: Path, encoder: Path | None = None, language: Path | None = None, seed: int = 0
) -> VisionLanguageModel:
    """A model of `spec` with the vocabulary of `tokenizer`: pretrained parts where given, else fresh from `seed`."""
    model = initialized(with_tokenizer(spec, tokenizer), seed)
    if encoder is not None:
        load_timm_trunk(model, encoder)
    if language is not None:
        load_language(model, language)
    return model
