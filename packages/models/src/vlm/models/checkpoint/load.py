"""Load a model from a checkpoint in any format, tensor by tensor; save one in ours.

>>> model = load_model("pretrained/InternVL2-2B", "cuda", "bfloat16")      # doctest: +SKIP
>>> save_model(model, Path("pretrained/mine"))                              # doctest: +SKIP
"""

import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vlm.core.errors import CheckpointError
from vlm.core.home import new_folder, write_json
from vlm.core.progress import Report, silent
from vlm.models.attention import check_name
from vlm.models.checkpoint.formats.ours import write_spec
from vlm.models.checkpoint.formats.schema import CheckpointLayout
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.locate import find_checkpoint
from vlm.models.checkpoint.placement import Devices, make_placement, make_storage
from vlm.models.checkpoint.reader import CheckpointReader, Vision
from vlm.models.checkpoint.safetensors_io import tensors as tensors
from vlm.models.checkpoint.safetensors_io import weight_files, write_shards
from vlm.models.memory import check_weights
from vlm.models.specs import ModelSpec
from vlm.models.vlm import VisionLanguageModel, make_model


def renamed_tensors(
    layout: CheckpointLayout,
    folder: Path,
    vision: Vision | None = None,
    checked: Callable[[CheckpointReader], None] = lambda _: None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (our name, tensor) of exactly the tensors of the model that config.json describes, file by file.

    `checked` is called before the first tensor is read.

    Raises:
        CheckpointError: before the first tensor, if any is unknown, missing, or of a wrong shape or dtype.
    """
    source = CheckpointReader(layout, folder, vision)
    source.check()
    source.check_copy()
    checked(source)
    for name in sorted(source.wanted, key=source.file):
        yield name, source.read(name)


def load_model(
    path: str | Path,
    device: str | Devices = "cpu",
    dtype: str = "float32",
    *,
    quantize: str | None = None,
    offload: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    vision: Vision | None = None,
    attention: str = "auto",
    kv_dtype: str = "auto",
    kv_offload: bool = False,
    infer: bool = False,
    adjust: Callable[[ModelSpec], ModelSpec] | None = None,
    placed: Callable[[nn.Parameter], None] | None = None,
) -> VisionLanguageModel:
    """Return a model in eval mode from a folder in any format (ours, InternVL, its `-hf` form, LLaVA / ConvLLaVA).

    Each tensor goes from the file straight to its device; there is never a second copy of the model. Tensors that hold
    NaN or infinity are named in a RuntimeWarning: every answer of such a model is worthless.

    Args:
        path: a folder, or a name below `pretrained/`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `map` (layers over all GPUs), or a dict from module to device.
        dtype: `float32`, `bfloat16`, `float16`, `float64`, or `auto`: as stored.
        quantize: `8bit` or `4bit`, the language model's linear layers alone (bitsandbytes); `int8` or `int4`: the same
            by torch's own kernels, in bfloat16 on a CPU.
        offload: `cpu` or `disk`: where the decoder layers are kept while they are not used.
        progress: called with (parameters read, all parameters).
        vision: `tower` or `checkpoint`: which vision weights of a LLaVA folder to take, if the two copies differ.
        attention: `auto`, `sdpa`, `varlen` or `flash_attention_2`; see `vlm.models.attention`.
        kv_dtype: of the keys and values that generation keeps: `float32`, `bfloat16`, `float16`, `int8`, `fp8`, or
            `auto`: the dtype of the weights.
        kv_offload: keep them in the memory of the CPU; one layer at a time is on the device.
        infer: the model only answers: in bfloat16 on a CPU its linear layers are packed for the kernels, which gives
            the same numbers in less time, and their weights are no parameters.
        adjust: function from the checkpoint's spec to the one to build, e.g. with drop path; tensors must be the same.
        placed: called with each parameter once it is loaded, before the next is read; may keep only a slice (ZeRO-3).

    Raises:
        CheckpointError: missing or unknown tensors, wrong shapes or dtypes, damaged files; before a tensor is read.
        ConfigError: a placement that is impossible, before anything is read.
        HardwareError: one that is impossible here, or weights that do not fit the memory, before anything is read.
    """
    check_name(attention)
    storage = make_storage(device, kv_dtype, kv_offload)
    folder = find_checkpoint(path)
    layout = read_layout(folder)
    if adjust is not None:
        layout = replace(layout, spec=adjust(layout.spec))
    placement = make_placement(layout.spec, device, dtype, quantize=quantize, offload=offload, infer=infer)
    with torch.device("meta"):
        model = make_model(layout.spec)
    wanted = dict(model.state_dict())
    if layout.spec.language.tied:
        wanted.pop("language_model.lm_head.weight")
    parameters = {name for name, _ in model.named_parameters()}
    total, done = sum(t.numel() for t in wanted.values()), 0

    def check_memory(source: CheckpointReader) -> None:
        stored = {name: source.meta(name) for name in source.wanted}
        others = ((option, other.needs(model, stored)) for option, other in placement.smaller(layout.spec))
        check_weights(folder, placement.needs(model, stored), others)

    placement.prepare(model)
    broken: list[str] = []
    for name, tensor in renamed_tensors(layout, folder, vision, *([check_memory] if placed is None else [])):
        if not is_finite(tensor):
            broken.append(name)
        placement.put(model, name, tensor)
        done += tensor.numel()
        del tensor  # before the next one is read
        if placed and name in parameters:
            placed(model.get_parameter(name))
        if progress:
            progress(done, total)
    if broken:
        more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
        text = f"{folder}: NaN or infinity in {len(broken)} of {len(wanted)} tensors: {', '.join(broken[:4])}{more}"
        warnings.warn(f"{text}; take another checkpoint of this run", RuntimeWarning, stacklevel=2)
    placement.finish(model)
    model.set_attention(attention)
    model.kv_storage = storage
    return model.eval()


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity, in one pass and without a copy."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = tensor.aminmax()  # NaN wins both
    return bool(low.isfinite() and high.isfinite())


def save_model(model: VisionLanguageModel, folder: Path, *, tokenizer: Path | None = None) -> None:
    """Write a model in our format: `config.json`, safetensors shards, tokenizer files."""
    save_state(model.state_dict(), model.spec, folder, tokenizer=tokenizer)


def save_state(tensors: dict[str, Tensor], spec: ModelSpec, folder: Path, *, tokenizer: Path | None = None) -> None:
    """Write a state dict as `save_model` does; `folder` is replaced at once."""
    state = dict(tensors)
    if spec.language.tied:
        state.pop("language_model.lm_head.weight")
    with new_folder(Path(folder)) as temporary:
        write_checkpoint(temporary, spec, state, state.__getitem__, tokenizer=tokenizer)


def write_checkpoint(
    folder: Path,
    spec: ModelSpec,
    shapes: dict[str, Tensor],
    read: Callable[[str], Tensor],
    *,
    tokenizer: Path | None = None,
    report: Report = silent,
) -> None:
    """Write the files of a checkpoint in our format; see `write_shards` for `shapes`, `read` and `report`."""
    write_shards(shapes, read, folder, report=report)
    write_json(folder / "config.json", write_spec(spec))
    if tokenizer is not None:
        copy_tokenizer(tokenizer, folder)


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files of a folder.

    Raises:
        CheckpointError: there are none.
    """
    found = [source / n for n in TOKENIZER_FILES if (source / n).exists()]
    if not found:
        raise CheckpointError(f"no tokenizer in {source}", expected=f"one of {', '.join(TOKENIZER_FILES[:3])}")
    for file in found:
        shutil.copyfile(file, target / file.name)


def fingerprint(folder: Path) -> str:
    """Return the sha256 over names and contents of all configuration and weight files, a vision tower's included."""
    digest, layout = hashlib.sha256(), read_layout(folder)
    towers = [file for tower, _ in layout.towers for file in weight_files(tower)]
    for file in [folder / "config.json", *weight_files(folder), *layout.files, *towers]:
        digest.update(file.name.encode())
        with file.open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


def initialized(spec: ModelSpec, seed: int) -> VisionLanguageModel:
    """Return a model with fresh weights that depend on `seed` alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_model(spec)
