"""How often neurons are on, in which quadrant, and how much they write.

A neuron is on at a token where its gate is above 0 before the non-linearity; a plain
neuron where its activation is. Quadrants: signs of the gate and of the activation after
the refactor (`masks/neurons/rule.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitcut.masks.neurons.rule import QUADRANTS
from circuitcut.masks.neurons.values import Inputs, Seen, watch
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.cosines import Cosines


@dataclass(frozen=True)
class LayerActivity:
    """Counts and sums of one layer's neurons over all tokens."""

    n_tokens: int
    quadrants: Int[Tensor, "quadrant unit"]
    """Tokens in each of `QUADRANTS`; a column adds up to `n_tokens`."""
    size: Float[Tensor, "unit"]
    """Sum of |activation|."""

    @property
    def on(self) -> Float[Tensor, "unit"]:
        """Share of the tokens at which a neuron is on."""
        return self.quadrants[:2].sum(0).double() / self.n_tokens

    @property
    def mean_size(self) -> Float[Tensor, "unit"]:
        """Mean |activation|."""
        return self.size / self.n_tokens


class Activity:
    """Sums over the tokens that were shown, layer by layer.

    Args:
        sites: Of neurons, one a layer.
        flipped: One vector a site: True where w_gate . w_in < 0.
    """

    def __init__(self, sites: Sequence[Site], flipped: Sequence[Bool[Tensor, "_unit"]]):
        self._numbers = {site.name: n for n, site in enumerate(sites)}
        self._flipped = list(flipped)
        self.layers = [
            LayerActivity(
                0,
                torch.zeros(4, site.width, dtype=torch.int64),
                torch.zeros(site.width, dtype=torch.float64),
            )
            for site in sites
        ]

    def see(self, site: Site, seen: Seen) -> None:
        """Add the tokens of a batch."""
        number = self._numbers[site.name]
        before = self.layers[number]
        is_on, is_positive = (
            seen.gate_is_positive,
            seen.is_positive(self._flipped[number]),
        )
        n = len(seen.post)
        both, on, positive = (
            part.sum(0).cpu() for part in (is_on & is_positive, is_on, is_positive)
        )
        counted = torch.stack(
            [both, on - both, positive - both, n - on - positive + both]
        )
        size = seen.post.abs().sum(0, dtype=torch.float64).cpu()
        self.layers[number] = LayerActivity(
            before.n_tokens + n, before.quadrants + counted, before.size + size
        )

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint: one entry a layer."""
        return {str(number): vars(layer) for number, layer in enumerate(self.layers)}

    def restore_(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        numbers = range(len(self.layers))
        self.layers = [LayerActivity(**state[str(number)]) for number in numbers]

    def on(self) -> list[Float[Tensor, "_unit"]]:
        """Share of the tokens at which each neuron is on, layer by layer.

        Raises:
            UserError: When no token was shown.
        """
        if not all(layer.n_tokens for layer in self.layers):
            raise UserError(
                "frequencies need at least one token, got none; give more text"
            )
        return [layer.on for layer in self.layers]

    def mean_on(self, chosen: Sequence[Bool[Tensor, "_unit"]]) -> float:
        """Mean share of the tokens at which the chosen neurons are on."""
        return float(torch.cat(self.on())[torch.cat(list(chosen))].mean())

    def of(
        self, chosen: Sequence[Bool[Tensor, "_unit"]], norms: Sequence[Tensor]
    ) -> dict[str, float]:
        """Means over the chosen neurons.

        Args:
            norms: |w_out| of every neuron, layer by layer.

        Returns:
            `on`, a share for each quadrant, and `written`: mean |activation| |w_out|.
        """
        where = torch.cat(list(chosen))
        quadrants = torch.cat(
            [layer.quadrants.double() / layer.n_tokens for layer in self.layers], 1
        )[:, where].mean(1)
        return {
            "on": self.mean_on(chosen),
            **dict(zip(QUADRANTS, quadrants.tolist(), strict=True)),
            "written": float(torch.cat(self.written(norms))[where].mean()),
        }

    def written(self, norms: Sequence[Tensor]) -> list[Float[Tensor, "_unit"]]:
        """Mean |activation| times |w_out| of every neuron, layer by layer."""
        pairs = zip(self.layers, norms, strict=True)
        return [layer.mean_size * norm.double().cpu() for layer, norm in pairs]

    def correlations(self, cosines: Sequence[Cosines]) -> list[dict[str, float | None]]:
        """Pearson's r over the neurons of a layer, of each cosine with each number.

        Returns:
            One entry a layer: `on:in_out`, `written:gate_out`, ...; None where one of
            both is constant.
        """
        entries = []
        written = self.written([c.norm_out for c in cosines])
        for on, size, of_layer in zip(self.on(), written, cosines, strict=True):
            numbers: Mapping[str, Tensor] = {"on": on, "written": size}
            entries.append(
                {
                    f"{name}:{cosine}": pearson(value, values.double().cpu())
                    for name, value in numbers.items()
                    for cosine, values in of_layer.cosines().items()
                }
            )
        return entries


def activity_of(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Inputs,
    flipped: Sequence[Bool[Tensor, "_unit"]],
) -> Activity:
    """The activity of every neuron over the positions that count.

    Raises:
        UserError: When there are none.
    """
    found = Activity(sites, flipped)
    watch(model, sites, batches, found.see)
    found.on()  # checks it
    return found


def pearson(one: Float[Tensor, "unit"], other: Float[Tensor, "unit"]) -> float | None:
    """Pearson's correlation; None where one of both is constant."""
    a, b = (x.double() - x.double().mean() for x in (one, other))
    product = a.norm() * b.norm()
    return float(a @ b / product) if product > 0 else None
