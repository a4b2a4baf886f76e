"""Integrated gradients of an answer's probability with respect to the MLP neurons.

D. Dai et al. (2022), "Knowledge Neurons in Pretrained Transformers",
https://arxiv.org/abs/2104.08696. The neurons a of layer l at a predicting position are
scaled together,

    Attr_i = a_i * sum_k w_k dP(answer | a := s_k a) / da_i,

with the shares s_k and weights w_k of a grid. Departures: the steps are midpoints by
default, whose error is of order 1 / n_steps^2; the published grids are options. With
several masks the neurons of each mask are scaled alone, and P is the product over the
masks.

What the projection writes, y = W a + b, is linear in a, so dP/da = W^T dP/dy: every
step needs the gradient at y alone, and one product with W serves all steps of a layer.
A copy of a prompt begins at y (`base_pass.py`). Copies of several prompts, steps and
layers go through the layers above in one pass, which grows from layer to layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitcut.attribution.knowledge.base_pass import BasePass
from circuitcut.attribution.knowledge.grids import grid_of
from circuitcut.attribution.knowledge.prompts import Prompt
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating, weights_frozen

N_STEPS = 20
POSITIONS = 640
"""Positions (tokens) of all copies in one pass: this bounds memory to twice that of a
forward pass of BERT-base, weights included. More would hardly be faster."""
_HEAD_ROWS = 128
"""Copies in one pass through the head."""


@dataclass(frozen=True)
class Attribution:
    """What the neurons of a prompt are worth."""

    scores: Float[Tensor, "mask layer unit"]
    """Of every neuron, for every mask that it was scaled at; on the CPU."""
    probability: float
    """Of the answer, unchanged."""
    zeroed: Float[Tensor, "mask layer"] | None
    """Probability of the answer with all neurons of a layer at 0 there, if asked for:
    the scores of a layer sum to `probability` minus this."""
    predicted: tuple[int, ...]
    """The token with the largest logit at every mask."""

    @property
    def completeness(self) -> Float[Tensor, "mask layer"]:
        """Sum of the scores minus what it should be, p(full) - p(zero at that layer).

        Raises:
            UserError: When the attribution was made without `zeroed`.
        """
        if self.zeroed is None:
            raise UserError(
                "completeness needs the probabilities of zeroed layers; attribute with "
                "check=True"
            )
        return self.scores.double().sum(-1) - (self.probability - self.zeroed.double())


@dataclass(frozen=True)
class _Copies:
    """The copies of one prompt, all steps, scaled at one mask of one layer."""

    layer: int
    prompt: int
    mask: int


def integrated_gradients(
    model: nn.Module,
    prompts: Sequence[Prompt],
    *,
    grid: str = "midpoints",
    n_steps: int = N_STEPS,
    check: bool = False,
    n_positions: int = POSITIONS,
) -> list[Attribution]:
    """Attributions of all MLP neurons of all layers, prompt by prompt.

    One forward pass of the prompts, then for each step and layer a forward and a
    backward pass of what lies above this layer. The model is unchanged afterwards.

    Args:
        model: A masked or causal language model of the architecture table.
        grid: Shares and weights of the steps: `midpoints`, `original`, `both_ends` or
            `gauss`; see `grids.py`.
        n_steps: Number of steps.
        check: Also run every layer's neurons at 0; see `Attribution.completeness`.
        n_positions: Positions in one pass, copies counted; at least one prompt's steps
            of one layer run together.

    Raises:
        UserError: When there are no prompts or no steps, or the model is no language
            model.
    """
    shares, weights = grid_of(grid, n_steps)
    if check:
        shares, weights = [*shares, 0.0], [*weights, 0.0]
    with evaluating(model), weights_frozen(model):
        base = BasePass.run(model, prompts)
        return _attributions(base, prompts, shares, weights, check, n_positions)


def activations(model: nn.Module, prompts: Sequence[Prompt]) -> list[Attribution]:
    """The activations themselves as scores (`max_activations` of the published code).

    Raises:
        UserError: As in `integrated_gradients`.
    """
    with evaluating(model):
        base = BasePass.run(model, prompts)
        scores = torch.stack([layer.activations for layer in base.layers], dim=2)
        return _results(base, prompts, scores, None)


def aggregated(
    scores: Float[Tensor, "mask layer unit"], how: str
) -> Float[Tensor, "layer unit"]:
    """Scores of an answer with several tokens, from those of its masks.

    Args:
        how: The mask of the first token (`start`) or of the last one (`end`), their
            `sum`, `mean` or `max`; with one mask all of them are the same.

    Raises:
        UserError: When there is no such aggregation.
    """
    match how:
        case "start":
            return scores[0]
        case "end":
            return scores[-1]
        case "sum":
            return scores.sum(0)
        case "mean":
            return scores.mean(0)
        case "max":
            return scores.amax(0)
    raise UserError(f"argument how must be start, end, sum, mean or max, got {how!r}")


def _attributions(
    base: BasePass,
    prompts: Sequence[Prompt],
    shares: Sequence[float],
    weights: Sequence[float],
    check: bool,
    n_positions: int,
) -> list[Attribution]:
    device, dtype = base.logits.device, base.layers[0].written.dtype
    steps = torch.tensor(shares, device=device, dtype=dtype)
    n_masks = base.batch.positions.shape[1]
    groups = [
        _Copies(layer, prompt, mask)
        for layer in range(base.n_layers)
        for prompt, asked in enumerate(prompts)
        for mask in range(len(asked.positions))
    ]
    n_at_once = max(1, n_positions // (len(shares) * base.n_queries))
    shape = (len(prompts), n_masks, base.n_layers)
    wide = torch.promote_types(dtype, torch.float32)
    mean = torch.zeros(*shape, base.layers[0].written.shape[-1], dtype=wide)
    zeroed = torch.zeros(shape, dtype=torch.float64) if check else None
    weight = torch.tensor(weights, device=device, dtype=wide)
    for first in range(0, len(groups), n_at_once):
        together = groups[first : first + n_at_once]
        gradients, p = _sweep(base, together, steps)
        for copies, gradient, of_steps in zip(together, gradients, p, strict=True):
            place = copies.prompt, copies.mask, copies.layer
            mean[place] = (weight @ gradient.to(wide)).cpu()
            if zeroed is not None:
                zeroed[place] = of_steps[-1].double().cpu()
    scores = [
        layer.activations * _pulled(layer.projection, mean[:, :, i].to(device))
        for i, layer in enumerate(base.layers)
    ]
    return _results(base, prompts, torch.stack(scores, dim=2), zeroed)


def _sweep(
    base: BasePass, groups: Sequence[_Copies], steps: Float[Tensor, "step"]
) -> tuple[Sequence[Tensor], Float[Tensor, "group step"]]:
    """dP/dy of every step, (step, d_model) by group, and the probabilities.

    One forward pass from the lowest layer of the groups, which the copies of a higher
    layer join at this layer, and one backward pass down to where each of them joined.
    """
    n = len(steps)
    leaves: list[Tensor] = []
    states: list[Tensor] = []
    rows = torch.zeros(0, dtype=torch.long, device=base.batch.ids.device)
    by_layer = {
        layer: list(copies) for layer, copies in groupby(groups, lambda g: g.layer)
    }
    with torch.enable_grad():
        for layer in range(groups[0].layer, base.n_layers):
            if states:
                states = [base.block(layer, torch.cat(states), rows)]
            for copies in by_layer.get(layer, []):
                leaf, begun = _begin(base, copies, steps)
                leaves.append(leaf)
                states.append(begun)
                rows = torch.cat([rows, rows.new_full((n,), copies.prompt)])
        last = torch.cat(states)
        p, pulled = _of_head(base, last, rows)
        gradients = torch.autograd.grad(last, leaves, pulled)
    return gradients, p.view(-1, n)


def _of_head(
    base: BasePass, states: Float[Tensor, "row mask d_model"], rows: Int[Tensor, "row"]
) -> tuple[Float[Tensor, "row"], Float[Tensor, "row mask d_model"]]:
    """The probabilities, and their gradients at the output of the last block.

    In parts of `_HEAD_ROWS` rows, because logits are as wide as the vocabulary.
    """
    p, gradients = [], []
    parts = states.detach().split(_HEAD_ROWS), rows.split(_HEAD_ROWS)
    for part, of_part in zip(*parts, strict=True):
        part.requires_grad_()
        of_rows = base.predict(part, of_part)
        gradients += torch.autograd.grad(of_rows.sum(), part)
        p.append(of_rows.detach())
    return torch.cat(p), torch.cat(gradients)


def _begin(
    base: BasePass, copies: _Copies, steps: Float[Tensor, "step"]
) -> tuple[Float[Tensor, "step d_model"], Tensor]:
    """The scaled y of every step, and the output of the block that holds it.

    The block runs once: after the projection its one row is broadcast to all steps.
    """
    layer = base.layers[copies.layer]
    written = layer.written[copies.prompt, copies.mask]
    bias = getattr(layer.projection, "bias", None)
    constant = torch.zeros_like(written) if bias is None else bias.detach()
    leaf = constant + steps[:, None] * (written - constant)
    leaf.requires_grad_()
    place = int(base.place_at(copies.layer)[copies.prompt, copies.mask])
    row = torch.tensor([copies.prompt], device=base.batch.ids.device)
    handle = layer.projection.register_forward_hook(partial(_spread, leaf, place))
    try:
        states = layer.states[copies.prompt : copies.prompt + 1]
        if layer.is_flat:  # its block needs as many rows as come out
            states, row = states.expand(len(steps), -1, -1), row.expand(len(steps))
        return leaf, base.block(copies.layer, states, row)
    finally:
        handle.remove()


def _spread(
    leaf: Tensor, place: int, _: nn.Module, __: Any, output: Float[Tensor, "*one d"]
) -> Float[Tensor, "*step d"]:
    """What the projection writes, one row a step, with y at its place."""
    if output.dim() == 2:  # of all steps, (step * q, d)
        by_step = output.unflatten(0, (len(leaf), -1))
        return _spread(leaf, place, _, __, by_step).flatten(0, 1)
    if output.shape[1] == 1:
        return leaf.unsqueeze(1)
    before, after = output[:, :place], output[:, place + 1 :]
    n = len(leaf)
    parts = [before.expand(n, -1, -1), leaf.unsqueeze(1), after.expand(n, -1, -1)]
    return torch.cat(parts, dim=1)


def _pulled(
    projection: nn.Module, gradient: Float[Tensor, "*row d_model"]
) -> Float[Tensor, "*row unit"]:
    """W^T dP/dy."""
    weight = projection.get_parameter("weight").detach().to(gradient.dtype)
    if isinstance(projection, Conv1D):  # stored as (in, out)
        return gradient @ weight.T
    return gradient @ weight


def _results(
    base: BasePass,
    prompts: Sequence[Prompt],
    scores: Float[Tensor, "prompt mask layer unit"],
    zeroed: Float[Tensor, "prompt mask layer"] | None,
) -> list[Attribution]:
    rows = torch.arange(len(prompts), device=base.logits.device)
    p = base.probabilities(base.logits, rows).tolist()
    predicted: Int[Tensor, "prompt mask"] = base.logits.argmax(-1)
    found = []
    for i, prompt in enumerate(prompts):
        n = len(prompt.positions)
        found.append(
            Attribution(
                scores[i, :n].detach().cpu(),
                p[i],
                None if zeroed is None else zeroed[i, :n],
                tuple(predicted[i, :n].tolist()),
            )
        )
    return found
