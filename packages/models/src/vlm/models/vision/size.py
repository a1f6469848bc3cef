"""Image sizes that an encoder accepts."""

from torch import Tensor

from vlm.core.errors import DataError


def check_size(pixels: Tensor, multiple: int, encoder: str) -> None:
    """Raise DataError unless height and width of pixels [B, 3, h, w] are multiples of the stride."""
    height, width = pixels.shape[-2:]
    if pixels.dim() != 4 or height < multiple or width < multiple or height % multiple or width % multiple:
        raise DataError(
            f"pixels of shape {list(pixels.shape)} for {encoder}",
            expected=f"[images, 3, height, width], height and width multiples of {multiple}",
            fix=f"resize or pad the image to multiples of {multiple}, e.g. by the image rule",
        )
