"""The one model: image encoder -> projector -> Llama, with a position for each token.

>>> model = make_model(load_preset("tiny-internvl2"))
>>> out = model(input_ids, pixel_values=pixels, position_ids=positions, labels=labels)
>>> out.loss, out.logits

Unusual: text-only training batches touch the encoder (its collectives stay in step across ranks and it gets exactly
zero gradients); positions are float64; `cu_seqlens` marks document boundaries in packed rows.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vlm.core.errors import ConfigError, DataError
from vlm.models.attention import PACKED, KVStorage, Segments, backend_of, check_name, check_packed
from vlm.models.batch import Batch, Output, upload
from vlm.models.generation import decoding
from vlm.models.generation.prefix import Prefix, counted
from vlm.models.language import make_language_model, with_lengths
from vlm.models.loss import shifted, weighted_cross_entropy
from vlm.models.projector import make_projector
from vlm.models.specs import ModelSpec
from vlm.models.vision.encoders import ImageEncoder, make_encoder
from vlm.models.vision.whole import Grids, encode_whole


class VisionLanguageModel(nn.Module):
    """Encoder, projector and language model of a spec.

    `run_rows` runs a forward pass; `sequence_parallel.spread` exchanges it for one over a group of processes.
    `kv_storage` is how keys and values are kept while tokens are generated.
    """

    run_rows: "Callable[[VisionLanguageModel, Batch], Output]"

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.run_rows = whole_rows
        self.kv_storage = KVStorage()
        self.encoder: ImageEncoder = make_encoder(spec.vision)
        self.projector = make_projector(spec.projector, self.encoder.width, spec.language.width)
        self.language_model = make_language_model(spec.language)

    @property
    def image_size(self) -> int:
        """Return the side of a tile in pixels."""
        return self.spec.image_rule.size

    @property
    def tokens_per_tile(self) -> int:
        """Return the number of context tokens of one tile."""
        cells = self.image_size // self.encoder.stride
        return self.projector.tokens(cells, cells)

    @property
    def attention(self) -> str:
        """Return the name of the attention backend of the language model."""
        return backend_of(self.language_model.config)

    def set_attention(self, name: str) -> None:
        """Choose the attention backend: `auto` (in a new model) or a name of `attention.BACKENDS`.

        Raises:
            UnknownName: no such backend. ConfigError: one that this machine cannot run; says what to install.
        """
        check_name(name)
        self.language_model.config.vlm_attention = name

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute activations of both towers in the backward pass (off in a new model)."""
        self.encoder.gradient_checkpointing = on
        if on:
            self.language_model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.language_model.activation_checkpointing_disable()

    def encode_images(
        self,
        pixel_values: Tensor | Iterable[Tensor],
        chunk: int | None = None,
        grids: Grids | None = None,
        calls: int = 0,
    ) -> Tensor:
        """Encode images [images, 3, h, w] -> [images, tokens, hidden]; `chunk` bounds how many are encoded at once.

        With `grids`, what is given are the cells of whole images: see `vision.whole.encode_whole`, also for `calls`.
        """
        if not isinstance(pixel_values, Tensor):
            images = (p[None] if p.dim() == 3 else p for p in pixel_values)
            return torch.cat([self.encode_images(image).flatten(0, 1) for image in images])[None]
        if chunk is not None and chunk < 1:
            raise ConfigError(f"image chunks of {chunk} tiles", expected="at least 1")
        dtype = next(self.projector.parameters()).dtype

        def encode(images: Tensor) -> Tensor:
            found: Tensor = self.projector(self.encoder(images.to(dtype)))
            return found

        if grids is not None:
            return encode_whole(encode, pixel_values, grids, chunk, calls)
        parts = pixel_values.split(chunk) if chunk else (pixel_values,)
        return torch.cat([encode(p) for p in parts])

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_flags: Tensor | None = None,
        features: Tensor | None = None,
        chunk: int | None = None,
        grids: Grids | None = None,
        calls: int = 0,
    ) -> Tensor:
        """Return embeddings [B, L, C] in which image features replace their placeholders.

        `image_flags` [images]: 0 marks a dummy tile, whose features are left out. `features`: already encoded. `grids`,
        `calls`: see `encode_images`.

        Raises:
            DataError: the number of placeholders differs from the number of features, or of flags from that of tiles.
        """
        placeholder = input_ids == self.spec.image_tokens.context_id
        embeddings = self.language_model.get_input_embeddings()(input_ids.masked_fill(placeholder, 0))
        dummy = pixel_values is None and features is None
        if dummy and self.training:  # every rank runs the encoder, whatever its batch holds
            pixel_values = embeddings.new_zeros(1, 3, self.image_size, self.image_size)
            image_flags = torch.zeros(1, dtype=torch.long)
            grids = [(1, 1)] if self.spec.image_rule.kind == "whole" else None
        if features is None and pixel_values is not None:
            features = self.encode_images(pixel_values, chunk, grids, calls)
        if features is None:
            features = embeddings.new_zeros(0, self.tokens_per_tile, embeddings.shape[-1])
        used = features
        if image_flags is not None:
            if image_flags.numel() != len(features):
                raise DataError(
                    f"{image_flags.numel()} image flags for {len(features)} tiles", expected="one flag for each tile"
                )
            kept = (image_flags.flatten() == 1).nonzero().squeeze(1)  # flags of the CPU cost no wait
            used = features[upload(kept, features.device)]
        used = used.flatten(0, -2)
        if (slots := int(placeholder.sum())) != len(used):
            raise DataError(
                f"{slots} image placeholders in the ids but {len(used)} image features "
                f"({features.shape[0]} tiles x {features.shape[1]} tokens, flags applied)",
                expected="one feature for each placeholder",
                fix="pass the pixels of exactly the images in the ids",
            )
        # nothing of a dummy is scattered, but the graph holds it: its gradients are zero, not None
        filled: Tensor = embeddings.masked_scatter(placeholder[..., None], used.to(embeddings.dtype))
        return filled

    def decode(
        self,
        embeddings: Tensor,
        *,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cu_seqlens: Tensor | None = None,
        segments: Segments | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the language model's blocks on embeddings; `.last_hidden_state` [B, L, C].

        Without `position_ids`, positions count 0, 1, 2, ..., from 0 in each document of a packed row. With `segments`
        the documents of the row continue from their caches, and `position_ids` are needed.
        """
        if segments is not None:
            hidden = self.language_model.model(
                inputs_embeds=embeddings,
                attention_mask=upload(PACKED, embeddings.device),
                position_ids=position_ids,
                segments=segments,
                use_cache=False,
            )
            segments.commit()
            return hidden
        if cu_seqlens is not None:
            cu_seqlens = cu_seqlens.cpu()  # each layer asks for lengths: on a device each would be a wait
            check_packed(cu_seqlens, embeddings)
            position_ids = with_lengths(position_ids, cu_seqlens, embeddings.device)
            return self.language_model.model(
                inputs_embeds=embeddings,
                attention_mask=upload(PACKED, embeddings.device),
                position_ids=position_ids,
                cu_seqlens=cu_seqlens,
                use_cache=False,
            )
        return self.language_model.model(
            inputs_embeds=embeddings, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )

    def forward(self, input_ids: Tensor | Batch, **fields: Any) -> Output:
        """Return logits and loss of a batch: a `Batch`, or its fields as arguments."""
        return self.run_rows(self, input_ids if isinstance(input_ids, Batch) else Batch(input_ids, **fields))

    @torch.no_grad()
    def prefill(self, input_ids: Tensor, **inputs: Any) -> Prefix:
        """Return the cache of a document for several questions: see `generation.decoding.prefill`."""
        return decoding.prefill(self, input_ids, **inputs)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, **settings: Any) -> Any:
        """Return new token ids only: see `generation.decoding.generate`."""
        return decoding.generate(self, input_ids, **settings)


def whole_rows(model: VisionLanguageModel, batch: Batch) -> Output:
    """Run rows that this process holds alone."""
    position_ids = batch.position_ids
    if position_ids is None and batch.attention_mask is not None:
        position_ids = counted(batch.attention_mask)
    hidden = model.decode(
        model.embed(
            batch.input_ids,
            batch.pixel_values,
            batch.image_flags,
            grids=batch.image_grids,
            calls=batch.encoder_calls,
        ),
        attention_mask=batch.attention_mask,
        position_ids=position_ids,
        cu_seqlens=batch.cu_seqlens,
        use_cache=False,
    ).last_hidden_state
    out = Output()
    if batch.labels is not None:
        target, weight = shifted(batch.labels, batch.loss_weights, batch.cu_seqlens)
        total = weighted_cross_entropy(hidden, model.language_model.lm_head, target, weight)
        denominator = weight.sum() if batch.loss_denominator is None else batch.loss_denominator
        out.loss = total / torch.as_tensor(denominator).clamp(min=1e-12)
    if batch.logits:
        out.logits = model.language_model.lm_head(hidden)
    return out


def make_model(spec: ModelSpec) -> VisionLanguageModel:
    """Make a model of that spec with fresh weights; under `torch.device("meta")` nothing is allocated."""
    return VisionLanguageModel(spec)
