"""Integrated gradients of all layers against a plain loop of autograd."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from circuitcut.attribution.knowledge.gradients import (
    activations,
    aggregated,
    integrated_gradients,
)
from circuitcut.attribution.knowledge.grids import grid_of
from circuitcut.attribution.knowledge.prompts import Prompt
from circuitcut.models.architectures import sites_of
from circuitcut.storage.errors import UserError
from tests.models.tiny import DECODERS, ENCODERS, exact_norms, tiny_model

N_STEPS = 2


def model_of(kind: str) -> Any:
    head = "causal_lm" if kind in DECODERS else "masked_lm"
    return tiny_model(kind, head).double()


def prompts_of(kind: str) -> list[Prompt]:
    """Prompts of different length; of a masked model with one, two and one masks."""
    ids = [(7, 9, 11, 30, 14), (8, 21, 40, 9, 33, 17, 50), (12, 45, 7)]
    if kind in DECODERS:
        return [Prompt(i, (len(i) - 1,), (20 + len(i),)) for i in ids]
    places = [(2,), (1, 2), (2,)]
    return [Prompt(i, p, (25, 31)[: len(p)]) for i, p in zip(ids, places, strict=True)]


def probability(model: Any, prompt: Prompt) -> Tensor:
    logits = model(input_ids=torch.tensor([prompt.ids])).logits[
        0, list(prompt.positions)
    ]
    p = logits.softmax(-1)
    return p[torch.arange(len(prompt.answer)), list(prompt.answer)].prod()


@contextmanager
def replaced(model: Any, module: str, position: int, value: Tensor) -> Iterator[None]:
    """The neurons of a layer at one position are `value`."""

    def hook(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        x = args[0].clone()
        x.view(1, -1, x.shape[-1])[0, position] = (
            value  # OPT's are (batch * seq, width)
        )
        return (x,)

    handle = model.get_submodule(module).register_forward_pre_hook(hook)
    yield
    handle.remove()


def loop(model: Any, prompt: Prompt, shares: Sequence[float], weights: Sequence[float]):
    """Scores (mask, layer, unit) by one forward and backward pass a step and layer."""
    found = []
    for position in prompt.positions:
        for site in sites_of(model, ["neurons"]):
            seen: list[Tensor] = []
            module = model.get_submodule(site.module)
            handle = module.register_forward_pre_hook(
                lambda _, args, seen=seen: seen.append(args[0])
            )
            with torch.no_grad():
                probability(model, prompt)
            handle.remove()
            a = seen[0].view(1, -1, seen[0].shape[-1])[0, position]
            total = torch.zeros_like(a)
            for share, weight in zip(shares, weights, strict=True):
                scaled = (share * a).requires_grad_()
                with replaced(model, site.module, position, scaled):
                    p = probability(model, prompt)
                total += weight * torch.autograd.grad(p, scaled)[0]
            found.append(a * total)
    n_layers = len(sites_of(model, ["neurons"]))
    return torch.stack(found).unflatten(0, (-1, n_layers))


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_all_layers_at_once_equal_a_plain_loop_of_autograd(kind: str):
    model = model_of(kind)
    prompts = prompts_of(kind)
    with exact_norms(model):
        found = integrated_gradients(model, prompts, n_steps=N_STEPS, n_positions=20)
        for prompt, attribution in zip(prompts, found, strict=True):
            reference = loop(model, prompt, *grid_of("midpoints", N_STEPS))
            scale = reference.abs().max()
            torch.testing.assert_close(
                attribution.scores / scale, reference / scale, atol=1e-10, rtol=0
            )
            assert attribution.probability == pytest.approx(
                probability(model, prompt).item(), rel=1e-10
            )


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2"])
def test_the_sums_of_a_layer_are_what_its_neurons_add_to_the_probability(kind: str):
    """Within 1 % at 20 midpoints; the published grids are biased."""
    model, prompts = model_of(kind), prompts_of(kind)
    for n_steps, grid in ((20, "midpoints"), (8, "gauss")):
        found = integrated_gradients(
            model, prompts, n_steps=n_steps, grid=grid, check=True
        )
        for prompt, attribution in zip(prompts, found, strict=True):
            assert attribution.zeroed is not None
            sums = (attribution.probability - attribution.zeroed).abs()
            error = attribution.completeness.abs()
            assert (error <= 0.01 * sums + 1e-7).all(), (grid, error, sums)
            site = sites_of(model, ["neurons"])[1]
            nothing = torch.zeros(site.n_units).double()
            with replaced(model, site.module, prompt.positions[0], nothing):
                p = probability(model, prompt).item()
            assert attribution.zeroed[0, 1].item() == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(
    "kind", ["mistral", "gemma3_text", "gpt_neox", "opt", "roberta"]
)
def test_prompts_of_different_length_in_one_batch_equal_one_by_one(kind: str):
    model = model_of(kind)
    prompts = prompts_of(kind)
    if kind in DECODERS:  # nothing stands before its last token
        prompts.append(Prompt((9,), (0,), (25,)))
    together = integrated_gradients(model, prompts, n_steps=2, check=True)
    for prompt, attribution in zip(prompts, together, strict=True):
        alone = integrated_gradients(model, [prompt], n_steps=2, check=True)[0]
        scale = alone.scores.abs().max()
        torch.testing.assert_close(
            attribution.scores / scale, alone.scores / scale, atol=1e-6, rtol=0
        )
        torch.testing.assert_close(attribution.zeroed, alone.zeroed)
        assert attribution.predicted == alone.predicted
        assert attribution.probability == pytest.approx(alone.probability, rel=1e-6)


def test_the_path_of_a_pass_does_not_change_the_scores():
    model = model_of("gpt2")
    prompts = prompts_of("gpt2")
    many = integrated_gradients(model, prompts, n_steps=4, n_positions=10_000)
    few = integrated_gradients(model, prompts, n_steps=4, n_positions=1)
    for one, other in zip(many, few, strict=True):
        torch.testing.assert_close(one.scores, other.scores, atol=1e-12, rtol=1e-9)


def test_grids_are_the_published_ones():
    assert grid_of("original", 4) == ([0.0, 0.25, 0.5, 0.75], [0.25] * 4)
    shares, weights = grid_of("both_ends", 5)
    assert shares == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert weights == [0.2] * 5  # of s: 0.5, of a constant: 1
    shares, weights = grid_of("gauss", 3)
    of_quintic = sum(w * s**5 for s, w in zip(shares, weights, strict=True))
    assert of_quintic == pytest.approx(1 / 6, abs=1e-12)
    for wrong in (("left", 3), ("midpoints", 0)):
        with pytest.raises(UserError, match="argument"):
            grid_of(*wrong)


def test_activations_are_those_that_enter_the_projection():
    model = model_of("bert")
    prompt = prompts_of("bert")[1]
    seen: list[Tensor] = []
    site = sites_of(model, ["neurons"])[0]
    handle = model.get_submodule(site.module).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    probability(model, prompt)
    handle.remove()
    found = activations(model, [prompt])[0]
    assert found.zeroed is None
    torch.testing.assert_close(found.scores[:, 0], seen[0][0, [1, 2]])
    with pytest.raises(UserError, match="check=True"):
        _ = found.completeness


def test_with_one_mask_all_aggregations_are_equal():
    one, two = torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[1.0, 5.0]], [[3.0, 2.0]]])
    for how in ("start", "end", "sum", "mean", "max"):
        assert torch.equal(aggregated(one, how), one[0])
    expected = {"start": [1, 5], "end": [3, 2], "sum": [4, 7], "mean": [2, 3.5]}
    for how, values in (expected | {"max": [3, 5]}).items():
        assert aggregated(two, how).tolist() == [values]
    with pytest.raises(UserError, match="argument how"):
        aggregated(two, "middle")


def test_the_model_is_as_before_and_so_after_an_error():
    model = model_of("llama").float().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    integrated_gradients(model, prompts_of("llama"), n_steps=1)
    with pytest.raises(UserError, match="last position"):
        integrated_gradients(model, [Prompt((7, 8, 9), (1,), (5,))])
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert "forward" not in vars(module)


def test_what_cannot_be_attributed_is_refused():
    with pytest.raises(UserError, match="at least one prompt"):
        integrated_gradients(model_of("bert"), [])
    with pytest.raises(UserError, match="1 masks for 2 tokens"):
        Prompt((7, 8, 9), (1,), (5, 6))
    with pytest.raises(UserError, match="needs a mask"):
        Prompt((7, 8, 9), (), ())
