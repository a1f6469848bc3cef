"""InternViT (300M: LayerNorm, qkv bias; 6B: RMSNorm, q/k norm).

Unusual: q and k are normalized over the full width, all heads together; two LayerScale vectors per block; no final
norm; the class token is used inside and dropped from the output; the position table is resized in every forward pass.
Source: the public configuration and checkpoints of OpenGVLab/InternVL.

Shapes: B images, N patches + 1, C width, H heads, D head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlm.models.blocks import rms_norm
from vlm.models.specs import InternVitSpec
from vlm.models.vision.size import check_size


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32; the weight multiplies after the cast back."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize over the last axis; the dtype stays."""
        return rms_norm(x, self.weight, self.eps)


def make_norm(spec: InternVitSpec) -> nn.Module:
    """Return the norm of a block."""
    if spec.norm == "rms_norm":
        return RMSNorm(spec.width, spec.norm_eps)
    return nn.LayerNorm(spec.width, eps=spec.norm_eps)


class VisionAttention(nn.Module):
    """Bidirectional attention; the rows of the fused projection are ordered (q | k | v, head, head size)."""

    def __init__(self, spec: InternVitSpec):
        super().__init__()
        self.heads = spec.heads
        self.qkv = nn.Linear(spec.width, 3 * spec.width, bias=spec.qkv_bias)
        self.proj = nn.Linear(spec.width, spec.width)
        if spec.qk_norm:
            self.q_norm: nn.Module = RMSNorm(spec.width, spec.norm_eps)
            self.k_norm: nn.Module = RMSNorm(spec.width, spec.norm_eps)
        else:
            self.q_norm = self.k_norm = nn.Identity()

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Attend: [B, N, C] -> [B, N, C]."""
        q, k, v = self.qkv(x_BNC).chunk(3, dim=-1)
        q, k = self.q_norm(q), self.k_norm(k)
        q_BHND, k_BHND, v_BHND = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected


class VisionMlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, spec: InternVitSpec):
        super().__init__()
        self.fc1 = nn.Linear(spec.width, spec.mlp_width)
        self.fc2 = nn.Linear(spec.mlp_width, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, C] -> [B, N, C]."""
        mapped: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return mapped


def make_drop_path(rate: float) -> nn.Module:
    """Return a module that drops whole samples of a residual branch in training; timm is imported if any are."""
    if not rate:
        return nn.Identity()
    from timm.layers.drop import DropPath

    drop_path: nn.Module = DropPath(rate)
    return drop_path


class VisionBlock(nn.Module):
    """Attention and MLP, each behind a norm, scaled and added to its input."""

    def __init__(self, spec: InternVitSpec, drop_path: float):
        super().__init__()
        self.norm1, self.norm2 = make_norm(spec), make_norm(spec)
        self.attn, self.mlp = VisionAttention(spec), VisionMlp(spec)
        self.ls1 = nn.Parameter(torch.full((spec.width,), spec.layer_scale_init))
        self.ls2 = nn.Parameter(torch.full((spec.width,), spec.layer_scale_init))
        self.drop_path: nn.Module = make_drop_path(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Run one block: [B, N, C] -> [B, N, C]."""
        x = x + self.drop_path(self.attn(self.norm1(x)) * self.ls1)
        x = x + self.drop_path(self.mlp(self.norm2(x)) * self.ls2)
        return x


def resized_positions(positions: Tensor, grid: int, height: int, width: int) -> Tensor:
    """Return a position table [1, 1 + grid^2, C] resized to [1, 1 + height * width, C]; the class position stays."""
    table = positions[:, 1:].float().reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, (height, width), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], table.flatten(2).mT.to(positions.dtype)], dim=1)


class PatchEmbeddings(nn.Module):
    """Patches of pixels, a class token before them, and their positions."""

    def __init__(self, spec: InternVitSpec):
        super().__init__()
        self.grid = spec.image_size // spec.patch_size
        self.class_embedding = nn.Parameter(spec.position_init * torch.randn(1, 1, spec.width))
        self.patch_embedding = nn.Conv2d(3, spec.width, spec.patch_size, spec.patch_size)
        self.position_embedding = nn.Parameter(spec.position_init * torch.randn(1, self.grid**2 + 1, spec.width))

    def positions(self, height: int, width: int) -> Tensor:
        """Return the position table resized to a grid, [1, 1 + height * width, C]; the class position stays."""
        return resized_positions(self.position_embedding, self.grid, height, width)

    def forward(self, pixels: Tensor) -> tuple[Tensor, int, int]:
        """Embed pixels [B, 3, h, w]; return tokens [B, N, C], and height and width of the grid."""
        patches = self.patch_embedding(pixels)
        height, width = patches.shape[-2:]
        tokens = torch.cat([self.class_embedding.expand(len(pixels), -1, -1), patches.flatten(2).mT], dim=1)
        return tokens + self.positions(height, width), height, width


class VisionBlocks(nn.Module):
    """The blocks of an InternViT, in order."""

    def __init__(self, spec: InternVitSpec):
        super().__init__()
        # plain floats: a tensor's .item() would fail on the meta device
        rates = [spec.drop_path * i / max(spec.depth - 1, 1) for i in range(spec.depth)]
        self.layers = nn.ModuleList(VisionBlock(spec, rate) for rate in rates)


class InternVit(nn.Module):
    """An InternViT without class token and final norm.

    >>> InternVit(load_preset("internvl2-2b").vision)(pixels).shape      # [2, 3, 448, 448]     # doctest: +SKIP
    torch.Size([2, 32, 32, 1024])
    """

    def __init__(self, spec: InternVitSpec):
        super().__init__()
        self.width, self.stride = spec.width, spec.stride
        self.gradient_checkpointing = False
        self.embeddings = PatchEmbeddings(spec)
        self.encoder = VisionBlocks(spec)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels [B, 3, h, w] -> feature grid [B, h / patch, w / patch, C] of the last block.

        Raises:
            DataError: a height or width that is not a multiple of the patch.
        """
        check_size(pixels, self.stride, "InternViT")
        x, height, width = self.embeddings(pixels)
        for layer in self.encoder.layers:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        grid: Tensor = x[:, 1:].unflatten(1, (height, width))
        return grid
