"""Activation memory of one training row, by running the model's own code on tensors that hold no numbers.

Each unit (encoder, projector, embedding, one decoder layer, final norm, loss) runs forward and backward on torch's fake
tensors while every live storage is counted. A decoder of `depth` equal layers is then added up:

    forward of unit i    saved(1) + ... + saved(i-1) + its own forward peak
    backward of unit i   saved(1) + ... + saved(i-1) + its own backward peak

where `saved` is what a unit keeps for its backward pass: with checkpointing a layer keeps its input alone, and its
backward peak holds one recomputed layer. Nothing is allocated; frozen parts keep nothing, as in the real run.
Scratch memory inside one operation is not seen, except the one that matters on a CPU (see `trace.SCRATCH`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vlm.models.attention import PACKED
from vlm.models.loss import CHUNK, weighted_cross_entropy
from vlm.models.vision.intern_vit import InternVit
from vlm.models.vlm import VisionLanguageModel
from vlm.train.plan.trace import Cost, state, trace

LOSS_CHUNKS = 16  # chunks of the loss that are traced, half of them several in 16 bits; more are added in proportion
ROW_BYTES = 8 + 8 + 4 + 24 + 4  # ids, labels, weights, positions (with lengths), targets of each token


@dataclass
class Activations:
    """Bytes of one row: what each part saves for the backward pass, and the peak of each phase."""

    saved: dict[str, int] = field(default_factory=dict)
    phases: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Bytes of the highest phase."""
        return max(self.phases.values())


@contextmanager
def faked(model: VisionLanguageModel, mode: FakeTensorMode, dtype: torch.dtype) -> Iterator[None]:
    """Give a meta-device model fake tensors with gradients for a while; tied weights stay tied."""
    made: dict[Tensor, Tensor] = {}
    before: list[tuple[dict[str, Any], str, Tensor]] = []
    for module in model.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for table in tables:
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if tensor not in made:
                    with mode:
                        new = torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
                        if isinstance(tensor, nn.Parameter):
                            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                            new.grad = torch.empty_like(new) if new.requires_grad else None
                    made[tensor] = new
                before.append((table, name, tensor))
    for table, name, tensor in before:
        table[name] = made[tensor]
    try:
        yield
    finally:
        for table, name, tensor in before:
            table[name] = tensor


def activations(
    model: VisionLanguageModel,
    *,
    tokens: int,
    tiles: int,
    dtype: torch.dtype,
    checkpointing: bool,
    labels: int | None = None,
    documents: int = 1,
    sliced: bool = False,
    cpu: bool = False,
) -> Activations:
    """Predict the activation bytes of one row on one process.

    Args:
        model: on the meta device, with its frozen parts set; it is the same afterwards.
        tokens: length of the row.
        tiles: tiles of its images; texts alone still pass one dummy tile through the encoder.
        dtype: precision of training.
        checkpointing: whether layers are recomputed in the backward pass.
        labels: supervised tokens; default all.
        documents: equal parts of a packed row.
        sliced: under ZeRO-3, where the loss computes its logits twice.
        cpu: count the scratch memory of the CPU's kernels.
    """
    mode, labels = FakeTensorMode(allow_non_fake_inputs=True), tokens if labels is None else labels
    head = model.language_model.lm_head
    hook = head.register_forward_hook(lambda *_: None) if sliced else None  # as ZeRO-3 does: the loss takes its way
    try:
        with faked(model, mode, dtype):
            model.train()
            model.set_gradient_checkpointing(checkpointing)
            units = trace_units(model, mode, dtype, tokens, tiles, labels, documents, cpu)
    finally:
        if hook is not None:
            hook.remove()
    side, language = model.image_size, model.spec.language
    tables = 2 * 4 * tokens * (language.width // language.heads)
    return units.added_up(ROW_BYTES * tokens + tables + 4 * 3 * max(1, tiles) * side * side)


@dataclass(frozen=True)
class UnitCosts:
    """Costs of the model's units on one row; the language model has `depth` layers like `layer` that keep a graph."""

    encoder: Cost
    projector: Cost
    embedding: Cost
    layer: Cost
    depth: int
    norm: Cost
    loss: Cost

    def added_up(self, always: int) -> Activations:
        """Return the activations of the whole model; `always` are bytes that live through the step."""
        encoder, projector, embedding = self.encoder, self.projector, self.embedding
        layer, depth, norm, loss = self.layer, self.depth, self.norm, self.loss
        result = Activations({"row, pixels and rotary tables": always, "encoder": encoder.saved})
        result.saved |= {"projector": projector.saved, "embedding": embedding.saved}
        result.saved |= {"language model": depth * layer.saved + norm.saved, "loss": loss.saved}
        before = always + encoder.saved
        images_done = before + projector.saved + embedding.saved
        layers_done = images_done + depth * layer.saved
        all_done = layers_done + norm.saved
        forward = layer.forward + max(0, depth - 1) * layer.saved
        backward = images_done + max(0, depth - 1) * layer.saved + layer.backward if depth else 0
        result.phases = {
            "encoder forward": always + encoder.forward,
            "projector forward": before + projector.forward,
            "embedding forward": before + projector.saved + embedding.forward,
            "language model forward": max(images_done + forward, layers_done + norm.forward),
            "loss": all_done + max(loss.forward, loss.backward),
            "language model backward": max(layers_done + norm.backward, backward),
            "embedding and projector backward": before + max(projector.saved + embedding.backward, projector.backward),
            "encoder backward": always + encoder.backward,
        }
        return result


def trace_units(
    model: VisionLanguageModel,
    mode: FakeTensorMode,
    dtype: torch.dtype,
    tokens: int,
    tiles: int,
    labels: int,
    documents: int,
    cpu: bool,
) -> UnitCosts:
    """Run each unit of a model of fake tensors forward and backward; see `activations` for the arguments."""
    language, layers = model.language_model.model, model.language_model.model.layers
    slots = tiles * model.tokens_per_tile
    ids = torch.zeros(1, tokens, dtype=torch.long)
    ids[0, :slots] = model.spec.image_tokens.context_id
    borders = torch.linspace(0, tokens, documents + 1).round().to(torch.int32)
    head = model.spec.language.width // model.spec.language.heads
    with mode:
        tables = tuple(torch.empty(1, tokens, head, dtype=torch.float32) for _ in range(2))

    def embed(features: Tensor) -> Tensor:
        return model.embed(ids, features=features if tiles else features[:0])

    def decode(x: Tensor) -> Tensor:
        out: Tensor = layers[-1](
            x, attention_mask=PACKED, position_embeddings=tables, cu_seqlens=borders, use_cache=False
        )
        return out

    encoder = encoder_cost(model, mode, dtype, max(1, tiles), cpu)
    projector = trace(model.projector, state(model.projector), mode, encoder.out, dtype, encoder.grad)
    embedding = trace(embed, state(model.language_model), mode, projector.out, dtype, projector.grad)
    first, grad = trained_layers(layers, embedding.grad)
    layer = trace(decode, [*state(layers[-1]), *tables], mode, embedding.out, dtype, True)
    norm = trace(language.norm, state(language.norm), mode, embedding.out, dtype, grad)
    loss = loss_cost(model, mode, dtype, tokens, labels, norm.grad)
    return UnitCosts(encoder, projector, embedding, layer, len(layers) - first, norm, loss)


def encoder_cost(model: VisionLanguageModel, mode: FakeTensorMode, dtype: torch.dtype, images: int, cpu: bool) -> Cost:
    """Return the cost of the encoder on `images` tiles; of many equal blocks a few are run."""

    def encode() -> Cost:
        def unit(x: Tensor) -> Tensor:
            out: Tensor = model.encoder(x.to(dtype))
            return out

        pixels = (images, 3, model.image_size, model.image_size)
        return trace(unit, state(model.encoder), mode, pixels, torch.float32, False, held=True, cpu=cpu)

    if not (blocks := equal_blocks(model.encoder)):
        return encode()
    with shortened(model.encoder, FEW):
        few = encode()
    with shortened(model.encoder, MORE):
        return extrapolated(few, encode(), lambda a, b: b + (blocks - MORE) * (b - a) // (MORE - FEW))


FEW, MORE = 3, 5
"""Blocks of an InternViT that are run; the others cost as much."""


@contextmanager
def shortened(encoder: nn.Module, blocks: int) -> Iterator[None]:
    """Leave an InternViT only its last blocks for a while."""
    assert isinstance(encoder, InternVit)
    layers = encoder.encoder.layers
    encoder.encoder.layers = layers[-blocks:]
    try:
        yield
    finally:
        encoder.encoder.layers = layers


def equal_blocks(encoder: nn.Module) -> int:
    """Count the blocks of an encoder if all are trained or all frozen and some can be left out; else return 0."""
    if not isinstance(encoder, InternVit) or len(encoder.encoder.layers) <= FEW + MORE:
        return 0
    trained = {tuple(p.requires_grad for p in layer.parameters()) for layer in encoder.encoder.layers}
    return len(encoder.encoder.layers) if len(trained) == 1 else 0


def extrapolated(less: Cost, more: Cost, at: Callable[[int, int], int]) -> Cost:
    """Return `more` with each number of bytes replaced by `at(that of less, that of more)`."""
    return replace(
        more,
        saved=at(less.saved, more.saved),
        forward=at(less.forward, more.forward),
        backward=at(less.backward, more.backward),
    )


def trained_layers(layers: nn.ModuleList, grad: bool) -> tuple[int, bool]:
    """Return (number of leading layers without any gradient, whether the last one passes one on)."""
    for i, layer in enumerate(layers):
        if grad or any(p.requires_grad for p in layer.parameters()):
            return i, True
    return len(layers), False


def loss_cost(
    model: VisionLanguageModel, mode: FakeTensorMode, dtype: torch.dtype, tokens: int, labels: int, grad: bool
) -> Cost:
    """Return the cost of the chunked cross-entropy over `labels` of `tokens` positions.

    Beyond LOSS_CHUNKS chunks it grows in proportion.
    """
    width = model.spec.language.width

    def cost(tokens: int, labels: int) -> Cost:
        target = torch.full((1, tokens), -100)
        target[:, :labels] = 1

        def unit(x: Tensor) -> Tensor:
            head, weight = model.language_model.lm_head, torch.ones(1, tokens)
            return weighted_cross_entropy(x, head, target, weight, block=CHUNK)  # of a GPU; a CPU needs less

        return trace(unit, state(model.language_model.lm_head), mode, (1, tokens, width), dtype, grad)

    most = LOSS_CHUNKS * CHUNK
    if labels <= most:
        return cost(tokens, labels)
    share = (labels - most) / (most // 2)
    return extrapolated(cost(tokens, most // 2), cost(tokens, most), lambda a, b: round(b + share * (b - a)))
