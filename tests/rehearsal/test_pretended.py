"""The pretended device itself: it refuses what a GPU refuses, gives the CPU's numbers, and counts waits."""

import pytest
import torch

ONE, TWO = "pretended:0", "pretended:1"


@pytest.fixture(autouse=True)
def pretended(kind):
    """The module, imported when a test needs it: torch knows the device from then on."""
    if kind != "pretended":
        pytest.skip("of the pretended device alone")
    import support.pretended

    return support.pretended


def on(device, *numbers):
    return torch.tensor(numbers, device=device)


@pytest.mark.parametrize(
    "mix",
    [
        lambda: on(ONE, 1.0, 2.0) + torch.ones(2),
        lambda: on(ONE, 1.0, 2.0) + on(TWO, 1.0, 2.0),
        lambda: torch.cat([on(ONE, 1), torch.tensor([2])]),
        lambda: torch.where(on(ONE, True), on(ONE, 1), on(TWO, 2)),
        lambda: torch.arange(3)[on(ONE, 1)],
        lambda: on(ONE, 1, 2)[on(TWO, 1)],
        lambda: on(ONE, 1, 2).index_put_((on(ONE, 1),), torch.tensor([3])),
        lambda: torch.zeros(2, 2, device=ONE).masked_fill_(torch.eye(2).bool(), 1.0),
        lambda: torch.nn.functional.linear(torch.ones(1, 2, device=ONE), torch.ones(3, 2)),
        lambda: torch.bucketize(torch.arange(3, device=ONE), torch.tensor([1, 2])),
        lambda: torch.multinomial(torch.ones(3, device=ONE), 1, generator=torch.Generator()),
        lambda: on(ONE, 1).numpy(),
    ],
)
def test_it_refuses_what_a_gpu_refuses(mix):
    with pytest.raises((RuntimeError, TypeError)):
        mix()


def test_it_takes_what_a_gpu_takes(pretended):
    x = on(ONE, 3.0, 1.0, 2.0)
    found = [
        x + torch.tensor(1.0),
        x[torch.tensor([0, 2])],
        torch.arange(3, device=ONE).float() + torch.zeros(3, device=ONE),
        torch.multinomial(x, 1, generator=pretended.generator(ONE).manual_seed(1)).float(),
        torch.mm(x[None], x[:, None], out=torch.empty(1, 1, device=ONE)),
    ]
    assert all(type(t) is pretended.PretendedTensor and t.device == torch.device(ONE) for t in found)
    assert [t.tolist() for t in (*found[:3], found[4])] == [[4, 2, 3], [3, 2], [0, 1, 2], [[14]]]
    x[1:].mul_(2)  # a view shares the memory
    assert x.cpu().tolist() == [3, 2, 4] and x.to(TWO).device == torch.device(TWO)


def test_inference_mode_and_gradients():
    x = torch.ones(2, 3, device=ONE, requires_grad=True)
    (torch.nn.functional.layer_norm(x, (3,)) ** 2 + x).sum().backward()
    assert x.grad.device == torch.device(ONE) and torch.allclose(x.grad.cpu(), torch.ones(2, 3), atol=1e-4)
    with torch.inference_mode():
        assert (x[:, 1:] @ x[:, 1:].T).cpu().tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize("inference", [False, True])
def test_waits_are_counted(inference, pretended):
    x, mask, counts = on(ONE, 3.0, 1.0, 2.0), on(ONE, True, False, True), on(ONE, 1, 0, 2)
    cases = [
        ({"read": 1}, lambda: x.sum().item()),
        ({"read": 1}, lambda: int(x[0])),
        ({"read": 1}, lambda: bool((x > 0).all())),
        ({"read": 1}, lambda: x.tolist()),
        ({"read": 1}, lambda: x.cpu()),
        ({"size": 1}, lambda: x.nonzero()),
        ({"size": 1}, lambda: x[mask]),
        ({"size": 1}, lambda: x.repeat_interleave(counts)),
        ({}, lambda: x.repeat_interleave(counts, output_size=3)),
        ({"upload": 1}, lambda: torch.ones(3).to(ONE)),
        ({"upload": 1}, lambda: torch.tensor([1, 2], device=ONE)),
        ({"upload": 1}, lambda: x[torch.tensor([0])]),
        ({"behind": 1}, lambda: torch.ones(3).to(ONE, non_blocking=True)),
        ({"across": 1}, lambda: x.to(TWO)),
        ({}, lambda: torch.zeros(3, device=ONE).add_(x).softmax(0).argmax()),
    ]
    for expected, call in cases:
        with pretended.waits() as count, torch.inference_mode(inference):
            call()
        assert count == expected
