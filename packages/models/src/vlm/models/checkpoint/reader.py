"""Read a checkpoint in any format under our names: every stored key is used, dropped by name, or an error."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from vlm.core.errors import CheckpointError, ConfigError
from vlm.models.checkpoint.formats.schema import CheckpointLayout
from vlm.models.checkpoint.fused_tensors import Way, way_to_make
from vlm.models.checkpoint.renaming import Patterns, Renaming, rename
from vlm.models.checkpoint.safetensors_io import Stored, WeightReader
from vlm.models.vlm import make_model

Vision = Literal["checkpoint", "tower"]
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass
class Accounts:
    """What each stored key was used for. `used`: their name -> ours; `copies`: of the vision copy that is not read."""

    used: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


class CheckpointReader:
    """Tensors of a checkpoint folder under our names, in the dtypes they are stored in.

    >>> source = CheckpointReader(read_layout(folder), folder)     # doctest: +SKIP
    >>> source.check()                                   # doctest: +SKIP
    >>> source.read("projector.1.weight")                # doctest: +SKIP

    `vision` chooses between the tower's folder and the copy in a LLaVA checkpoint. The default is the tower, which the
    published loader reads; `check_copy` then compares both.

    Attributes:
        wanted: our name -> meta tensor of the model that config.json describes, in the order of its state dict.
        accounts: what each stored key was used for.

    Raises:
        CheckpointError: files missing or damaged.
    """

    def __init__(self, layout: CheckpointLayout, folder: Path, vision: Vision | None = None):
        if vision not in (None, *get_args(Vision)):
            raise ConfigError(f"vision {vision!r}", expected=f"one of {', '.join(get_args(Vision))}")
        self.layout, self.folder, self.language = layout, folder, layout.spec.language
        with torch.device("meta"):
            model = make_model(layout.spec)
        self.wanted, self.tokens_per_tile = dict(model.state_dict()), model.tokens_per_tile
        self.accounts = Accounts()
        self._stored: dict[str, tuple[WeightReader, Stored]] = {}
        self._twins: dict[str, tuple[WeightReader, Stored]] = {}
        self._last: tuple[Stored, Tensor] | None = None
        self._open(vision)
        if self.language.tied:
            self.wanted.pop("language_model.lm_head.weight")
            self._drop("language_model.lm_head.weight")
        self._ways: dict[str, Way] = {}
        self._account()

    def _open(self, vision: Vision | None) -> None:
        """Rename everything that is stored; where the vision weights are stored twice, set one of them apart."""
        layout = self.layout
        reader = WeightReader(self.folder)
        copied = rename(list(reader.items), layout.copy or {})
        own = [key for key in reader.items if key not in copied.renamed and key not in copied.dropped]
        copy = self._named(reader, copied)
        tower: dict[str, tuple[WeightReader, Stored]] = {}
        self.accounts.dropped += copied.dropped
        for path, patterns in layout.towers:
            beside = WeightReader(path)
            tower |= self._named(beside, self._renaming(list(beside.items), patterns))
        if (vision == "checkpoint" and not copy) or (vision == "tower" and not tower):
            other = "tower" if vision == "checkpoint" else "checkpoint"
            raise CheckpointError(f"{self.folder}: no vision weights in the {vision}", fix=f"choose the {other}")
        first, second = (copy, tower) if vision == "checkpoint" or not tower else (tower, copy)
        self._stored = {**self._named(reader, self._renaming(own, layout.patterns)), **first}
        self._twins = second if vision is None else {}
        self.accounts.copies = [item.key for _, item in second.values()]

    def _renaming(self, keys: list[str], patterns: Patterns | None) -> Renaming:
        if patterns is None:
            return Renaming(renamed={key: key for key in keys})
        result = rename(keys, patterns)
        self.accounts.dropped += result.dropped
        self.accounts.unknown += result.unknown
        return result

    @staticmethod
    def _named(reader: WeightReader, renaming: Renaming) -> dict[str, tuple[WeightReader, Stored]]:
        named: dict[str, tuple[WeightReader, Stored]] = {}
        for key, name in renaming.renamed.items():
            if twin := named.get(name):
                raise CheckpointError(
                    f"{reader.items[key].file}: both {key} and {twin[1].key} stand for {name}",
                    expected="the names of one layout",
                )
            named[name] = (reader, reader.items[key])
        return named

    def _drop(self, name: str) -> None:
        if found := self._stored.pop(name, None):
            self.accounts.dropped.append(found[1].key)

    def _account(self) -> None:
        """Find how to make each wanted tensor; stored tensors that are not needed are unknown."""
        for name in self.wanted:
            if way := way_to_make(name, self._stored):
                self._ways[name] = way
                self.accounts.used |= {self._stored[need][1].key: name for need in way.needs}
            else:
                self.accounts.missing.append(name)
        needed = {need for way in self._ways.values() for need in way.needs}
        self.accounts.unknown += [item.key for name, (_, item) in self._stored.items() if name not in needed]

    def file(self, name: str) -> Path:
        """Return the file that holds (the first part of) one of our tensors."""
        return self._stored[self._ways[name].needs[0]][1].file

    def meta(self, name: str) -> Tensor:
        """Return a tensor without memory, of the shape and dtype that `read` returns."""
        way = way_to_make(name, self._stored)
        if way is None:
            raise KeyError(name)
        return way.make(*(self._stored[need][1].meta() for need in way.needs), self.language)

    def read(self, name: str) -> Tensor:
        """Return one tensor, as stored; split or fused where the formats differ."""
        way = way_to_make(name, self._stored)
        if way is None:
            raise KeyError(name)
        return way.make(*(self._read(*self._stored[need]) for need in way.needs), self.language)

    def _read(self, reader: WeightReader, item: Stored) -> Tensor:
        if self._last is None or self._last[0] != item:  # the parts of a fused tensor are read one by one
            self._last = None  # freed before the next one is there
            self._last = (item, reader.read(item.key))
        return self._last[1]

    def check(self) -> None:
        """Raise CheckpointError for unknown or missing tensors, wrong shapes and dtypes; names file, tensor and fix."""
        listing = f"`vlm weights inspect --keys {self.folder}` lists all"
        if unknown := self.accounts.unknown:
            raise CheckpointError(
                f"{self._file_of(unknown[0])}: {len(unknown)} unexpected tensors, first {', '.join(unknown[:4])}",
                expected="only tensors of the model that config.json describes",
                fix=f"check that config.json belongs to these weights; {listing}",
            )
        if missing := self.accounts.missing:
            files = sorted({item.file.name for _, item in self._stored.values()})
            raise CheckpointError(
                f"{self.folder}: {len(missing)} missing tensors, first {', '.join(missing[:4])}",
                expected=f"all tensors of config.json's model in {', '.join(files[:3])}{', ...' * (len(files) > 3)}",
                fix=f"download the checkpoint again; {listing}",
            )
        for name, want in self.wanted.items():
            self._check_one(name, want)

    def _file_of(self, key: str) -> Path:
        folders = [self.folder, *(path for path, _ in self.layout.towers)]
        return next(r.items[key].file for r in map(WeightReader, folders) if key in r.items)

    def _check_one(self, name: str, want: Tensor) -> None:
        items = [self._stored[need][1] for need in self._ways[name].needs]
        allowed = FLOATS if want.is_floating_point() else (want.dtype,)
        for item in items:
            if item.dtype not in allowed:
                names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
                raise CheckpointError(
                    f"{item.file}: {item.key} is {str(item.dtype).removeprefix('torch.')}",
                    expected=names,
                    fix="take the unquantized checkpoint",
                )
        try:
            shape = list(self.meta(name).shape)
        except (RuntimeError, IndexError):  # rows that do not divide into heads
            shape = []
        if shape != list(want.shape) or len({item.dtype for item in items}) > 1:
            found = ", ".join(f"{item.key} is {list(item.shape)} {item.dtype}" for item in items)
            raise CheckpointError(
                f"{items[0].file}: {found.replace('torch.', '')}",
                expected=f"{list(want.shape)} for {name}",
                fix="check that config.json belongs to these weights",
            )

    def check_copy(self) -> int:
        """Compare both copies of the vision weights, if there are two; return the number of tensors compared.

        Raises:
            CheckpointError: they differ; names the first tensor, the greatest difference, and how to choose.
        """
        twins = self._twins
        if not twins:
            return 0
        mine = {name: found for name, found in self._stored.items() if name.startswith("encoder.")}
        used, other = next(iter(mine.values()))[1].file.parent, next(iter(twins.values()))[1].file.parent
        fix = (
            f'the published loader reads {used}; choose with vision="tower" ({used}) or vision="checkpoint" '
            f"({other}), on the command line: vlm weights convert {self.folder} --to vlm --vision tower -o NEW"
        )
        if lonely := sorted(mine.keys() ^ twins.keys()):
            where = used if lonely[0] in mine else other
            raise CheckpointError(f"{lonely[0]} is only in {where}", expected="two equal vision copies", fix=fix)
        for name, (reader, item) in mine.items():
            twin_reader, twin = twins[name]
            ours, theirs = reader.read(item.key), twin_reader.read(twin.key)
            if ours.shape != theirs.shape:
                found = f"{list(ours.shape)} in {item.file}, {list(theirs.shape)} in {twin.file}"
            elif not torch.equal(ours.float(), theirs.float()):
                worst = (ours.float() - theirs.float()).abs().max().item()
                found = f"differs by up to {worst:.3g} between {item.file} and {twin.file}"
            else:
                continue
            raise CheckpointError(f"{name}: {found}", expected="two equal vision copies", fix=fix)
        return len(mine)
