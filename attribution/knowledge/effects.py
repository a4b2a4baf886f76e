"""What suppressed and enhanced neurons do to the probability of answers.

Neurons are scaled at the predicting positions, as published. Every variant is a row of
one pass that begins at the lowest scaled layer (`base_pass.py`).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcut.attribution.knowledge.base_pass import BasePass
from circuitcut.attribution.knowledge.operations import grouped
from circuitcut.attribution.knowledge.unit_sets import Unit, Units
from circuitcut.models.spared import by_token

POSITIONS = 512
"""Positions (tokens) in one pass."""


@dataclass(frozen=True)
class Variant:
    """A prompt of a base pass with some neurons scaled."""

    prompt: int
    units: Units
    factor: float


def probabilities(
    base: BasePass, variants: Sequence[Variant], n_positions: int = POSITIONS
) -> Float[Tensor, "variant"]:
    """The probability of the answer of every variant's prompt, in float64.

    Args:
        base: The forward pass of the prompts; the model must still be the same, and in
            evaluation mode.
    """
    n_at_once = max(1, n_positions // base.n_queries)
    found = [torch.zeros(0, dtype=torch.float64)]
    with torch.no_grad():
        for first in range(0, len(variants), n_at_once):
            part = variants[first : first + n_at_once]
            found.append(_pass(base, part).double().cpu())
    return torch.cat(found)


def _pass(base: BasePass, variants: Sequence[Variant]) -> Float[Tensor, "variant"]:
    device = base.batch.ids.device
    rows = torch.tensor([v.prompt for v in variants], device=device)
    by_layer: dict[int, list[tuple[int, list[int], float]]] = {}
    for row, variant in enumerate(variants):
        for layer, numbers in grouped(variant.units).items():
            by_layer.setdefault(layer, []).append((row, numbers, variant.factor))
    if not by_layer:
        return base.probabilities(base.logits[rows], rows)
    lowest = min(by_layer)
    states = base.layers[lowest].states[rows]
    for layer in range(lowest, base.n_layers):
        with ExitStack() as hooks:
            if layer in by_layer:
                places = base.place_at(layer)[rows]
                scale = partial(_scale, places, by_layer[layer], states.shape[:2])
                module = base.layers[layer].projection
                hooks.callback(module.register_forward_pre_hook(scale).remove)
            states = base.block(layer, states, rows)
    return base.predict(states, rows)


def _scale(
    places: Tensor,
    scaled: Sequence[tuple[int, list[int], float]],
    shape: torch.Size,
    _: nn.Module,
    args: tuple[Any, ...],
) -> tuple[Any, ...]:
    changed = args[0].clone()
    x, before = by_token(changed, shape), by_token(args[0], shape)
    for row, numbers, factor in scaled:
        index = places[row][:, None], torch.tensor(numbers, device=x.device)[None]
        # a repeated place is scaled once
        x[row][index] = factor * before[row][index]
    return (changed, *args[1:])


def random_like(
    units: Units, widths: Sequence[int], rng: torch.Generator, excluded: Units
) -> Units:
    """As many other units in every layer, drawn uniformly.

    Args:
        units: What the control is for.
        widths: Number of neurons of every layer.
        excluded: Units that are not drawn.
    """
    drawn: set[Unit] = set()
    for layer, numbers in grouped(units).items():
        order = torch.randperm(widths[layer], generator=rng).tolist()
        others = [number for number in order if (layer, number) not in excluded]
        drawn |= {(layer, number) for number in others[: len(numbers)]}
    return frozenset(drawn)
