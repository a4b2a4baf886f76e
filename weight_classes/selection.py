"""Neurons of a class as a set to cut, and sets of others to compare it with.

A set is one bool a neuron, layer by layer, True where it is chosen.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.checkpoint import Checkpoint
from circuitcut.weight_classes.classes import classify
from circuitcut.weight_classes.cosines import cosines_of_layer
from circuitcut.weight_classes.layouts import n_layers_of
from circuitcut.weight_classes.mlp_weights import mlps_of_layer
from circuitcut.weight_classes.names import CLASSES
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
    return [
        classify(cosines_of_layer(mlps_of_layer(checkpoint, layer, convention)), tau)
        for layer in range(n_layers_of(checkpoint.config))
    ]


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


def drawn(chosen: Chosen, n: int, rng: torch.Generator) -> Chosen:
    """`n` of the chosen neurons, drawn uniformly over all layers.

    Raises:
        UserError: When there are fewer.
    """
    places = torch.cat(chosen).nonzero().squeeze(1)
    if not 0 < n <= len(places):
        raise UserError(
            f"{n:,} neurons cannot be drawn from the {len(places):,} of the class; ask "
            f"for 1 to {len(places):,}"
        )
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
