"""Activation memory of one training row, by running the model's own code on tensors that hold no numbers.

Each unit (encoder, projector, embedding, one decoder layer, final norm, loss) runs forward and backward on torch's fake
tensors while every storage that lives is counted. A decoder of `depth` like layers is then added up:

    forward of unit i    saved(1) + ... + saved(i-1) + its own forward peak
    backward of unit i   saved(1) + ... + saved(i-1) + its own backward peak

where `saved` is what a unit keeps for its backward pass: with checkpointing a layer keeps its input alone, and its
backward peak holds one recomputed layer. Nothing is allocated; frozen parts keep nothing, as in the real run.
Scratch memory inside one operation is not seen, except the one that matters on a CPU (see `plan_trace.SCRATCH`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

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
    """Bytes of one row: what each part saves for the backward pass, the peak of each phase, the highest of all."""

    saved: dict[str, int] = field(default_factory=dict)
    phases: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Highest phase."""
        return max(self.phases.values())


def fake_model(model: VisionLanguageModel, mode: FakeTensorMode, dtype: torch.dtype) -> None:
    """Turn a meta-device model, in place, into one of fake tensors with gradients; tied weights stay tied."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
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
                table[name] = made[tensor]  # type: ignore[assignment]


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
    """Activation bytes of one row of `tokens` tokens and `tiles` tiles on one process.

    `model` is on the meta device with its frozen parts set; it becomes a fake one. `labels`: supervised tokens,
    default all. `documents`: equal parts of a packed row. `sliced`: under ZeRO-3, where the loss
    computes its logits twice. `cpu`: with the scratch of its kernels. Texts alone still pass one dummy tile
    through the encoder.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake_model(model, mode, dtype)
    model.train()
    model.set_gradient_checkpointing(checkpointing)
    if sliced:  # as ZeRO-3 does; the loss takes its other way
        model.language_model.lm_head.register_forward_hook(lambda *_: None)
    language, layers = model.language_model.model, model.language_model.model.layers
    side, images = model.image_size, max(1, tiles)
    slots = tiles * model.tokens_per_tile
    ids = torch.zeros(1, tokens, dtype=torch.long)
    ids[0, :slots] = model.spec.image_tokens.context_id
    borders = torch.linspace(0, tokens, documents + 1).round().to(torch.int32)
    head = model.spec.language.width // model.spec.language.heads
    with mode:
        tables = tuple(torch.empty(1, tokens, head, dtype=torch.float32) for _ in range(2))

    def decode(layer: nn.Module, grad: bool) -> Cost:
        def unit(x: Tensor) -> Tensor:
            return layer(x, attention_mask=PACKED, position_embeddings=tables, cu_seqlens=borders, use_cache=False)

        return trace(unit, [*state(layer), *tables], mode, embedding.out, dtype, grad)

    def embed(features: Tensor) -> Tensor:
        return model.embed(ids, features=features if tiles else features[:0])

    pixels = (images, 3, side, side)

    def encode() -> Cost:
        def unit(x: Tensor) -> Tensor:
            return model.encoder(x.to(dtype))

        return trace(unit, state(model.encoder), mode, pixels, torch.float32, False, held=True, cpu=cpu)

    if blocks := alike(model.encoder):
        with shortened(model.encoder, FEW):
            few = encode()
        with shortened(model.encoder, MORE):
            encoder = lengthened(few, encode(), blocks)
    else:
        encoder = encode()
    projector = trace(model.projector, state(model.projector), mode, encoder.out, dtype, encoder.grad)
    embedding = trace(embed, state(model.language_model), mode, projector.out, dtype, projector.grad)
    first, grad = trained_layers(layers, embedding.grad)
    layer = decode(layers[-1], True)
    norm = trace(language.norm, state(language.norm), mode, embedding.out, dtype, grad)
    loss = loss_cost(model, mode, dtype, tokens, tokens if labels is None else labels, norm.grad)
    depth = len(layers) - first
    always = ROW_BYTES * tokens + 2 * 4 * tokens * head + 4 * 3 * images * side * side
    result = Activations({"row, pixels and rotary tables": always, "encoder": encoder.saved})
    result.saved |= {"projector": projector.saved, "embedding": embedding.saved}
    result.saved |= {"language model": depth * layer.saved + norm.saved, "loss": loss.saved}
    before = always + encoder.saved
    images_done = before + projector.saved + embedding.saved
    layers_done = images_done + depth * layer.saved
    all_done = layers_done + norm.saved
    forward = layer.forward + max(0, depth - 1) * layer.saved
    result.phases = {
        "encoder forward": always + encoder.forward,
        "projector forward": before + projector.forward,
        "embedding forward": before + projector.saved + embedding.forward,
        "language model forward": max(images_done + forward, layers_done + norm.forward),
        "loss": all_done + max(loss.forward, loss.backward),
        "language model backward": max(
            layers_done + norm.backward, images_done + max(0, depth - 1) * layer.saved + layer.backward if depth else 0
        ),
        "embedding and projector backward": before + max(projector.saved + embedding.backward, projector.backward),
        "encoder backward": always + encoder.backward,
    }
    return result


FEW, MORE = 3, 5
"""Blocks of an InternViT that are run; the others are like them."""


@contextmanager
def shortened(encoder: nn.Module, blocks: int) -> Iterator[None]:
    """An InternViT of its last blocks only."""
    assert isinstance(encoder, InternVit)
    layers = encoder.encoder.layers
    encoder.encoder.layers = layers[-blocks:]
    try:
        yield
    finally:
        encoder.encoder.layers = layers


def alike(encoder: nn.Module) -> int:
    """Blocks of an encoder whose blocks are all trained or all frozen, and worth shortening; else 0."""
    if not isinstance(encoder, InternVit) or len(encoder.encoder.layers) <= FEW + MORE:
        return 0
    trained = {tuple(p.requires_grad for p in layer.parameters()) for layer in encoder.encoder.layers}
    return len(encoder.encoder.layers) if len(trained) == 1 else 0


def lengthened(few: Cost, more: Cost, blocks: int) -> Cost:
    """The cost of all blocks, each adding as much as those between FEW and MORE."""

    def at(name: str) -> int:
        return getattr(more, name) + (blocks - MORE) * (getattr(more, name) - getattr(few, name)) // (MORE - FEW)

    return replace(more, saved=at("saved"), forward=at("forward"), backward=at("backward"))


def trained_layers(layers: nn.ModuleList, grad: bool) -> tuple[int, bool]:
    """(number of leading layers without any gradient, whether the last one gives one)."""
    for i, layer in enumerate(layers):
        if grad or any(p.requires_grad for p in layer.parameters()):
            return i, True
    return len(layers), False


def loss_cost(
    model: VisionLanguageModel, mode: FakeTensorMode, dtype: torch.dtype, tokens: int, labels: int, grad: bool
) -> Cost:
    """The chunked cross-entropy over `labels` of `tokens` positions; beyond LOSS_CHUNKS chunks in proportion."""
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
    half, whole = cost(tokens, most // 2), cost(tokens, most)
    share = (labels - most) / (most // 2)

    def at(name: str) -> int:
        return round(getattr(whole, name) + share * (getattr(whole, name) - getattr(half, name)))

    return Cost(at("saved"), at("forward"), at("backward"), whole.out, whole.grad)
