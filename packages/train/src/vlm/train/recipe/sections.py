"""The parts of a recipe: model, data, optimizer, batch, parallelism, adapters, hardware, differences."""

from typing import Any, Literal

from pydantic import Field

from vlm.core.config import Strict


class DataEntry(Strict):
    """One annotation file. `root`: where its media paths start; `repeat`: how often an epoch holds it (0.5 = half);
    `count`: its number of records, checked before the run; `max_tiles`: tiles of an image, where the set has its own
    limit."""

    name: str
    file: str
    root: str
    repeat: float = 1.0
    count: int | None = None
    max_tiles: int | None = None


class Model(Strict):
    """`start`: the checkpoint to train from, a path below the home, a name below `pretrained/`, or `{run}/...`;
    `preset`: the published shape, used to plan before the weights are here; `spec`: keys of the checkpoint's ModelSpec
    that the stage sets anew, such as `{vision: {drop_path: 0.1}}`, `{projector: {version: v1}}` or a `template`."""

    start: str
    preset: str
    spec: dict[str, Any] = Field(default_factory=dict)


class Optimizer(Strict):
    """AdamW. `groups` gives name patterns their own rate. `decay`: `intended` spares norms, biases, LayerScale and
    embeddings; `trainer` does as transformers' Trainer did (spares biases and the norms it knows, not InternViT's
    RMSNorm, ConvNeXt's norms, LayerScale or embeddings); `published` as V2PE's flat list did (spares nothing)."""

    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 1.0
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    warmup: float = 0.03
    decay: Literal["intended", "trainer", "published"] = "intended"
    groups: dict[str, float] = Field(default_factory=dict)


class Batch(Strict):
    """A step takes `samples` consecutive samples of the epoch's order and packs them into rows of at most
    `max_tokens` tokens and `max_tiles` tiles: `best_fit` (ours), `greedy` (the published buffer of 20 open packs), or
    `none`, where each sample has a row of its own. `grouping: modality` gives a step samples with media or samples
    without, as a published sampler did to save padding; packing makes it needless."""

    samples: int
    max_tokens: int
    max_tiles: int = 1_000_000
    packing: Literal["best_fit", "greedy", "none"] = "best_fit"
    grouping: Literal["none", "modality"] = "none"


class SequenceParallel(Strict):
    """How many processes share one row, and how: `ring` passes keys and values round, `ulysses` exchanges heads."""

    size: int = Field(default=1, ge=1)
    kind: Literal["ring", "ulysses"] = "ring"


class Lora(Strict):
    """Low-rank adapters of peft on the linear layers whose names match `targets`; scale `alpha / rank`."""

    rank: int = Field(ge=1)
    alpha: int
    dropout: float = 0.0
    targets: tuple[str, ...]


class Zero(Strict):
    """DeepSpeed ZeRO stage and whether optimizer states stay on the CPU."""

    stage: Literal[0, 1, 2, 3] = 0
    offload: bool = False


class Hardware(Strict):
    """What the published run used; `vlm train` refuses to start with less unless `--force`."""

    gpus: int
    memory_gb: int
    note: str = ""


class Difference(Strict):
    """A place where published sources disagree, or where we differ from them on purpose. `set`: dotted keys and values
    that `--published` puts in, to do as published; empty where no key of ours can."""

    key: str
    ours: str
    published: str
    why: str
    set: dict[str, Any] = Field(default_factory=dict)
