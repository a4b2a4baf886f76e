"""The arithmetic of a gate: finite differences, plain autograd as oracle, storage."""

import pytest
import torch
from torch import Tensor, nn

from circuitcut.masks.mixing import mix
from circuitcut.masks.origins import IDENTITY, origin_of

BATCH, LENGTH, WIDTH = 3, 5, 4
ROWS = (torch.tensor([0, 2]), torch.tensor([1, 4]))
VALUES = {"zero": (), "pooled": (WIDTH,), "positions": (LENGTH, WIDTH)} | {
    "examples": (BATCH, LENGTH, WIDTH)
}


def _tensors(kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, LENGTH, WIDTH, generator=rng).to(dtype)
    keep = torch.rand(WIDTH, generator=rng).to(dtype)
    value = torch.randn(VALUES[kind], generator=rng).to(dtype)
    return x.requires_grad_(), keep.requires_grad_(), None if kind == "zero" else value


def _by_autograd(x: Tensor, keep: Tensor, value: Tensor | None, rows) -> Tensor:
    gates = keep.expand_as(x).clone()
    if rows is not None:
        gates[rows] = 1.0
    return gates * x + (1 - gates) * (0.0 if value is None else value)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("rows", [None, ROWS])
def test_the_gradients_are_those_of_finite_differences(kind: str, rows):
    x, keep, value = _tensors(kind, torch.float64)
    assert torch.autograd.gradcheck(lambda x, k: mix(x, k, value, rows), (x, keep))


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("rows", [None, ROWS])
@pytest.mark.parametrize(
    "activation",
    [
        nn.Identity(),
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.ReLU(),
        lambda x: nn.functional.silu(x) * x.flip(-1),
        lambda x: 2.0 * x,
    ],
)
def test_a_recomputed_activation_gives_the_gradients_of_plain_autograd(
    kind: str, rows, activation
):
    x, keep, value = _tensors(kind, torch.float64)
    ours = mix(activation(x), keep, value, rows)
    plain = _by_autograd(activation(x), keep, value, rows)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for mine, oracle in zip(
        torch.autograd.grad(ours, (x, keep), direction.double()),
        torch.autograd.grad(plain, (x, keep), direction.double()),
        strict=True,
    ):
        torch.testing.assert_close(mine, oracle, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", [nn.GELU(), lambda x: x * x.sigmoid()])
def test_an_activation_that_can_be_recomputed_is_not_stored(activation):
    stored: list[int] = []
    x = torch.randn(2, 3, 4, requires_grad=True)
    y = activation(x)
    operation, operands = origin_of(y)
    assert all(operand.data_ptr() != y.data_ptr() for operand in operands)
    assert torch.equal(operation.make(*operands), y)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda kept: stored.append(kept.data_ptr()) or kept, lambda kept: kept
    ):
        # Under hooks (checkpointing) nothing is looked up: the activation is stored.
        assert origin_of(y) == (IDENTITY, (y,))
        mix(y, torch.rand(4), None, None)
    assert y.data_ptr() not in stored


def test_open_and_closed_gates_are_exact_to_the_bit():
    rng = torch.Generator().manual_seed(0)
    x, value = torch.randn(2, 7, 64, generator=rng), torch.randn(64, generator=rng)
    x, value = 1e6 * x, 1e-6 * value
    keep = (torch.rand(64, generator=rng) < 0.5).float()
    mixed = mix(x, keep, value, None)
    assert torch.equal(mixed[..., keep == 1], x[..., keep == 1])
    assert torch.equal(mixed[..., keep == 0], value[keep == 0].expand(2, 7, -1))


def test_gates_stay_in_float32_when_the_model_runs_in_bfloat16():
    x = torch.randn(2, 3, 4).bfloat16().requires_grad_()
    keep = torch.rand(4).requires_grad_()
    mixed = mix(x, keep, torch.ones(4).bfloat16(), None)
    assert mixed.dtype == torch.bfloat16
    mixed.float().sum().backward()
    assert (x.grad.dtype, keep.grad.dtype) == (torch.bfloat16, torch.float32)
    expected = (x.detach().float() - 1).sum((0, 1))
    torch.testing.assert_close(keep.grad, expected, rtol=2e-2, atol=2e-2)


def test_a_batch_larger_than_a_block_is_summed_whole():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1031, 8, 64, generator=rng).double()
    keep = torch.rand(64, generator=rng).double().requires_grad_()
    mix(x, keep, None, None).sum().backward()
    torch.testing.assert_close(keep.grad, x.sum((0, 1)), rtol=0, atol=1e-9)
