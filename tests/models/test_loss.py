"""The chunked loss against the plain one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vlm.models.loss import LossHead, shifted, weighted_cross_entropy


def inputs(batch: int = 2, length: int = 20, vocab: int = 17):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(batch, length, 8, generator=generator, requires_grad=True)
    head = torch.randn(vocab, 8, generator=generator, requires_grad=True)
    labels = torch.randint(0, vocab, (batch, length), generator=generator)
    labels[:, ::3] = -100
    weights = torch.rand(batch, length, generator=generator)
    return hidden, head, labels, weights


def loss_head(head: torch.Tensor) -> LossHead:
    """A head whose gradients are made beside the loss."""
    module = LossHead(*reversed(head.shape), bias=False)
    module.weight = nn.Parameter(head.detach())
    return module


@pytest.mark.parametrize("chunk", [1, 3, 4, 1000])
@pytest.mark.parametrize("fused", [True, False])
def test_chunked_loss_equals_full_cross_entropy_in_value_and_gradients(chunk, fused):
    hidden, head, labels, weights = inputs()
    module = loss_head(head)
    head = module.weight
    target, weight = shifted(labels, weights, None)
    ours = weighted_cross_entropy(hidden, module if fused else module.forward, target, weight, chunk) / weight.sum()
    logits = (hidden @ head.T)[:, :-1].flatten(0, 1)
    each = F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="none")
    shifted_weights = weights[:, 1:].flatten() * (labels[:, 1:].flatten() != -100)
    full = (each * shifted_weights).sum() / shifted_weights.sum()
    torch.testing.assert_close(ours, full, rtol=1e-6, atol=0)
    for a, b in zip(torch.autograd.grad(ours, (hidden, head)), torch.autograd.grad(full, (hidden, head)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_a_frozen_side_gets_no_gradient_and_the_other_the_same(frozen):
    hidden, head, labels, weights = inputs()
    target, weight = shifted(labels, weights, None)
    module = loss_head(head)
    (hidden if frozen == "hidden" else module.weight).requires_grad_(False)
    trained = module.weight if frozen == "hidden" else hidden
    ours, other = (weighted_cross_entropy(hidden, call, target, weight) for call in (module, module.forward))
    torch.testing.assert_close(*(torch.autograd.grad(loss, trained)[0] for loss in (ours, other)))


@pytest.mark.parametrize("n", [0, 1, 9])
def test_a_loss_head_is_called_once_however_many_labels_there_are(n):
    hidden, head, labels, weights = inputs()
    labels = labels.flatten().index_fill(0, torch.arange(n, labels.numel()), -100).view(labels.shape)
    target, weight = shifted(labels, weights, None)
    module, calls = loss_head(head), []
    module.register_forward_hook(lambda *_: calls.append(1))
    weighted_cross_entropy(hidden, module, target, weight, chunk=2).backward()
    assert calls == [1]


def test_no_chunk_builds_more_rows_of_logits_than_it_has():
    hidden, head, labels, _ = inputs()
    target, weight = shifted(labels, None, None)
    rows = []

    def counted(h):
        rows.append(len(h))
        return h @ head.T

    with torch.no_grad():
        weighted_cross_entropy(hidden, counted, target, weight, chunk=4)
    assert max(rows) == 4
    assert sum(rows) == int((target != -100).sum())  # tokens without a label never meet the head


def test_each_position_gets_the_label_and_the_weight_of_its_successor():
    target, weight = shifted(torch.tensor([[5, 6, -100, 8]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]]), None)
    assert target.tolist() == [[6, -100, 8, -100]]
    torch.testing.assert_close(weight, torch.tensor([[0.2, 0.0, 0.4, 0.0]]))


def test_no_label_crosses_the_border_of_a_document():
    target, weight = shifted(torch.tensor([[1, 2, 3, 4, 5]]), None, torch.tensor([0, 2, 3, 5], dtype=torch.int32))
    assert target.tolist() == [[2, -100, -100, 5, -100]]
    assert weight.tolist() == [[1, 0, 0, 1, 0]]


def test_no_label_gives_zero_with_a_graph_and_still_calls_the_head():
    hidden, head, labels, _ = inputs()
    target, weight = shifted(torch.full_like(labels, -100), None, None)
    rows = []

    def counted(h):
        rows.append(len(h))
        return h @ head.T

    loss = weighted_cross_entropy(hidden, counted, target, weight)
    assert loss.item() == 0 and rows == [1]
    for gradient in torch.autograd.grad(loss, (hidden, head)):
        assert gradient.abs().max() == 0


def test_the_loss_of_bf16_hidden_states_is_summed_in_float32():
    hidden, head, labels, _ = inputs()
    target, weight = shifted(labels, None, None)
    assert weighted_cross_entropy(hidden.bfloat16(), lambda h: h @ head.bfloat16().T, target, weight).dtype == (
        torch.float32
    )


@pytest.mark.parametrize("labels", [64, 1024])
def test_the_heads_gradient_in_bfloat16_is_as_exact_for_many_chunks_as_for_one_product(labels):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(labels, 32, generator=generator).bfloat16()
    module = loss_head((0.05 * torch.randn(50, 32, generator=generator)).bfloat16())
    target = torch.randint(0, 50, (labels,), generator=generator)
    part = torch.softmax(hidden.double() @ module.weight.detach().double().T, 1)
    part = (part - F.one_hot(target, 50)) / labels
    exact, product = part.T @ hidden.double(), part.bfloat16().T @ hidden
    loss = weighted_cross_entropy(hidden[None], module, target[None], torch.ones(1, labels), chunk=4) / labels
    (ours,) = torch.autograd.grad(loss, module.weight)
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() < 1.5 * (product.double() - exact).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_blocks_of_rows_change_nothing(dtype):
    hidden, head, labels, weights = inputs()
    hidden, module = hidden.to(dtype), loss_head(head.to(dtype))
    target, weight = shifted(labels, weights, None)
    found = []
    for block in (1, 16, 512):
        loss = weighted_cross_entropy(hidden, module, target, weight, block=block)
        assert loss.dtype == torch.float32
        found.append((loss, *torch.autograd.grad(loss, (hidden, module.weight))))
    for other in found[1:]:
        torch.testing.assert_close(other[0], found[0][0], rtol=1e-6, atol=0)
        assert all(torch.equal(a, b) for a, b in zip(other[1:], found[0][1:], strict=True))
