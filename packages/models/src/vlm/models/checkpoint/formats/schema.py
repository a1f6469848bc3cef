"""What the checkpoint formats share: the result of reading one, the files to write, the keys of a Llama."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vlm.core.errors import CheckpointError, ConfigError
from vlm.core.sample.tokenizer import has_tokenizer, load_tokenizer
from vlm.models.checkpoint.renaming import Patterns
from vlm.models.checkpoint.safetensors_io import WeightReader, has_weights
from vlm.models.specs import InternVitSpec, LanguageSpec, ModelSpec, RopeScaling, UnshuffleSpec

Json = dict[str, Any]
"""A published JSON file: its schema belongs to somebody else, and keys that we do not know are ignored."""

LLAMA: Patterns = {
    name: name
    for name in (
        "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
        *(
            f"model.layers.{{}}.{part}.weight"
            for part in (
                "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
            )
        ),
    )
}  # fmt: skip
"""Names of a Llama, the same in every format; ours begin with `language_model.`."""
LLAMA["model.layers.{}.self_attn.rotary_emb.inv_freq"] = None  # a constant that older libraries stored

QWEN2: Patterns = {
    **LLAMA,
    **{name: name for name in (f"model.layers.{{}}.self_attn.{x}_proj.bias" for x in "qkv")},
}
"""Names of a Qwen2: a Llama's, and biases on q, k and v."""


@dataclass(frozen=True)
class CheckpointLayout:
    """A checkpoint on disk: its spec, and which name each tensor has.

    Attributes:
        name: key of `FORMATS`.
        spec: the model that `config.json` describes.
        patterns: their names -> ours; None: the names are ours.
        towers: further folders with their own patterns.
        copy: patterns of tensors that may be stored a second time in the folder itself.
    """

    name: str
    spec: ModelSpec
    patterns: Patterns | None
    towers: tuple[tuple[Path, Patterns], ...] = ()
    copy: Patterns | None = None

    @property
    def files(self) -> list[Path]:
        """Configuration files of the further folders."""
        names = ("config.json", "preprocessor_config.json")
        return [tower / n for tower, _ in self.towers for n in names if (tower / n).exists()]


@dataclass(frozen=True)
class FolderFiles:
    """One folder to write.

    Attributes:
        patterns: our names -> theirs; None: our names are kept.
        files: JSON files by file name.
        name: folder below the checkpoint; "" is the checkpoint itself.
    """

    patterns: Patterns | None
    files: dict[str, Json]
    name: str = ""


@dataclass(frozen=True)
class StoredFacts:
    """What a configuration holds besides the spec: stored dtype, ids of special tokens, tokens of one image."""

    dtype: str
    tokens_per_tile: int
    ids: dict[str, int] = field(default_factory=dict)


def no_place(found: str, name: str, expected: str) -> ConfigError:
    """Return the error for a part that the format `name` cannot hold."""
    return ConfigError(
        f"{found} has no place in the {name} layout",
        expected=expected,
        fix="choose another --to; `--to vlm` holds every model",
    )


def read_llama(config: Json) -> LanguageSpec:
    """Return the spec of a Llama, InternLM2 or Qwen2 configuration; keys that we do not know are ignored.

    Length, eps and rotary base have the library's defaults where a configuration was saved without them.

    Raises:
        CheckpointError: a rope scaling or a sliding window, which our model does not have.
        KeyError: a key is missing.
    """
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {k: rope[k] for k in ("rope_type", "factor") if k in rope}
    kind = scaling.get("type", scaling.get("rope_type", "default"))
    known = {"linear", "dynamic", "default", "v2pe"}  # the release writes "v2pe" over the scaling: it means none
    if kind not in known:
        raise CheckpointError(f"rope scaling {kind!r} is not supported", expected=f"one of {sorted(known)}")
    if config.get("use_sliding_window"):
        raise CheckpointError("use_sliding_window true is not supported", expected="attention to the whole sequence")
    factor = scaling.get("factor", 1.0)
    scaled = kind == "dynamic" or (kind == "linear" and factor != 1.0)  # linear by 1 changes nothing
    qwen2 = config.get("model_type") == "qwen2"
    return LanguageSpec(
        kind="qwen2" if qwen2 else "llama",
        vocab=config["vocab_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        mlp_width=config["intermediate_size"],
        max_positions=config.get("max_position_embeddings", 32768 if qwen2 else 2048),
        rope_theta=config.get("rope_theta") or rope.get("rope_theta", 10000.0),
        rope_scaling=RopeScaling(kind=kind, factor=factor) if scaled else None,
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tied=config.get("tie_word_embeddings", False),
    )


def write_llama(spec: LanguageSpec) -> Json:
    """Return the keys of a Llama configuration as transformers 4 wrote them; InternLM2 and LLaVA read them too."""
    scaling = spec.rope_scaling
    return {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "intermediate_size": spec.mlp_width,
        "max_position_embeddings": spec.max_positions,
        "rope_theta": spec.rope_theta,
        "rope_scaling": {"type": scaling.kind, "factor": float(scaling.factor)} if scaling else None,
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "tie_word_embeddings": spec.tied,
        "use_cache": True,
    }


HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


def with_stored_head(language: LanguageSpec, folder: Path, patterns: Patterns, *, copies: bool = False) -> LanguageSpec:
    """Return the spec of an untied model if a tied one is described but an output head of its own is stored.

    Released weights are like that: transformers' class takes a missing `tie_word_embeddings` for true, and then keeps a
    stored head that differs from the embeddings (`copies`: one that equals them is tied all the same); OpenGVLab's
    classes read false whatever is written.
    """
    if not language.tied or not has_weights(folder):
        return language
    reader = WeightReader(folder)
    stored = {patterns.get(key): reader.read(key) for key in reader.items if patterns.get(key) in (HEAD, EMBEDDING)}
    if len(stored) < 2:
        return language
    head, embedding = stored[HEAD], stored[EMBEDDING]
    # the first row decides, as a rule
    same = copies and torch.equal(head[:1], embedding[:1]) and torch.equal(head, embedding)
    return language if same else language.model_copy(update={"tied": False})


def write_image_processor(spec: ModelSpec, **changes: Any) -> Json:
    """Return the configuration of a CLIP image processor with the image size and statistics of the spec."""
    rule = spec.image_rule
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": rule.size},
        "do_center_crop": True,
        "crop_size": {"height": rule.size, "width": rule.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(rule.mean),
        "image_std": list(rule.std),
        "do_convert_rgb": True,
        "resample": 3,
        **changes,
    }


def context_id(folder: Path, usual: int) -> int:
    """Return the id of `<IMG_CONTEXT>` in the tokenizer of a folder; the usual one where there is none to ask."""
    if not has_tokenizer(folder):
        return usual
    found = load_tokenizer(folder).token_id("<IMG_CONTEXT>")
    return usual if found is None else found


def selected_depth(depth: int, select: int) -> int:
    """Return how many of `depth` blocks run for hidden state `select` of depth + 1; state 0 is the embedding."""
    return depth + 1 + select if select < 0 else select


def intern_parts(spec: ModelSpec, name: str) -> tuple[InternVitSpec, UnshuffleSpec]:
    """Return encoder and projector of a model that a format of InternVL can hold.

    Raises:
        ConfigError: the model has another encoder, projector, image rule or placeholder.
    """
    if not isinstance(spec.vision, InternVitSpec):
        raise no_place(f"the encoder {spec.vision.kind}", name, "an InternViT")
    if not isinstance(spec.projector, UnshuffleSpec):
        raise no_place(f"the projector {spec.projector.kind}", name, "a pixel unshuffle projector")
    if spec.image_rule.kind not in ("tiles", "square"):
        raise no_place(f"the image rule {spec.image_rule.kind}", name, "tiles or square")
    if spec.image_tokens.context is None:
        raise no_place("a placeholder outside the vocabulary", name, "an image context token")
    return spec.vision, spec.projector
