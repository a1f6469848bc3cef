"""ConvNeXt on timm's trunk and stages: four stages and any number more (ConvLLaVA's fifth); any timm encoder by name.

Unusual: the output is that of the last stage, without a final norm; height and width are any multiples of the stride.

Shapes: B images of h x w pixels, C channels.
"""

from typing import Any

import timm
import torch
from timm.layers.norm import LayerNorm, LayerNorm2d
from timm.models.convnext import ConvNeXt, ConvNeXtStage
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlm.core.errors import ConfigError, UnknownName
from vlm.models.specs import ConvNextSpec, TimmSpec
from vlm.models.vision.size import check_size

TRUNK_STAGES = 4  # timm's class knows exactly four


def make_stage(in_width: int, width: int, depth: int, layer_scale_init: float, drop_path: float = 0.0) -> ConvNeXtStage:
    """Return one stage of stride 2 with PyTorch's default initialization, as the published code appends it."""
    return ConvNeXtStage(
        in_width,
        width,
        stride=2,
        depth=depth,
        drop_path_rates=[drop_path] * depth,
        ls_init_value=layer_scale_init,
        norm_layer=LayerNorm2d,
        norm_layer_cl=LayerNorm,
    )


def run_stage(module: nn.Module, x: Tensor, recompute: bool) -> Any:
    """Return the module's output; with `recompute`, activations are computed again in the backward pass."""
    return checkpoint(module, x, use_reentrant=False) if recompute else module(x)


class ConvNext(nn.Module):
    """A ConvNeXt without final norm.

    Pixels beyond a multiple of the stride are an error; with `drop_remainder` they are dropped, as the published code
    does without a message.
    """

    def __init__(self, spec: ConvNextSpec):
        super().__init__()
        self.width, self.stride = spec.widths[-1], spec.stride
        self.gradient_checkpointing = self.drop_remainder = False
        trunk = ConvNeXt(
            num_classes=0,
            depths=spec.depths[:TRUNK_STAGES],
            dims=spec.widths[:TRUNK_STAGES],
            ls_init_value=spec.layer_scale_init,
            drop_path_rate=spec.drop_path,
        )
        self.stem, self.stages = trunk.stem, nn.ModuleList(trunk.stages)
        for before, width, depth in zip(
            spec.widths[TRUNK_STAGES - 1 :], spec.widths[TRUNK_STAGES:], spec.depths[TRUNK_STAGES:], strict=False
        ):
            self.stages.append(make_stage(before, width, depth, spec.layer_scale_init))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels [B, 3, h, w] -> [B, h // stride, w // stride, widths[-1]].

        Raises:
            DataError: a height or width that is not a multiple of the stride.
        """
        if not self.drop_remainder:
            check_size(pixels, self.stride, "ConvNeXt")
        x = self.stem(pixels)
        for stage in self.stages:
            x = run_stage(stage, x, self.gradient_checkpointing and self.training)
        grid: Tensor = x.permute(0, 2, 3, 1)
        return grid


class TimmEncoder(nn.Module):
    """A timm feature pyramid by name, with an optional further stage."""

    def __init__(self, spec: TimmSpec):
        super().__init__()
        self.gradient_checkpointing = False
        if not timm.is_model(spec.name):
            raise UnknownName("timm model", spec.name, timm.list_models())
        try:
            trunk: Any = timm.create_model(spec.name, pretrained=False, features_only=True, out_indices=(spec.level,))
        except (RuntimeError, AttributeError, AssertionError, LookupError, TypeError, ValueError) as error:
            raise ConfigError(
                f"timm's {spec.name} has no feature map {spec.level}: {error}",
                expected="a model with feature maps, and one of its levels",
            ) from error
        self.trunk = trunk
        self.width: int = trunk.feature_info.channels()[-1]
        self.stride: int = trunk.feature_info.reduction()[-1]
        self.stages = nn.ModuleList()
        if spec.extra_stage:
            extra = spec.extra_stage
            self.stages.append(make_stage(self.width, extra.width, extra.depth, extra.layer_scale_init))
            self.width, self.stride = extra.width, self.stride * 2

    def train(self, mode: bool = True) -> "TimmEncoder":
        """Set the mode; batch norm keeps its pretrained statistics, which tiny training batches would ruin."""
        super().train(mode)
        for module in self.trunk.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels [B, 3, h, w] -> [B, h / stride, w / stride, C].

        Raises:
            DataError: a height or width that is not a multiple of the stride.
        """
        check_size(pixels, self.stride, "the timm encoder")
        frozen = not any(p.requires_grad for p in self.trunk.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            # channels last: about three times faster for depthwise convolutions on a CPU
            x = pixels.contiguous(memory_format=torch.channels_last)
            recompute = self.gradient_checkpointing and self.training
            x = run_stage(self.trunk, x, recompute and not frozen)[-1]
        for stage in self.stages:
            x = run_stage(stage, x, recompute)
        grid: Tensor = x.permute(0, 2, 3, 1)
        return grid
