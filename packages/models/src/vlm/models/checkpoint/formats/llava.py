"""The format of LLaVA, in which ConvLLaVA is published: a Llama with a projector, and a ConvNeXt.

The ConvNeXt is a folder named by `mm_vision_tower`; released checkpoints also hold a copy of it under
`model.vision_tower`. Source: the public configurations and checkpoints of alibaba/conv-llava.
"""

import re
from pathlib import Path

from vlm.core.errors import CheckpointError
from vlm.core.paths import is_inside
from vlm.core.sample.tiling import CLIP, ImageRule
from vlm.core.text import printable
from vlm.models.checkpoint.formats import schema
from vlm.models.checkpoint.formats.schema import LLAMA, CheckpointLayout, FolderFiles, Json, StoredFacts
from vlm.models.checkpoint.locate import is_file, read_config, read_image_processor
from vlm.models.checkpoint.renaming import Patterns, inverted, prefixed, rename, weight_and_bias
from vlm.models.checkpoint.safetensors_io import Stored, WeightReader, has_weights
from vlm.models.specs import ConvNextSpec, ImageTokenSpec, MlpSpec, ModelSpec

MODEL_TYPES = ("llava", "llava_llama")
"""Values of `model_type` in the `config.json` of this format."""

TOWER = "vision_tower"
"""Folder of the ConvNeXt in a checkpoint that we write."""

OTHER_TOWERS = ("siglip", "clip-vit", "lknet")
"""Words in the path of a tower by which the published loader chooses another class."""

CONVNEXT: Patterns = {
    "embeddings.patch_embeddings.{kind}": "encoder.stem.0.{kind}",
    "embeddings.layernorm.{kind}": "encoder.stem.1.{kind}",
    "encoder.stages.{}.downsampling_layer.{}.{kind}": "encoder.stages.{}.downsample.{}.{kind}",
    "encoder.stages.{}.layers.{}.layer_scale_parameter": "encoder.stages.{}.blocks.{}.gamma",
    "encoder.stages.{}.layers.{}.dwconv.{kind}": "encoder.stages.{}.blocks.{}.conv_dw.{kind}",
    "encoder.stages.{}.layers.{}.layernorm.{kind}": "encoder.stages.{}.blocks.{}.norm.{kind}",
    "encoder.stages.{}.layers.{}.pwconv1.{kind}": "encoder.stages.{}.blocks.{}.mlp.fc1.{kind}",
    "encoder.stages.{}.layers.{}.pwconv2.{kind}": "encoder.stages.{}.blocks.{}.mlp.fc2.{kind}",
    "layernorm.{kind}": None,  # the library's final norm, never used by the published tower
}

CONVNEXT_TIMM: Patterns = {
    "stem.{}.{kind}": "encoder.stem.{}.{kind}",
    "stages.{}.downsample.{}.{kind}": "encoder.stages.{}.downsample.{}.{kind}",
    "stages.{}.blocks.{}.gamma": "encoder.stages.{}.blocks.{}.gamma",
    "stages.{}.blocks.{}.conv_dw.{kind}": "encoder.stages.{}.blocks.{}.conv_dw.{kind}",
    "stages.{}.blocks.{}.norm.{kind}": "encoder.stages.{}.blocks.{}.norm.{kind}",
    "stages.{}.blocks.{}.mlp.fc1.{kind}": "encoder.stages.{}.blocks.{}.mlp.fc1.{kind}",
    "stages.{}.blocks.{}.mlp.fc2.{kind}": "encoder.stages.{}.blocks.{}.mlp.fc2.{kind}",
    **{f"{name}.{{kind}}": None for name in ("norm_pre", "head", "head.norm", "head.fc", "head.pre_logits.fc")},
}

ENCODER: Patterns = weight_and_bias(CONVNEXT)
"""transformers' names of a ConvNeXt, in which a tower is written."""

ENCODER_ANY: Patterns = {**ENCODER, **weight_and_bias(CONVNEXT_TIMM)}
"""The names of a ConvNeXt in transformers and in timm."""

PATTERNS: dict[str, Patterns] = {
    "mlp": {
        **prefixed(LLAMA, "", "language_model."),
        **weight_and_bias({"model.mm_projector.{}.{kind}": "projector.{}.{kind}"}),
    },
    "linear": {  # the projector type "linear" is one layer without a number
        **prefixed(LLAMA, "", "language_model."),
        **weight_and_bias({"model.mm_projector.{kind}": "projector.0.{kind}"}),
    },
    "tower": ENCODER_ANY,
    "copy": prefixed(ENCODER_ANY, "model.vision_tower.vision_tower.", ""),
}
"""Their names -> ours: the main folder, by the type of its projector; the tower; the copy of the tower."""


def read(folder: Path, config: Json) -> CheckpointLayout:
    """Read spec and names from `config.json` and from the vision tower.

    Raises:
        CheckpointError: a setting that no released model has, or neither a tower nor a copy of it.
        KeyError: a key is missing.
    """
    path, vision, pre = read_tower(folder, config["mm_vision_tower"])
    crop, kind = pre["crop_size"], config["mm_projector_type"]
    if (select := config.get("mm_vision_select_layer", -1)) != -1:
        raise CheckpointError(f"{folder}: mm_vision_select_layer {select}", expected="-1, as all released models have")
    if (aspect := config.get("image_aspect_ratio")) == "anyres":
        raise CheckpointError(f"{folder}: image_aspect_ratio {aspect!r}", expected="pad, as all released models have")
    spec = ModelSpec(
        family="convllava",
        vision=ConvNextSpec(
            depths=tuple(vision["depths"]),
            widths=tuple(vision["hidden_sizes"]),
            layer_scale_init=vision.get("layer_scale_init_value", 1e-6),
            drop_path=vision.get("drop_path_rate", 0.0),
        ),
        projector=MlpSpec(depth=projector_depth(kind, folder)),
        language=schema.read_llama(config),
        image_rule=ImageRule(
            kind="pad" if aspect == "pad" else "crop",
            size=crop["height"] if isinstance(crop, dict) else crop,
            mean=pre.get("image_mean", CLIP[0]),
            std=pre.get("image_std", CLIP[1]),
        ),
        image_tokens=ImageTokenSpec(context=None, start=None, end=None, context_id=-200),
        template="llava_v1",
    )
    return CheckpointLayout(
        "llava",
        spec,
        PATTERNS["linear" if kind == "linear" else "mlp"],
        towers=((path, PATTERNS["tower"]),) if has_weights(path) else (),
        copy=PATTERNS["copy"],
    )


def read_tower(folder: Path, tower: str) -> tuple[Path, Json, Json]:
    """Return folder, `config.json` and `preprocessor_config.json` of the vision tower.

    Without the tower's folder, shapes are taken from the copy in the checkpoint and the resolution from the name.

    Raises:
        CheckpointError: there is neither.
    """
    path = tower_folder(folder, tower)
    if is_file(path / "config.json"):
        vision, rule = read_config(path), read_image_processor(path)
        return path, vision, {"crop_size": {"height": vision["image_size"]}, **rule}
    items = WeightReader(folder).items if has_weights(folder) else {}
    vision, size = stages_of(items), re.search(r"-(\d{3,4})$", Path(tower).name)
    if not vision["depths"] or not size:
        raise CheckpointError(
            f"{folder} holds no copy of its vision tower (with a resolution in its name), and there is none at {path}",
            expected=f"the folder that config.json names: mm_vision_tower {tower!r}",
            fix=f"vlm download {Path(tower).name}, or put the tower's folder beside or into the checkpoint",
        )
    return path, vision, {"crop_size": {"height": int(size[1])}}


def tower_folder(folder: Path, tower: str) -> Path:
    """Return the path in the configuration if it is inside the checkpoint, else a folder of that name in or beside it.

    An absolute path is one of the machine that wrote the configuration: only its last part is used.

    Raises:
        CheckpointError: the path has no name at its end.
    """
    name = Path(tower).name
    if not name or not is_inside(name):
        raise CheckpointError(f"{folder}: mm_vision_tower {printable(repr(tower))}", expected="the path of a folder")
    inside = [folder / tower] if is_inside(tower) else []
    found = [p for p in (*inside, folder / name, folder.parent / name) if is_file(p / "config.json")]
    return (found or [folder.parent / name])[0].resolve()


def stages_of(items: dict[str, Stored]) -> Json:
    """Return `depths` and `hidden_sizes` of a ConvNeXt from the shapes of the copy in a LLaVA folder."""
    names = rename(items, PATTERNS["copy"]).renamed
    blocks = re.compile(r"encoder\.stages\.(\d+)\.blocks\.\d+\.gamma")
    found: dict[int, list[int]] = {}
    for key, name in names.items():
        if match := blocks.fullmatch(name):
            found.setdefault(int(match[1]), []).append(items[key].shape[0])
    stages = [found[i] for i in sorted(found)]
    return {"depths": [len(s) for s in stages], "hidden_sizes": [s[0] for s in stages]}


def projector_depth(kind: str, where: Path) -> int:
    """Return the number of linear layers of a projector type.

    Raises:
        CheckpointError: an unknown type.
    """
    if kind == "linear":
        return 1
    if match := re.fullmatch(r"mlp(\d+)x_gelu", kind):
        return int(match[1])
    raise CheckpointError(f"{where}: mm_projector_type {kind!r}", expected="linear or mlpNx_gelu")


def write(spec: ModelSpec, facts: StoredFacts) -> list[FolderFiles]:
    """Return the folder of language model and projector, and the folder of the ConvNeXt in it.

    Raises:
        ConfigError: a part that the format cannot hold.
    """
    if not isinstance(spec.vision, ConvNextSpec):
        raise schema.no_place(f"the encoder {spec.vision.kind}", "llava", "a ConvNeXt")
    if not isinstance(spec.projector, MlpSpec):
        raise schema.no_place(f"the projector {spec.projector.kind}", "llava", "an MLP")
    if spec.image_rule.kind not in ("pad", "crop"):
        raise schema.no_place(f"the image rule {spec.image_rule.kind}", "llava", "pad or crop")
    if spec.image_tokens.context is not None:
        raise schema.no_place(f"the token {spec.image_tokens.context}", "llava", "a placeholder outside the vocabulary")
    if spec.language.kind != "llama":
        raise schema.no_place(f"the language model {spec.language.kind}", "llava", "a Llama")
    depth = spec.projector.depth
    config = {
        **schema.write_llama(spec.language),
        **facts.ids,
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "torch_dtype": facts.dtype,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mm_vision_tower": f"./{TOWER}",
        "mm_hidden_size": spec.vision.widths[-1],
        "mm_projector_type": "linear" if depth == 1 else f"mlp{depth}x_gelu",
        "mm_vision_select_layer": -1,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad" if spec.image_rule.kind == "pad" else "square",
        "image_grid_pinpoints": None,
        "use_mm_proj": True,
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
    }
    main = PATTERNS["linear" if depth == 1 else "mlp"]
    tower = write_tower(spec.vision, spec.image_rule.size, facts.dtype)
    files = {"config.json": tower, "preprocessor_config.json": schema.write_image_processor(spec)}
    return [FolderFiles(inverted(main), {"config.json": config}), FolderFiles(inverted(ENCODER), files, TOWER)]


def write_tower(vision: ConvNextSpec, size: int, dtype: str) -> Json:
    """Return the `config.json` of a ConvNeXt for images of `size` pixels."""
    stages = len(vision.depths)
    return {
        "architectures": ["ConvNextModel"],
        "model_type": "convnext",
        "torch_dtype": dtype,
        "depths": list(vision.depths),
        "hidden_sizes": list(vision.widths),
        "num_stages": stages,
        "stage_names": ["stem", *(f"stage{i + 1}" for i in range(stages))],
        "out_features": [f"stage{stages}"],
        "out_indices": [stages],
        "image_size": size,
        "num_channels": 3,
        "patch_size": 4,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-6,
        "layer_scale_init_value": vision.layer_scale_init,
        "drop_path_rate": vision.drop_path,
    }
