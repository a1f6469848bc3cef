"""A model family as data: encoder, projector, language model, image rule and positions of one model.

>>> spec = load_preset("internvl2-2b")
>>> spec.vision.kind, spec.tokens_per_tile, spec.template
('intern_vit', 256, 'internlm2-chat')

Presets are the YAML files in `presets/`; a checkpoint in our format has its spec in `config.json`. Imports no torch.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from vlm.core.config import Strict, find_table, load_yaml, parse
from vlm.core.errors import ConfigError
from vlm.core.sample.tiling import ImageRule


class InternVitSpec(Strict):
    """An InternViT.

    `norm` is `layer_norm` (300M) or `rms_norm` (6B); `qk_norm` spans the full width, all heads together.
    """

    kind: Literal["intern_vit"] = "intern_vit"
    width: int
    depth: int
    heads: int
    mlp_width: int
    image_size: int = 448
    patch_size: int = 14
    norm: Literal["layer_norm", "rms_norm"]
    norm_eps: float = 1e-6
    qkv_bias: bool
    qk_norm: bool
    layer_scale_init: float = 1.0
    drop_path: float = 0.0

    @property
    def stride(self) -> int:
        """Return the side in pixels of one cell of the feature grid."""
        return self.patch_size


class ConvNextSpec(Strict):
    """A ConvNeXt with as many stages as `depths` has entries, without a final norm."""

    kind: Literal["convnext"] = "convnext"
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    layer_scale_init: float = 1e-6
    drop_path: float = 0.0

    @property
    def stride(self) -> int:
        """Return the side in pixels of one cell of the feature grid: 4, doubled by each stage behind the first."""
        return int(4 * 2 ** (len(self.depths) - 1))


class ExtraStage(Strict):
    """A ConvNeXt stage of stride 2 behind a pretrained trunk (ConvLLaVA's fifth stage)."""

    width: int
    depth: int
    layer_scale_init: float = 1e-6


class TimmSpec(Strict):
    """Any timm model with feature maps, by name; `level` selects the map (-1: the deepest)."""

    kind: Literal["timm"] = "timm"
    name: str
    level: int = -1
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
    ratio: float = 0.5

    @property
    def step(self) -> int:
        """Return how many cells of a row become one token."""
        return round(1 / self.ratio)


class MlpSpec(Strict):
    """`depth` linear layers with GELU between them (mlp2x_gelu: depth 2)."""

    kind: Literal["mlp"] = "mlp"
    depth: int = 2

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
    factor: float


class LanguageSpec(Strict):
    """A decoder-only language model.

    `kind` is a key of `language.LANGUAGE_MODELS`; a stored spec leaves out the usual one. `vocab` is the number of
    embedding rows. `rotary_tables`: `exact` has float64 phases and float32 tables,
    `published` float32 phases and tables in the dtype of the activations.
    """

    kind: str = Field(default=LLAMA, exclude_if=lambda kind: kind == LLAMA)
    vocab: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    mlp_width: int
    max_positions: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rotary_tables: Literal["exact", "published"] = "exact"
    norm_eps: float = 1e-5
    tied: bool = False


class ImageTokenSpec(Strict):
    """How an image is marked in the ids.

    InternVL: `<img>`, context tokens, `</img>`. LLaVA: placeholders alone, outside the vocabulary (`context_id` -200).
    """

    context: str | None = "<IMG_CONTEXT>"
    start: str | None = "<img>"
    end: str | None = "</img>"
    context_id: int


class ModelSpec(Strict):
    """Everything that makes a model of one family.

    `strides`: V2PE positions per tile by default, or None (0, 1, 2, ...).
    """

    family: str
    vision: VisionSpec
    projector: ProjectorSpec
    language: LanguageSpec
    image_rule: ImageRule
    image_tokens: ImageTokenSpec
    template: str
    strides: float | None = None
    system: str | None = None

    def with_language(self, **changes: Any) -> "ModelSpec":
        """Return a copy with other language settings, e.g. `with_language(vocab=512)`."""
        return self.model_copy(update={"language": self.language.model_copy(update=changes)})

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
