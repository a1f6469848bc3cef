"""What a recorded vision case may hold, computed by our encoders step by step."""

import json
import tempfile
from pathlib import Path

from torch import Tensor, nn

from vlm.models.checkpoint.load import load_model
from vlm.models.projector import UnshuffleProjector, pixel_unshuffle
from vlm.models.vision.convnext import ConvNext
from vlm.models.vision.intern_vit import InternVit, VisionBlock
from vlm.models.vlm import VisionLanguageModel

Tensors = dict[str, Tensor]
SELECT_KEYS = ("select_layer", "vision_feature_layer")


def whole_encoder(folder: Path) -> InternVit:
    """The encoder with all of its blocks: a model with another `select_layer` has only those that it runs."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as temporary:
        for item in folder.iterdir():
            if item.name != "config.json":
                (Path(temporary) / item.name).symlink_to(item)
        config.update({key: -1 for key in SELECT_KEYS if key in config})
        (Path(temporary) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        encoder = load_model(Path(temporary)).encoder
    assert isinstance(encoder, InternVit)
    return encoder


def apply(layers: nn.Sequential, x: Tensor) -> Tensor:
    """The layers one behind the other: the projector without its pixel unshuffle."""
    for layer in layers:
        x = layer(x)
    return x


def intern_vit_outputs(model: VisionLanguageModel, folder: Path, pixels: Tensor) -> Tensors:
    """Everything a recorded vision case of InternViT may hold.

    Embeddings and hidden states are those of all blocks; features those that the selected layer gives.
    """
    encoder, projector = whole_encoder(folder), model.projector
    assert isinstance(projector, UnshuffleProjector)
    state, height, width = encoder.embeddings(pixels)
    first = encoder.encoder.layers[0]
    assert isinstance(first, VisionBlock)
    got = {
        "embeddings": state,
        "layer0_norm1": first.norm1(state),
        "layer0_attention_output": first.attn(first.norm1(state)),
        "position_embedding": encoder.embeddings.positions(height, width),
        "hidden_states.0": state,
        "features": model.encode_images(pixels),
    }
    for i, layer in enumerate(encoder.encoder.layers, 1):
        got[f"hidden_states.{i}"] = state = layer(state)
    got |= {"last_hidden_state": state, "pooler_output": state[:, 0]}
    for version in ("v1", "v2"):
        merged = pixel_unshuffle(model.encoder(pixels), version, projector.spec.ratio)
        got[f"pixel_shuffle_{version}"] = merged
        got[f"features_{version}"] = apply(projector, merged.flatten(1, 2))
    return got


def convnext_outputs(model: VisionLanguageModel, pixels: Tensor) -> Tensors:
    """Everything a recorded vision case of ConvNeXt may hold."""
    assert isinstance(model.encoder, ConvNext)
    state = model.encoder.stem(pixels)
    got = {"stem": state, "projected": model.encode_images(pixels), "features": model.encoder(pixels).flatten(1, 2)}
    for i, stage in enumerate(model.encoder.stages, 1):
        got[f"stage{i}"] = state = stage(state)
    return got


def vision_outputs(model: VisionLanguageModel, folder: Path, pixels: Tensor) -> Tensors:
    """By name in a fixture, what our encoder and projector compute."""
    if isinstance(model.encoder, InternVit):
        return intern_vit_outputs(model, folder, pixels)
    return convnext_outputs(model, pixels)
