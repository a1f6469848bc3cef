"""Write a checkpoint in the `hf` layout with 8-bit or 4-bit weights, as transformers and bitsandbytes store them.

>>> convert_quantized("OpenGVLab/InternVL2-2B", "pretrained/InternVL2-2B-hf-4bit", "4bit")    # doctest: +SKIP
"""

import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from vlm.core.errors import CheckpointError, ConfigError, HardwareError, UnknownName
from vlm.core.extras import require
from vlm.core.home import new_folder, read_object, resolve, write_json
from vlm.core.progress import Report, human_bytes, silent
from vlm.core.text import printable
from vlm.models.checkpoint.convert import check_new, convert
from vlm.models.checkpoint.load import is_finite
from vlm.models.checkpoint.placement import DTYPES, QUANTIZATIONS
from vlm.models.checkpoint.reader import Vision
from vlm.models.checkpoint.safetensors_io import SHARD_SIZE, tensors, weight_files

DECODER = "model.language_model.layers."
"""Where transformers has the layers whose linears are quantized; `placement.quantized_linears` chooses the same."""

SKIPPED = ["lm_head", "model.multi_modal_projector", "model.vision_tower", "multi_modal_projector", "vision_tower"]
"""Modules that keep their weights, by their names in memory (transformers compares these) and in the files."""


def convert_quantized(
    path: str | Path,
    out: Path,
    quantize: str,
    *,
    to: str = "hf",
    max_shard_size: str = SHARD_SIZE,
    vision: Vision | None = None,
    allow: Collection[str] = (),
    report: Report = silent,
) -> Path:
    """Write a quantized copy of a checkpoint that transformers opens as it is; return the folder.

    The linear layers of the decoder are quantized: int8, or NF4 with double quantization. Encoder, projector, embedding
    and head stay as they are in the `hf` export, which is made first, in a folder that is removed. The new folder
    appears complete or not at all. It needs no GPU. Other arguments are those of `convert`.

    Args:
        path: a folder, or a name below `pretrained/`, in any format.
        out: a new or empty folder.
        quantize: `8bit` or `4bit`.
        to: the layout; only `hf` can hold such weights.
        max_shard_size: e.g. `5GB`.
        vision: which copy of a LLaVA checkpoint's vision weights to read.
        allow: names of `LOSSES` that the layout may lose.
        report: called with (bytes done, bytes in all) of the export.

    Raises:
        UnknownName, ConfigError: another layout or quantization; what `convert` refuses.
        CheckpointError: the source is damaged, holds NaN or infinity, or is quantized already.
        HardwareError: bitsandbytes is missing or too old; the disk is too small.
    """
    if quantize not in QUANTIZATIONS:
        raise UnknownName("quantization", quantize, QUANTIZATIONS)
    if to != "hf":
        raise ConfigError(
            f"--quantize with --to {printable(to)}: nothing that reads this layout reads weights of bitsandbytes",
            expected="--to hf",
            fix="write --to hf; or leave out --quantize here, and give it to `vlm chat` or `vlm serve`",
        )
    require("quant", f"--quantize {quantize}")
    out = check_new(resolve(out))
    with new_folder(out) as folder:
        whole = convert(
            path, to, folder / "whole", max_shard_size=max_shard_size, vision=vision, allow=allow, report=report
        )
        config = read_object(whole / "config.json", CheckpointError)
        check_numbers(whole, config["dtype"], path)
        with quiet():
            model = load_quantized(whole, quantize, config["dtype"])
            size = model.get_memory_footprint()
            if (free := shutil.disk_usage(folder).free) < size:
                raise HardwareError(
                    f"{human_bytes(free)} free at {out.parent}", expected=human_bytes(size), fix="choose another disk"
                )
            model.save_pretrained(folder, max_shard_size=max_shard_size)
        saved = read_object(folder / "config.json", CheckpointError)
        kept = {*weight_files(whole), whole / "model.safetensors.index.json"}
        for file in sorted(set(whole.iterdir()) - kept):
            shutil.copyfile(file, folder / file.name)
        write_json(folder / "config.json", {**config, "quantization_config": saved["quantization_config"]})
        for file in weight_files(folder):
            shutil.copymode(folder / "config.json", file)  # the library writes them for their owner alone
        del model  # it may still read the files of the export
        shutil.rmtree(whole)
    return out


def check_numbers(folder: Path, dtype: str, source: str | Path) -> None:
    """Check that weights can be quantized: of a type that bitsandbytes takes, and without NaN, which it would hide.

    Raises:
        CheckpointError: they cannot.
    """
    if dtype == "float64":
        raise CheckpointError(
            f"{source}: the weights are float64, which bitsandbytes does not quantize",
            expected="float32, bfloat16 or float16",
            fix="leave out --quantize, and give it to `vlm chat` or `vlm serve`",
        )
    if broken := [name for name, tensor in tensors(folder) if not is_finite(tensor)]:
        raise CheckpointError(
            f"{source}: NaN or infinity in {len(broken)} tensors, first {', '.join(broken[:4])}",
            expected="numbers: quantized, they would look like weights",
            fix="take another checkpoint of this run",
        )


def load_quantized(folder: Path, quantize: str, dtype: str) -> Any:
    """Return the model of an `hf` folder as transformers quantizes it on the CPU.

    Raises:
        HardwareError: a library is too old.
        CheckpointError: the library quantizes other modules than ours does.
    """
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    settings: dict[str, Any] = {"load_in_8bit": True}
    if quantize == "4bit":
        settings = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": DTYPES[dtype],
        }
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            folder,
            quantization_config=BitsAndBytesConfig(**settings, llm_int8_skip_modules=SKIPPED),
            device_map={"": "cpu"},
            dtype=DTYPES[dtype],
            local_files_only=True,
        )
    except ImportError as error:
        raise HardwareError(
            f"transformers cannot use the installed bitsandbytes: {printable(error)}",
            fix=f"{sys.executable} -m pip install -U bitsandbytes accelerate",
        ) from error
    linears = {name: m.weight.dtype for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    low = (torch.int8, torch.uint8)
    if wrong := [name for name, kind in linears.items() if (kind in low) != name.startswith(DECODER)]:
        raise CheckpointError(
            f"the installed transformers quantizes other modules than asked: {', '.join(wrong[:3])}",
            expected="the linear layers of the decoder alone",
            fix=f'{sys.executable} -m pip install "transformers==5.23.0"',
        )
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars of transformers, and keep what libraries print away from our standard output."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stdout(sys.stderr):  # the logger of DeepSpeed, which transformers imports where it is installed
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
