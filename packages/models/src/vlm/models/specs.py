"""A model family as data: encoder, projector, language model, image rule and positions of one model.

>>> spec = load_preset("internvl2-2b")
>>> spec.vision.kind, spec.tokens_per_tile, spec.template
('intern_vit', 256, 'internlm2-chat')

Presets are the YAML files in `presets/`; a checkpoint in our format has its spec in `config.json`. Imports no torch.
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vlm.core.config import Strict, find_table, load_yaml, parse
from vlm.core.errors import CheckpointError, ConfigError
from vlm.core.sample.tiling import ImageRule

# bounds far above every published model: a damaged or hostile number is named before anything is built from it
Width = Annotated[int, Field(ge=1, le=1 << 20)]
Depth = Annotated[int, Field(ge=1, le=1000)]
Rows = Annotated[int, Field(ge=1, le=1 << 26)]
Pixels = Annotated[int, Field(ge=1, le=8192)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Chance = Annotated[float, Field(ge=0, lt=1)]


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError unless the width is a multiple of the number of heads."""
    if width % heads:
        raise ValueError(f"width {width} does not divide into {heads} heads")


class InternVitSpec(Strict):
    """An InternViT.

    `norm` is `layer_norm` (300M) or `rms_norm` (6B); `qk_norm` spans the full width, all heads together.
    `position_init` is the standard deviation of fresh class and position embeddings: 1 as published; 0.02 is ours, for
    short trainings from scratch, in which 1 hides the patches. A checkpoint does not store it.
    """

    kind: Literal["intern_vit"] = "intern_vit"
    width: Width
    depth: Depth
    heads: Width
    mlp_width: Width
    image_size: Pixels = 448
    patch_size: Pixels = 14
    norm: Literal["layer_norm", "rms_norm"]
    norm_eps: Positive = 1e-6
    qkv_bias: bool
    qk_norm: bool
    layer_scale_init: Finite = 1.0
    position_init: Positive = Field(default=1.0, exclude=True)
    drop_path: Chance = 0.0

    @model_validator(mode="after")
    def _shapes(self) -> "InternVitSpec":
        check_heads(self.width, self.heads)
        if self.patch_size > self.image_size:
            raise ValueError(f"patches of {self.patch_size} pixels in images of {self.image_size}")
        return self

    @property
    def stride(self) -> int:
        """Return the side in pixels of one cell of the feature grid."""
        return self.patch_size


class ConvNextSpec(Strict):
    """A ConvNeXt with as many stages as `depths` has entries, without a final norm."""

    kind: Literal["convnext"] = "convnext"
    depths: tuple[Depth, ...] = Field(min_length=4, max_length=8)
    widths: tuple[Width, ...] = Field(min_length=4, max_length=8)
    layer_scale_init: Finite = 1e-6
    drop_path: Chance = 0.0

    @model_validator(mode="after")
    def _stages(self) -> "ConvNextSpec":
        if len(self.depths) != len(self.widths):
            raise ValueError(f"{len(self.depths)} depths for {len(self.widths)} widths of stages")
        return self

    @property
    def stride(self) -> int:
        """Return the side in pixels of one cell of the feature grid: 4, doubled by each stage behind the first."""
        return int(4 * 2 ** (len(self.depths) - 1))


class ExtraStage(Strict):
    """A ConvNeXt stage of stride 2 behind a pretrained trunk (ConvLLaVA's fifth stage)."""

    width: Width
    depth: Depth
    layer_scale_init: Finite = 1e-6


class TimmSpec(Strict):
    """Any timm model with feature maps, by name; `level` selects the map (-1: the deepest).

    The name is one that timm itself knows: a prefix such as `hf-hub:` would make timm fetch somebody's files.
    """

    kind: Literal["timm"] = "timm"
    name: str = Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")
    level: int = Field(default=-1, ge=-6, le=8)
    extra_stage: ExtraStage | None = None

    @property
    def stride(self) -> int:
        """Return the side in pixels of one cell of the feature grid, without building the trunk.

        The deepest map is assumed to have stride 32, each level above it half of that. For a trunk that differs, the
        first image shows it: features and placeholders are compared.

        Raises:
            ConfigError: the level is not counted from the deepest map.
        """
        if self.level >= 0:
            raise ConfigError(f"timm level {self.level}", expected="counted from the deepest map: -1, -2, ...")
        return (64 >> -self.level) * (2 if self.extra_stage else 1)


VisionSpec = Annotated[InternVitSpec | ConvNextSpec | TimmSpec, Field(discriminator="kind")]


class UnshuffleSpec(Strict):
    """Pixel unshuffle, LayerNorm and a two-layer MLP. `v1` emits tokens column by column, `v2` row by row."""

    kind: Literal["pixel_unshuffle"] = "pixel_unshuffle"
    version: Literal["v1", "v2"]
    ratio: float = Field(default=0.5, ge=1 / 64, le=1)

    @property
    def step(self) -> int:
        """Return how many cells of a row become one token."""
        return round(1 / self.ratio)


class MlpSpec(Strict):
    """`depth` linear layers with GELU between them (mlp2x_gelu: depth 2)."""

    kind: Literal["mlp"] = "mlp"
    depth: int = Field(default=2, ge=1, le=16)

    @property
    def step(self) -> int:
        """Return how many cells of a row become one token."""
        return 1


ProjectorSpec = Annotated[UnshuffleSpec | MlpSpec, Field(discriminator="kind")]


LLAMA = "llama"
"""The usual kind of language model."""


class RopeScaling(Strict):
    """Extrapolation of the rotary base to longer inputs; `dynamic` is NTK beyond `max_positions`. Never with V2PE."""

    kind: Literal["linear", "dynamic"]
    factor: Positive


class LanguageSpec(Strict):
    """A decoder-only language model.

    `kind` is a key of `language.LANGUAGE_MODELS`; a stored spec leaves out the usual one. `vocab` is the number of
    embedding rows. `rotary_tables`: `exact` has float64 phases and float32 tables,
    `published` float32 phases and tables in the dtype of the activations.
    """

    kind: str = Field(default=LLAMA, exclude_if=lambda kind: kind == LLAMA)
    vocab: Rows
    width: Width
    depth: Depth
    heads: Width
    kv_heads: Width
    mlp_width: Width
    max_positions: int = Field(ge=1, le=1 << 40)
    rope_theta: Positive = 10000.0
    rope_scaling: RopeScaling | None = None
    rotary_tables: Literal["exact", "published"] = "exact"
    norm_eps: Positive = 1e-5
    tied: bool = False

    @model_validator(mode="after")
    def _shapes(self) -> "LanguageSpec":
        check_heads(self.width, self.heads)
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads for {self.kv_heads} key-value heads")
        if self.width // self.heads % 2:
            raise ValueError(f"heads of {self.width // self.heads} channels, which rotary positions need in pairs")
        return self


class ImageTokenSpec(Strict):
    """How an image is marked in the ids.

    InternVL: `<img>`, context tokens, `</img>`. LLaVA: placeholders alone, outside the vocabulary (`context_id` -200).
    """

    context: str | None = "<IMG_CONTEXT>"
    start: str | None = "<img>"
    end: str | None = "</img>"
    context_id: int = Field(ge=-(1 << 31), lt=1 << 31)


class ModelSpec(Strict):
    """Everything that makes a model of one family.

    `strides`: V2PE positions per tile by default, or None (0, 1, 2, ...). `stride_choices`: what training drew from,
    for each image, or None where it drew none.
    """

    family: str
    vision: VisionSpec
    projector: ProjectorSpec
    language: LanguageSpec
    image_rule: ImageRule
    image_tokens: ImageTokenSpec
    template: str
    strides: Positive | None = None
    stride_choices: tuple[Positive, ...] | None = None
    system: str | None = None

    @model_validator(mode="after")
    def _grid(self) -> "ModelSpec":
        cell = self.cell
        if self.image_rule.kind == "whole" and (self.vision.kind == "intern_vit" or self.image_rule.size != cell):
            raise ValueError(
                f"image rule `whole`, cells of {self.image_rule.size} pixels, encoder {self.vision.kind}; expected: a "
                f"convolutional encoder (convnext, timm) and cells of one token's side, {cell} pixels"
            )
        if self.vision.kind != "timm" and self.image_rule.size % cell:  # of a timm trunk the stride is an assumption
            raise ValueError(
                f"tiles of {self.image_rule.size} pixels, which are no multiple of {cell}, one token's side"
            )
        return self

    def check_stride(self) -> None:
        """Raise CheckpointError for a model with V2PE that names no stride: plain counting would be a silent guess."""
        if self.strides is None and self.stride_choices is not None:
            raise CheckpointError(
                "the checkpoint has V2PE positions, without a stride",
                expected="the stride that is used by default, positions a tile: 64 in the published evaluation",
                fix='pass --stride, or add "rope_pos_id_stride": 64 to its config.json',
            )

    def with_language(self, **changes: Any) -> "ModelSpec":
        """Return a copy with other language settings, e.g. `with_language(vocab=512)`."""
        return self.model_copy(update={"language": self.language.model_copy(update=changes)})

    @property
    def cell(self) -> int:
        """Return the side in pixels of the part of an image that becomes one token."""
        return self.vision.stride * self.projector.step

    def with_image_rule(self, name: str) -> "ModelSpec":
        """Return a copy with the image rule of that name: `whole`, `whole:TOKENS`, `whole:WIDTHxHEIGHT`, `pad`, ...

        Without a budget, `whole` may use as many tokens as an image has under the model's own rule. A budget in pixels
        is that of an image of so many pixels, rounded down to tokens. Another kind keeps the model's size; from `whole`
        it is the square that fills the budget.

        >>> load_preset("convllava-768").with_image_rule("whole").image_rule.max_tiles
        144

        Raises:
            ConfigError: no such rule, a budget that is none, or a rule that the encoder cannot take.
        """
        kind, _, budget = name.partition(":")
        rule, cell, whole = self.image_rule, self.cell, kind == "whole"
        found = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", budget, re.ASCII)
        if kind not in ("whole", "pad", "crop", "square") or (":" in name and not (whole and found)):
            raise ConfigError(
                f"image rule {name!r:.60}",
                expected="whole, whole:TOKENS, whole:WIDTHxHEIGHT (a budget in pixels), pad, crop or square",
            )
        own = rule.max_tiles if rule.kind == "whole" else self.tokens_per_tile
        if found:
            own = int(found[1]) if found[2] is None else int(found[1]) * int(found[2]) // cell**2
            if own < 1:
                raise ConfigError(
                    f"image rule {name}: no room for one token", expected=f"at least {cell}x{cell} pixels"
                )
        if whole:
            changes = {"kind": kind, "size": cell, "max_tiles": own, "min_tiles": 1}
        else:
            size = math.isqrt(rule.max_tiles) * cell if rule.kind == "whole" else rule.size
            changes = {"kind": kind, "size": size, "max_tiles": 12, "min_tiles": 1, "resize": "published"}
        wanted = {**self.model_dump(), "image_rule": {**rule.model_dump(), **changes}}
        return parse(wanted, ModelSpec, where=f"image rule {name}")

    @property
    def tokens_per_tile(self) -> int:
        """Return the context tokens of one tile, by arithmetic alone.

        Raises:
            ConfigError: a timm level that is not counted from the deepest map.
        """
        return int((self.image_rule.size // self.vision.stride // self.projector.step) ** 2)


def load_preset(name: str) -> ModelSpec:
    """Load a preset by its name (case-insensitive).

    >>> load_preset("convllava-768").tokens_per_tile
    144

    Raises:
        UnknownName: no such preset; names the nearest ones.
    """
    path = find_table("preset", name, "vlm.models", "presets")
    return parse(load_yaml(path), ModelSpec, where=path.name)
