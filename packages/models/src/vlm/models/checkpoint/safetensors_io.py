"""Weight files of any format: read headers, read one tensor at a time, write shard by shard.

Safetensors are preferred; pickles are read with `weights_only`, and only where there are no safetensors.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import is_zipfile

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlm.core.errors import CheckpointError, ConfigError, HardwareError
from vlm.core.home import naming, read_object
from vlm.core.paths import is_data
from vlm.core.progress import Report, silent
from vlm.core.text import printable
from vlm.models.checkpoint.locate import is_file

SHARD_SIZE = "5GB"
AGAIN = "the file is damaged: download it again"
NAMED_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.[a-z]+)$")
DTYPES = {
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "U32": torch.uint32,
    "I32": torch.int32, "BF16": torch.bfloat16, "F16": torch.float16, "U16": torch.uint16, "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
"""The names of dtypes in safetensors headers, in the order of their tensors in a file."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def indexed_files(index: Path) -> list[Path]:
    """Return the shards that an index names.

    Raises:
        CheckpointError: a damaged index, or missing shards.
    """
    shards = read_object(index, CheckpointError, fix="download it again").get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) else []
    endings = (".safetensors",) if index.name.endswith(".safetensors.index.json") else (".bin",)
    if wrong := [n for n in names if not isinstance(n, str) or not n.endswith(endings) or not is_data(n)]:
        raise CheckpointError(
            f"{index} names the shard {printable(repr(wrong[0]))}",
            expected=f"{endings[0]} files in the folder of the index",
            fix="do not use these weights: a published index names only files beside it",
        )
    if not names:
        raise CheckpointError(f"{index} is no index of shards", expected="a `weight_map`", fix="download it again")
    files = [index.parent / name for name in sorted(set(names))]
    check_shards(index.parent, [f.name for f in files if not is_file(f)])
    return files


def check_shards(folder: Path, missing: list[str]) -> None:
    """Raise CheckpointError if any shard is missing."""
    if missing:
        raise CheckpointError(f"{folder}: missing shards {', '.join(missing)}", fix="download the checkpoint again")


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder: safetensors if there are any, else pickles.

    Raises:
        CheckpointError: no weights; a damaged index; a missing shard, by the index or by the count in a file name.
    """
    for index, whole, pattern in (
        ("model.safetensors.index.json", "model.safetensors", "*.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model*.bin"),
    ):
        if (folder / index).exists():
            return indexed_files(folder / index)
        if is_file(folder / whole):
            return [folder / whole]
        if files := sorted(file for file in folder.glob(pattern) if file.is_file()):
            names = {f.name for f in files}
            for match in filter(None, map(NAMED_SHARD.match, sorted(names))):
                stem, _, total, ending = match.groups()
                expected = [f"{stem}-{i:05d}-of-{total}{ending}" for i in range(1, int(total) + 1)]
                check_shards(folder, [name for name in expected if name not in names])
            return files
    raise CheckpointError(
        f"no weights in {folder}",
        expected="*.safetensors or pytorch_model*.bin",
        fix=f"vlm download {folder.name}, if it is a published checkpoint",
    )


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds any weight file or index."""
    return any(f for p in ("*.safetensors*", "pytorch_model*.bin*") for f in folder.glob(p))


@dataclass(frozen=True)
class Stored:
    """One tensor on disk."""

    file: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def meta(self) -> Tensor:
        """Return a tensor of that dtype and shape without memory."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


class WeightReader:
    """The weights of a folder; files stay open, memory-mapped.

    >>> reader = WeightReader(Path("pretrained/InternVL2-2B"))        # doctest: +SKIP
    >>> reader.items["mlp1.1.weight"].shape                            # doctest: +SKIP
    (2048, 4096)

    Attributes:
        items: key -> file, dtype and shape, from the headers.
    """

    def __init__(self, folder: Path):
        self.items: dict[str, Stored] = {}
        self._open: dict[Path, Any] = {}
        for file in weight_files(folder):
            for item in self._headers(file):
                if twin := self.items.get(item.key):
                    raise CheckpointError(
                        f"{file} and {twin.file.name} both hold {item.key}",
                        expected="each tensor once",
                        fix="keep the files of one checkpoint in a folder",
                    )
                self.items[item.key] = item

    def _headers(self, file: Path) -> Iterator[Stored]:
        if file.suffix != ".safetensors":
            state = self._open[file] = load_pickle(file)
            for key, tensor in state.items():
                yield Stored(file, key, tensor.dtype, tuple(tensor.shape))
            return
        file.open("rb").close()  # safetensors calls a file that may not be read a missing one
        try:
            handle = self._open[file] = safe_open(file, "pt")
            for key in handle.keys():  # noqa: SIM118
                head = handle.get_slice(key)
                if (dtype := DTYPES.get(head.get_dtype())) is None:
                    raise CheckpointError(f"{file}: {key} is {head.get_dtype()}", expected=", ".join(DTYPES))
                yield Stored(file, key, dtype, tuple(head.get_shape()))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: {printable(error)}", fix=AGAIN) from error
        except RuntimeError as error:
            if "Cannot allocate memory" not in str(error):
                raise
            raise HardwareError(
                f"{file}: {file.stat().st_size / 1e9:.1f} GB, more than this machine lets a process map",
                expected=f"shards of {SHARD_SIZE}, as published",
                fix="get the weights in shards, or use a larger machine",
            ) from error

    def read(self, key: str) -> Tensor:
        """Return a tensor, as stored."""
        file = self.items[key].file
        handle = self._open[file]
        tensor: Tensor = handle[key] if isinstance(handle, dict) else handle.get_tensor(key)
        return tensor


def load_pickle(file: Path) -> dict[str, Tensor]:
    """Return the state dict of tensors in a pickle; nothing in it is executed.

    Raises:
        CheckpointError: damaged, or it holds anything else.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))  # not of old pickles
    except Exception as error:  # whatever a damaged or hostile pickle makes the unpickler raise
        said = str(error).splitlines()
        raise CheckpointError(
            f"{file}: {type(error).__name__}: {printable(said[0] if said else '')}",
            expected="a state dict of tensors alone, as torch.save writes it",
            fix="download it again, or take the safetensors of the same model",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and is_plain(t) for k, t in state.items()):
        raise CheckpointError(f"{file} holds something else than tensors by name", expected="a state dict")
    return state


def is_plain(value: object) -> bool:
    """Return whether a value is a dense tensor with its data in memory."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of the weight files of a folder, one tensor in memory at a time."""
    reader = WeightReader(folder)
    for key in reader.items:
        yield key, reader.read(key)


def nbytes(tensor: Tensor) -> int:
    """Return the size of a tensor in bytes, also of a meta tensor."""
    return tensor.numel() * tensor.element_size()


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write tensors to a safetensors file. Raises OSError when it cannot be written; names the file."""
    save_streamed(tensors, tensors.__getitem__, file)


def save_streamed(shapes: Mapping[str, Tensor], read: Callable[[str], Tensor], file: Path) -> None:
    """Write a safetensors file tensor by tensor, the same bytes as `safetensors.torch.save_file` writes at once.

    Args:
        shapes: name -> any tensor of its shape and dtype, also a meta tensor.
        read: function from a name to its tensor; called once for each, in `file_order`. One tensor is in memory.
        file: where to write.

    Raises:
        OSError: it cannot be written; names the file.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in file_order(shapes):
        start, end = end, end + nbytes(shapes[name])
        kind, shape = DTYPE_NAMES[shapes[name].dtype], list(shapes[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with naming(file), file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in file_order(shapes):
            _write(out, name, read(name), shapes[name])


def _write(out: BinaryIO, name: str, tensor: Tensor, announced: Tensor) -> None:
    tensor = tensor.detach().cpu().contiguous()
    if (tensor.dtype, tensor.shape) != (announced.dtype, announced.shape):
        found, wanted = (f"{t.dtype} {list(t.shape)}" for t in (tensor, announced))
        raise ValueError(f"{name} is {found}, announced was {wanted}")
    out.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def file_order(shapes: Mapping[str, Tensor]) -> list[str]:
    """Return names as a safetensors file holds them: by dtype, the wide ones first, then by name."""
    rank = list(DTYPE_NAMES)
    return sorted(shapes, key=lambda name: (rank.index(shapes[name].dtype), name))


def write_shards(
    shapes: dict[str, Tensor],
    read: Callable[[str], Tensor],
    folder: Path,
    *,
    max_shard_size: str = SHARD_SIZE,
    report: Report = silent,
) -> None:
    """Write `model*.safetensors` (and the index, if there are several) with one tensor in memory.

    Args:
        shapes: name -> any tensor of the final shape and dtype, also a meta tensor, in the order of the shards.
        read: function from a name to its tensor; called once for each, in `write_order`.
        folder: where the files are written.
        max_shard_size: e.g. `5GB`.
        report: called with (bytes done, bytes in all).

    Raises:
        ConfigError: `max_shard_size` is not a size such as 5GB.
    """
    done, total = 0, sum(map(nbytes, shapes.values()))

    def reported(name: str) -> Tensor:
        nonlocal done
        done += nbytes(shapes[name])
        report(done, total)
        return read(name)

    plan = _in_shards(shapes, max_shard_size)
    for name, keys in plan.filename_to_tensors.items():
        save_streamed({key: shapes[key] for key in keys}, reported, folder / name)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_order(shapes: dict[str, Tensor], max_shard_size: str = SHARD_SIZE) -> list[str]:
    """Return the names in the order in which `write_shards` reads them."""
    files = _in_shards(shapes, max_shard_size).filename_to_tensors.values()
    return [name for keys in files for name in file_order({key: shapes[key] for key in keys})]


def _in_shards(shapes: dict[str, Tensor], max_shard_size: str) -> StateDictSplit:
    try:
        return split_state_dict_into_shards_factory(
            shapes,
            get_storage_size=nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise ConfigError(f"max shard size {max_shard_size!r}", expected="a size such as 500MB or 5GB") from error
