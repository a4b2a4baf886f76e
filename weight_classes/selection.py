"""Neurons of a class as a set to cut, and sets of others to compare it with.

A set is one bool a neuron, layer by layer, True where it is chosen.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.checkpoint import Checkpoint
from circuitcut.weight_classes.classes import classify
from circuitcut.weight_classes.cosines import Cosines, cosines_of_layer
from circuitcut.weight_classes.layouts import n_layers_of
from circuitcut.weight_classes.mlp_weights import (
    MlpWeights,
    mlp_blocks_of_layer,
    signs,
)
from circuitcut.weight_classes.names import CLASSES, class_named
from circuitcut.weight_classes.selection_flags import ChoiceFlags
from circuitcut.weight_classes.settings import Convention

Chosen = list[Bool[Tensor, "unit"]]


def classes_of(
    checkpoint: Checkpoint, tau: float, convention: Convention
) -> list[Int[Tensor, "unit"]]:
    """The class of every neuron, layer by layer, as its place in `CLASSES`.

    Raises:
        UserError: When the weights are not those of the family, or `tau` is not between
            0 and 1.
    """
    return [classify(cosines, tau) for cosines in cosines_of(checkpoint, convention)]


def cosines_of(checkpoint: Checkpoint, convention: Convention) -> list[Cosines]:
    """Cosines and norms of every neuron, layer by layer.

    Raises:
        UserError: When the weights are not those of the family.
    """
    return [
        cosines_of_layer(_blocks(checkpoint, layer, convention))
        for layer in range(n_layers_of(checkpoint.config))
    ]


def flipped_of(
    checkpoint: Checkpoint, convention: Convention
) -> list[Bool[Tensor, "unit"]]:
    """Whether the refactor multiplies a neuron by -1 (w_gate . w_in < 0), by layer.

    Never of plain neurons.

    Raises:
        UserError: When the weights are not those of the family.
    """
    return [
        torch.cat(
            [
                torch.zeros(block.n_units, dtype=torch.bool)
                if block.gate is None
                else signs(block.gate, block.w_in).cpu() < 0
                for block in _blocks(checkpoint, layer, convention)
            ]
        )
        for layer in range(n_layers_of(checkpoint.config))
    ]


def _blocks(
    checkpoint: Checkpoint, layer: int, convention: Convention
) -> Iterator[MlpWeights]:
    """The neurons of a layer, some at a time: each is valid until the next."""
    for _, blocks in mlp_blocks_of_layer(checkpoint, layer, convention):
        yield from blocks


def members(classes: Sequence[Int[Tensor, "unit"]], names: Sequence[str]) -> Chosen:
    """The neurons of some classes.

    Raises:
        UserError: When there are none.
    """
    numbers = torch.tensor([CLASSES.index(name) for name in names])
    chosen = [torch.isin(of_layer, numbers) for of_layer in classes]
    if not n_chosen(chosen):
        present = sorted({CLASSES[n] for n in torch.cat(list(classes)).tolist()})
        raise UserError(
            f"this model has no neuron of the class {' or '.join(names)}; it has those "
            f"of {', '.join(present)}"
        )
    return chosen


def choose(
    flags: ChoiceFlags,
    classes: Sequence[Int[Tensor, "unit"]],
    frequency: Callable[[], Sequence[Float[Tensor, "unit"]]],
    rng: torch.Generator,
) -> tuple[Chosen, Chosen]:
    """The neurons that the flags ask for, and all of their classes.

    Args:
        classes: See `classes_of`.
        frequency: Gives the share of the tokens at which a neuron is on, layer by
            layer; called where `take` needs it.

    Raises:
        UserError: When the classes have no neuron, or fewer than are asked for.
    """
    whole = members(classes, flags.class_names)
    other = flags.as_many_as and class_named(flags.as_many_as)
    n_of_other = n_chosen(members(classes, [other])) if other else None
    n = number_of(n_chosen(whole), flags.n_ablated, flags.fraction, n_of_other)
    if n == n_chosen(whole):
        return whole, whole
    if flags.take == "drawn":
        return drawn(whole, n, rng), whole
    most = flags.take == "most_frequent"
    return by_frequency(whole, n, frequency(), most=most), whole


def control_by(
    kind: str,
    chosen: Chosen,
    excluded: Chosen,
    frequency: Callable[[], Sequence[Float[Tensor, "unit"]]],
    tolerance: float,
    rng: torch.Generator,
) -> Chosen:
    """`control` by `layer`, or `matched_control` by `frequency`, with their errors."""
    if kind == "layer":
        return control(chosen, excluded, rng)
    return matched_control(chosen, excluded, frequency(), tolerance, rng)


def drawn(chosen: Chosen, n: int, rng: torch.Generator) -> Chosen:
    """`n` of the chosen neurons, drawn uniformly over all layers.

    Raises:
        UserError: When there are fewer.
    """
    places = torch.cat(chosen).nonzero().squeeze(1)
    _check_number(n, len(places))
    order = torch.randperm(len(places), generator=rng)[:n]
    kept = torch.zeros(sum(map(len, chosen)), dtype=torch.bool)
    kept[places[order]] = True
    return list(kept.split([len(of_layer) for of_layer in chosen]))


def control(chosen: Chosen, excluded: Chosen, rng: torch.Generator) -> Chosen:
    """As many other neurons in every layer, drawn uniformly.

    Args:
        chosen: What the control is for.
        excluded: Neurons that are not drawn: all of the class.

    Raises:
        UserError: When a layer has fewer other neurons.
    """
    found = []
    for layer, (of_layer, not_here) in enumerate(zip(chosen, excluded, strict=True)):
        n, others = int(of_layer.sum()), (~not_here).nonzero().squeeze(1)
        if n > len(others):
            raise UserError(
                f"layer {layer} has {len(others):,} neurons outside the class, fewer "
                f"than the {n:,} chosen in it; choose fewer with --n_ablated or "
                "--fraction"
            )
        drawn_here = others[torch.randperm(len(others), generator=rng)[:n]]
        found.append(torch.zeros_like(of_layer).index_fill_(0, drawn_here, True))
    return found


def matched_control(
    chosen: Chosen,
    excluded: Chosen,
    frequency: Sequence[Float[Tensor, "unit"]],
    tolerance: float,
    rng: torch.Generator,
) -> Chosen:
    """For every chosen neuron another one of its layer that is on about as often.

    Pairs are drawn at random among all assignments of different neurons whose
    frequencies differ by `tolerance` at most (random costs, Hungarian algorithm).

    Args:
        chosen: What the control is for.
        excluded: Neurons that are not drawn: all of the class.
        frequency: Share of the tokens at which a neuron is on, layer by layer.
        tolerance: Largest difference of the frequencies in a pair.

    Raises:
        UserError: When a layer has no such assignment; the message names it and how
            many neurons are left without a partner.
    """
    found = []
    parts = zip(chosen, excluded, frequency, strict=True)
    for layer, (of_layer, not_here, share) in enumerate(parts):
        ours = of_layer.nonzero().squeeze(1)
        others = (~not_here).nonzero().squeeze(1)
        distance = (share[ours, None] - share[None, others]).abs()  # (chosen, other)
        costs = torch.rand(distance.shape, generator=rng, dtype=torch.float64)
        costs[distance > tolerance] = 1e6  # more than all allowed pairs together
        rows, columns = linear_sum_assignment(costs.numpy())
        fits = (distance <= tolerance)[
            torch.from_numpy(rows), torch.from_numpy(columns)
        ]
        n_missing = len(ours) - int(fits.sum())
        if n_missing:
            raise UserError(
                f"layer {layer} has no neurons outside the class for {n_missing:,} of "
                f"the {len(ours):,} chosen in it that are on as often, within "
                f"--tolerance {tolerance:g}; raise it, choose fewer, or take controls "
                "by layer alone"
            )
        drawn_here = others[torch.from_numpy(np.sort(columns))]
        found.append(torch.zeros_like(of_layer).index_fill_(0, drawn_here, True))
    return found


def by_frequency(
    chosen: Chosen, n: int, frequency: Sequence[Float[Tensor, "unit"]], *, most: bool
) -> Chosen:
    """The `n` chosen neurons that are on most often, or least often.

    Of neurons that are on equally often the first ones are taken.

    Raises:
        UserError: When there are fewer.
    """
    places = torch.cat(chosen).nonzero().squeeze(1)
    _check_number(n, len(places))
    shares = torch.cat(list(frequency))[places]
    order = shares.sort(descending=most, stable=True).indices[:n]
    kept = torch.zeros(sum(map(len, chosen)), dtype=torch.bool)
    kept[places[order]] = True
    return list(kept.split([len(of_layer) for of_layer in chosen]))


def _check_number(n: int, n_members: int) -> None:
    if not 0 < n <= n_members:
        raise UserError(
            f"{n:,} neurons cannot be drawn from the {n_members:,} of the class; ask "
            f"for 1 to {n_members:,}"
        )


def number_of(
    n_members: int, n: int | None, fraction: float | None, as_many_as: int | None
) -> int:
    """How many neurons to choose of a class; at most one argument may be given.

    Args:
        n: A number.
        fraction: A share of the class, rounded, at least one neuron.
        as_many_as: The size of another class.
    """
    if fraction is not None:
        return max(1, math.floor(fraction * n_members + 0.5))
    given = n if n is not None else as_many_as
    return n_members if given is None else given


def n_chosen(chosen: Chosen) -> int:
    """Number of chosen neurons."""
    return sum(int(of_layer.sum()) for of_layer in chosen)


def frozen_mask(
    chosen: Chosen,
    sites: Sequence[Site],
    ablated: AblationValues,
    *,
    special_ids: Sequence[int] = (),
    provenance: dict[str, object] | None = None,
) -> FrozenMask:
    """The mask that ablates the chosen neurons.

    Args:
        sites: The `neurons` of every layer, in order.
    """
    keep = {site.name: ~of_layer for site, of_layer in zip(sites, chosen, strict=True)}
    return FrozenMask(
        keep, tuple(sites), ablated, tuple(special_ids), dict(provenance or {})
    )
