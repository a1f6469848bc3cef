"""What the model takes and returns: a batch of rows, and its logits and loss."""

from dataclasses import dataclass

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor of the host on a device without waiting for the copy: to a GPU from pinned memory.

    A tensor that is on a device already, or stays on the CPU, is only moved or returned.
    """
    device = torch.device(device)
    if tensor.device.type != "cpu":
        return tensor.to(device)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens with their images: the arguments of a forward pass.

    >>> model(Batch(input_ids, pixel_values=pixels, labels=labels))   # the same as
    >>> model(input_ids, pixel_values=pixels, labels=labels)

    Attributes:
        input_ids: int64 [B, L]; placeholders hold the context id.
        pixel_values: [images, 3, h, w], all images of the batch in reading order; with `image_grids` their cells.
        image_grids: int64 [images, 2], (columns, rows) of each whole image, whose cells are in `pixel_values`.
        encoder_calls: With `image_grids`: how often the encoder runs at least, equal in processes that share weights.
        image_flags: [images], 0 for dummy tiles.
        attention_mask: [B, L], 1 for tokens; unused with `cu_seqlens`.
        position_ids: [B, L], float64 (V2PE) or int64; default arange, in each document of a packed row.
        labels: int64 [B, L], -100 masked, aligned with the ids (the shift is done here).
        loss_weights: [B, L], weight of each label. The loss is sum(w * CE) / sum(w), 0 where nothing is labeled.
        loss_denominator: Replaces sum(w): the total over ranks and accumulation steps.
        cu_seqlens: int32 [documents + 1] of a packed row (B = 1). On the CPU it costs no wait for the device.
        logits: False leaves them out: the training path, which never builds them.
    """

    input_ids: Tensor
    pixel_values: Tensor | None = None
    image_grids: Tensor | None = None
    encoder_calls: int = 0
    image_flags: Tensor | None = None
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    labels: Tensor | None = None
    loss_weights: Tensor | None = None
    loss_denominator: float | Tensor | None = None
    cu_seqlens: Tensor | None = None
    logits: bool = True


@dataclass
class Output:
    """`logits` [B, L, V] (None when only the loss was asked for); `loss` a float32 scalar (None without labels)."""

    logits: Tensor | None = None
    loss: Tensor | None = None
