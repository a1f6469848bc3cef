"""A family is data: the description of encoder, projector, language model, image rule and positions of one model.

Presets are the YAML files in `presets/`; a checkpoint in our layout carries its spec in `config.json`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from vlm.core.config import Strict, find_table, load_yaml, parse
from vlm.core.errors import ConfigError
from vlm.core.sample.tiling import ImageRule


class InternVitSpec(Strict):
    """InternViT. `norm` is `layer_norm` (300M) or `rms_norm` (6B); `qk_norm` spans the full width, not one head."""

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


class ConvNextSpec(Strict):
    """ConvNeXt trunk with as many stages as `depths` has entries; no final norm. Stride 4 * 2^(stages - 1)."""

    kind: Literal["convnext"] = "convnext"
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    layer_scale_init: float = 1e-6
    drop_path: float = 0.0


class ExtraStage(Strict):
    """A ConvNeXt stage of stride 2 put behind a pretrained trunk (ConvLLaVA's fifth stage)."""

    width: int
    depth: int
    layer_scale_init: float = 1e-6


class TimmSpec(Strict):
    """Any timm model that gives feature maps, by name; `level` picks the map (-1: the deepest)."""

    kind: Literal["timm"] = "timm"
    name: str
    level: int = -1
    extra_stage: ExtraStage | None = None


VisionSpec = Annotated[InternVitSpec | ConvNextSpec | TimmSpec, Field(discriminator="kind")]


class UnshuffleSpec(Strict):
    """Pixel unshuffle + LayerNorm + two-layer MLP. `v1` emits tokens column by column, `v2` row by row."""

    kind: Literal["pixel_unshuffle"] = "pixel_unshuffle"
    version: Literal["v1", "v2"]
    ratio: float = 0.5


class MlpSpec(Strict):
    """`depth` linear layers with GELU between them (mlp2x_gelu: depth 2)."""

    kind: Literal["mlp"] = "mlp"
    depth: int = 2


ProjectorSpec = Annotated[UnshuffleSpec | MlpSpec, Field(discriminator="kind")]


class RopeScaling(Strict):
    """Length extrapolation of the rotary base. `dynamic` is NTK beyond `max_positions`; never used with V2PE."""

    kind: Literal["linear", "dynamic"]
    factor: float


class LanguageSpec(Strict):
    """A Llama. `vocab` is the number of embedding rows; `rotary_tables`: float64 phases and float32 tables, or the
    published float32 phases and tables in the dtype of the activations."""

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
    """How an image stands in the ids. InternVL: `<img>` context… `</img>`; LLaVA: only placeholders, outside the
    vocabulary (`context_id` -200, no bracket tokens)."""

    context: str | None = "<IMG_CONTEXT>"
    start: str | None = "<img>"
    end: str | None = "</img>"
    context_id: int


class ModelSpec(Strict):
    """Everything that makes a model of one family. `strides`: V2PE positions per tile by default, or None (arange)."""

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
        """A copy with language settings replaced, e.g. `with_language(vocab=512)`."""
        return self.model_copy(update={"language": self.language.model_copy(update=changes)})


def load_preset(name: str) -> ModelSpec:
    """The preset of that name (case-insensitive). Raises UnknownName with the nearest ones."""
    path = find_table("preset", name, "vlm.models", "presets")
    return parse(load_yaml(path), ModelSpec, where=path.name)


def tokens_per_tile(spec: ModelSpec) -> int:
    """Context tokens of one tile, by arithmetic alone: what a model of the spec says of itself, without building it.

    A timm trunk is taken for a pyramid whose deepest map has stride 32 and whose other levels halve it; a name that
    differs shows at the first image, where features and placeholders are compared.
    """
    vision, projector = spec.vision, spec.projector
    if isinstance(vision, InternVitSpec):
        stride = vision.patch_size
    elif isinstance(vision, ConvNextSpec):
        stride = 4 * 2 ** (len(vision.depths) - 1)
    else:
        if vision.level >= 0:
            raise ConfigError(f"timm level {vision.level}", expected="counted from the deepest map: -1, -2, ...")
        stride = 64 >> -vision.level
        stride *= 2 if vision.extra_stage else 1
    step = round(1 / projector.ratio) if isinstance(projector, UnshuffleSpec) else 1
    return (spec.image_rule.size // stride // step) ** 2
