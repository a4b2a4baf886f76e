"""Encoders whose weights train under gates on edges, against the stack by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from circuitcut.masks.edges import stack as edge_stack
from circuitcut.masks.edges.encoder_beside import run_beside
from circuitcut.masks.edges.gating import edge_gated
from circuitcut.masks.edges.sparse import plan_of
from circuitcut.masks.edges.stack import EdgeStack
from circuitcut.models.residual.folded_model import ResidualModel
from tests.masks.edges.test_encoder_stack import FAMILIES, random_gates, random_values
from tests.models.tiny import tiny_inputs, tiny_model


def trainable(kind: str) -> Any:
    return tiny_model(kind, "token_classification").double()


def logits_of(model: Any) -> Tensor:
    inputs = tiny_inputs(model)
    return model(**inputs).logits[inputs["attention_mask"].bool()]


def with_gradient(
    model: Any, stack: EdgeStack, keep: Tensor, ablated: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of the gates."""
    with edge_gated(stack, keep, ablated):
        logits = logits_of(model)
    return logits, torch.autograd.grad(logits.sin().sum(), keep)[0]


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: g for n, g in zip(names, grads, strict=True) if g is not None}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("separate_qkv", [True, False])
@pytest.mark.parametrize("attention_bias", ["always", "heads"])
def test_values_and_gates_gradient_are_those_of_the_stack(
    kind: str, separate_qkv: bool, attention_bias: Any
):
    model = trainable(kind)
    rng = torch.Generator().manual_seed(0)
    stack = EdgeStack(
        ResidualModel(model, separate_qkv=separate_qkv, attention_bias=attention_bias)
    )
    keep = random_gates(stack, rng).requires_grad_()
    for n_tokens in (None, 1, 12):
        ablated = random_values(stack, rng, n_tokens) if n_tokens else None

        trained, of_trained = with_gradient(model, stack, keep, ablated)
        model.requires_grad_(False)
        frozen, of_frozen = with_gradient(model, stack, keep, ablated)
        model.requires_grad_(True)
        torch.testing.assert_close(trained, frozen, atol=1e-10, rtol=0)
        torch.testing.assert_close(of_trained, of_frozen, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("with_values", [False, True])
@pytest.mark.parametrize("closed", [[], [17]])
def test_gates_at_one_beside_trained_weights_get_the_gradient_of_the_frozen_model(
    closed: list[int], with_values: bool
):
    model, rng = trainable("bert"), torch.Generator().manual_seed(0)
    stack = EdgeStack(ResidualModel(model))
    keep = torch.ones(stack.model.graph.n_edges, dtype=torch.float64)
    keep[closed] = 0.5
    keep.requires_grad_()
    ablated = random_values(stack, rng) if with_values else None
    _, of_trained = with_gradient(model, stack, keep, ablated)
    model.requires_grad_(False)
    _, of_frozen = with_gradient(model, stack, keep, ablated)
    assert (of_frozen.abs() > 1e-12).sum() > 100
    torch.testing.assert_close(of_trained, of_frozen, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("n_cut", [1, 5, 40])
@pytest.mark.parametrize("attention_bias", ["always", "heads"])
def test_a_finished_mask_runs_beside_the_model_to_the_same_logits(
    kind: str, n_cut: int, attention_bias: Any, monkeypatch: pytest.MonkeyPatch
):
    model = trainable(kind).requires_grad_(False)
    stack = EdgeStack(ResidualModel(model, attention_bias=attention_bias))
    rng = torch.Generator().manual_seed(2)
    keep = torch.ones(stack.model.graph.n_edges, dtype=torch.bool)
    keep[torch.randperm(len(keep), generator=rng)[:n_cut]] = False
    assert n_cut > 5 or plan_of(stack.model, keep).form == "ablated"
    ran: list[int] = []
    monkeypatch.setattr(
        edge_stack,
        "run_beside",
        lambda *arguments: ran.append(1) or run_beside(*arguments),
    )
    for n_tokens in (None, 1, 12):
        ablated = random_values(stack, rng, n_tokens) if n_tokens else None
        ran.clear()
        with edge_gated(stack, keep, ablated), torch.no_grad():
            sparse = logits_of(model)
        assert bool(ran) == (plan_of(stack.model, keep).form == "ablated")
        with edge_gated(stack, keep.double(), ablated):
            whole = logits_of(model)
        torch.testing.assert_close(sparse, whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_gradients_of_weights_at_open_gates_are_the_plain_ones(kind: str):
    model = trainable(kind)
    plain = gradients(model, logits_of(model).sin().sum())
    stack = EdgeStack(ResidualModel(model))
    keep = torch.ones(stack.model.graph.n_edges, dtype=torch.float64)
    with edge_gated(stack, keep):
        weight_grads = gradients(model, logits_of(model).sin().sum())
    assert weight_grads.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(
            weight_grads[name], plain[name], atol=1e-9, rtol=1e-9, msg=name
        )


@pytest.mark.parametrize("with_values", [False, True])
def test_gradients_of_weights_under_a_cut_follow_finite_differences(with_values: bool):
    model = trainable("bert")
    stack = EdgeStack(ResidualModel(model))
    rng = torch.Generator().manual_seed(4)
    keep = torch.rand(stack.model.graph.n_edges, generator=rng) < 0.7
    ablated = random_values(stack, rng) if with_values else None

    def loss() -> Tensor:
        with edge_gated(stack, keep, ablated):
            return logits_of(model).sin().sum()

    weight_grads = gradients(model, loss())
    assert len(weight_grads) > 30
    step = 1e-6
    for name, parameter in model.named_parameters():
        if name not in weight_grads:
            continue
        flat = parameter.detach().view(-1)
        place = int(weight_grads[name].abs().argmax())
        losses = []
        for sign in (1, -1):
            with torch.no_grad():  # the stack by hand, folded anew
                flat[place] += sign * step
                stack.fold()
                losses.append(float(loss()))
                flat[place] -= sign * step
        slope = (losses[0] - losses[1]) / (2 * step)
        expected = float(weight_grads[name].flatten()[place])
        assert abs(slope - expected) < 1e-5 * (1 + abs(expected)), name


def test_a_writer_whose_edges_are_all_cut_reaches_norms_alone():
    """Statistics of norms are those of the live stream, so its weights still count."""
    model = trainable("bert")
    stack = EdgeStack(ResidualModel(model))
    names = list(stack.model.graph.edges())
    keep = torch.tensor([not name.startswith("m1->") for name in names])
    with edge_gated(stack, keep):
        under_cut = gradients(model, logits_of(model).sin().sum())
    with edge_gated(stack, torch.ones_like(keep)):
        whole = gradients(model, logits_of(model).sin().sum())
    name = "bert.encoder.layer.1.output.dense.weight"
    assert not torch.allclose(under_cut[name], whole[name])
    assert under_cut["bert.encoder.layer.0.output.dense.weight"].any()
