"""The part of a model that generation uses."""

from typing import Any, Protocol

from torch import Tensor

from vlm.models.attention import KVStorage
from vlm.models.specs import ModelSpec


class Decoder(Protocol):
    """A model that embeds prompts and runs the blocks of its language model; `VisionLanguageModel` is one."""

    spec: ModelSpec
    language_model: Any
    kv_storage: KVStorage

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_flags: Tensor | None = None,
        features: Tensor | None = None,
        chunk: int | None = None,
        grids: Any = None,
    ) -> Tensor:
        """Return embeddings [B, L, C] of ids [B, L] with their images; `grids` [images, 2] of whole ones."""
        ...

    def decode(
        self, embeddings: Tensor, *, attention_mask: Tensor | None, position_ids: Tensor | None, **kwargs: Any
    ) -> Any:
        """Run the blocks; `.last_hidden_state` is [B, L, C]."""
        ...
