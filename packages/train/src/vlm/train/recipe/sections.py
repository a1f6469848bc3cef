"""The sections of a recipe: model, data, optimizer, batch, parallelism, adapters, hardware, differences."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from vlm.core.config import Strict
from vlm.core.sample.records import Allowed

AtLeastZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""0 or more; neither infinite nor NaN."""
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""More than 0; neither infinite nor NaN."""
Share = Annotated[float, Field(ge=0, le=1)]
"""From 0 to 1."""
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
"""From 0 to 1, without 1."""


StartPart = Literal["tokenizer", "encoder", "projector", "language"]
"""What a start checkpoint is made of, by the options of `vlm weights make`."""


class DataEntry(Strict):
    """One annotation file.

    Attributes:
        name: short name, for tables and the ledger.
        file: JSONL, relative to the home.
        root: folder that its media paths are relative to.
        repeat: how often an epoch contains it (0.5: half of it).
        count: its number of records, checked before the run.
        max_tiles: tiles of an image, where the set has a limit of its own.
        allow: what its records may hold on purpose: `quoted-placeholders` (texts without files that quote `<image>` or
            `<video>`), `empty-answers` (as published, such a turn is its header alone).
    """

    name: str
    file: str
    root: str
    repeat: AtLeastZero = 1.0
    count: NonNegativeInt | None = None
    max_tiles: PositiveInt | None = None
    # left out where it is empty: runs from before it have the same digest
    allow: Annotated[tuple[Allowed, ...], Field(exclude_if=lambda value: not value)] = ()


class Model(Strict):
    """The model that a stage starts from.

    Attributes:
        start: the checkpoint: a path below the home, a name below `pretrained/`, or `{run}/...`.
        preset: its published shape, for plans before the weights are here.
        parts: options of the `vlm weights make` that makes the start, and their values: folders and files.
        spec: keys of the checkpoint's ModelSpec that the stage changes, such as `{vision: {drop_path: 0.1}}`,
            `{projector: {version: v1}}`, a `template`, or `{image_rule: "whole:576"}`: whole images without padding.
    """

    start: str
    preset: str
    # left out where it is empty: runs from before it have the same digest
    parts: Annotated[dict[StartPart, str], Field(exclude_if=lambda value: not value)] = Field(default_factory=dict)
    spec: dict[str, Any] = Field(default_factory=dict)


class Optimizer(Strict):
    """AdamW and the schedule of its rate.

    Attributes:
        lr: highest rate.
        weight_decay: of the parameters that decay.
        betas: of the moments.
        eps: of the division.
        clip: greatest norm of the gradient; 0 for no limit.
        schedule: of the rate after the warm-up.
        warmup: share of the steps below 1, a number of steps from 1 on.
        decay: `intended` leaves out norms, biases, LayerScale and embeddings; `trainer` does as transformers' Trainer
            did (leaves out biases and the norms it knows, not InternViT's RMSNorm, ConvNeXt's norms, LayerScale or
            embeddings); `published` does as V2PE's flat list did (everything decays).
        groups: name pattern -> a rate of its own.
    """

    lr: AtLeastZero
    weight_decay: AtLeastZero = 0.0
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)
    eps: AboveZero = 1e-8
    clip: AtLeastZero = 1.0
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    warmup: AtLeastZero = 0.03
    decay: Literal["intended", "trainer", "published"] = "intended"
    groups: dict[str, AtLeastZero] = Field(default_factory=dict)


class BatchSettings(Strict):
    """The samples of a step and how they are packed into rows.

    Attributes:
        samples: consecutive samples of the epoch's order that a step takes.
        max_tokens: of a row.
        max_tiles: of a row.
        packing: `best_fit` (ours), `greedy` (the published buffer of 20 open packs), or `none`: each sample has a row.
        grouping: `modality` gives a step samples with media or samples without, as a published sampler did to save
            padding; with packing it is not needed.
    """

    samples: PositiveInt
    max_tokens: PositiveInt
    max_tiles: PositiveInt = 1_000_000
    packing: Literal["best_fit", "greedy", "none"] = "best_fit"
    grouping: Literal["none", "modality"] = "none"


class SequenceParallel(Strict):
    """How many processes share a row, and how: `ring` passes keys and values round, `ulysses` exchanges heads."""

    size: PositiveInt = 1
    kind: Literal["ring", "ulysses"] = "ring"


class Lora(Strict):
    """Low-rank adapters of peft on the linear layers whose names match `targets`; scale `alpha / rank`."""

    rank: PositiveInt
    alpha: PositiveInt
    dropout: ShareBelowOne = 0.0
    targets: tuple[str, ...]


class Zero(Strict):
    """DeepSpeed's ZeRO stage, and whether optimizer states stay on the CPU."""

    stage: Literal[0, 1, 2, 3] = 0
    offload: bool = False


class Hardware(Strict):
    """Hardware of the published run; `vlm train` refuses to start with less unless `--force` is given."""

    gpus: PositiveInt
    memory_gb: PositiveInt
    note: str = ""


class Difference(Strict):
    """A key on which published sources disagree, or on which we differ from them on purpose.

    Attributes:
        key: the dotted key.
        ours: our value, in words.
        published: the published value, in words.
        why: the reason.
        set: dotted keys and values that `--published` uses instead; empty where no key of ours can express it.
    """

    key: str
    ours: str
    published: str
    why: str
    set: dict[str, Any] = Field(default_factory=dict)
