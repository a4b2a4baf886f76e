"""How far masks agree: Jaccard indices of their units beside those of random masks.

The Jaccard index of two sets of a and b units is x / (a + b - x), with x units in both.
If both are drawn uniformly and independently from n units, x is hypergeometric; if they
are drawn site by site, x is a sum of such numbers. All expectations here are exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcut.masks.edges.sites import edge_names
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError

_NEGLIGIBLE = 1e-18
"""Relative to the largest probability."""
_TAIL = 0.025


@dataclass(frozen=True)
class Chance:
    """The Jaccard index of two random sets: mean, variance, and central 95 %."""

    mean: float
    variance: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """Two of the masks, by number, and what they share."""

    first: int
    second: int
    n_shared: int
    jaccard: float | None
    """None where both choose nothing."""
    by_chance: Chance | None
    """Of sets drawn from all units."""
    by_chance_per_site: Chance | None
    """Of sets with each mask's own number of units at every site."""


@dataclass(frozen=True)
class Overlap:
    """Which units several masks choose: those that they ablate, or those they keep.

    Raises:
        UserError: When there are fewer than two masks, or their sites differ.
    """

    masks: tuple[FrozenMask, ...]
    kept: bool

    def __post_init__(self) -> None:
        if len(self.masks) < 2:
            raise UserError(
                "an overlap needs at least two masks, of runs that differ in their "
                f"seed, got {len(self.masks)}"
            )
        for number, mask in enumerate(self.masks[1:], start=2):
            if mask.sites != self.sites:
                raise UserError(
                    "an overlap needs masks of the same sites, got "
                    f"{len(self.sites)} sites with {self.n_units} units in mask 1 and "
                    f"{len(mask.sites)} with {mask.n_units} in mask {number}"
                )

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of every mask."""
        return self.masks[0].sites

    @property
    def n_units(self) -> int:
        """Number of units at all sites."""
        return self.masks[0].n_units

    def chosen_at(self, site: Site) -> Bool[Tensor, "mask unit"]:
        """Which units of a site every mask chooses."""
        return torch.stack([mask.keep[site.name] == self.kept for mask in self.masks])

    def n_chosen_at(self, site: Site) -> list[int]:
        """Number of units of a site that every mask chooses."""
        return self.chosen_at(site).sum(1).tolist()

    def n_chosen(self) -> list[int]:
        """Number of units that every mask chooses."""
        per_site = [self.n_chosen_at(site) for site in self.sites]
        return [sum(counts) for counts in zip(*per_site, strict=True)]

    def pairs(self, sites: Sequence[Site] | None = None) -> list[Pair]:
        """Every two masks, compared at some sites or at all of them."""
        sites = self.sites if sites is None else sites
        chosen = [self.chosen_at(site) for site in sites]
        pairs = []
        for i, j in combinations(range(len(self.masks)), 2):
            sizes = [
                (c.shape[1], int(c[i].sum().item()), int(c[j].sum().item()))
                for c in chosen
            ]
            in_all = tuple(sum(column) for column in zip(*sizes, strict=True))
            n_shared = sum(int((c[i] & c[j]).sum().item()) for c in chosen)
            union = in_all[1] + in_all[2] - n_shared
            pairs.append(
                Pair(
                    i,
                    j,
                    n_shared,
                    n_shared / union if union else None,
                    jaccard_by_chance([in_all]),
                    jaccard_by_chance(sizes),
                )
            )
        return pairs

    def n_masks_of(self, site: Site) -> list[int]:
        """For every unit of a site the number of masks that choose it."""
        return self.chosen_at(site).sum(0).tolist()

    def n_units_by_masks(self) -> list[int]:
        """Number of units that exactly 0, 1, ... of the masks choose."""
        counts = torch.cat([self.chosen_at(site).sum(0) for site in self.sites])
        return counts.bincount(minlength=len(self.masks) + 1).tolist()

    def expected_by_masks(self) -> list[float]:
        """The same, expected of random masks of these sizes."""
        shares = torch.zeros(len(self.masks) + 1, dtype=torch.float64)
        shares[0] = 1.0
        for n_chosen in self.n_chosen():
            p = n_chosen / self.n_units
            shares = (1 - p) * shares + p * shares.roll(1)
        return (self.n_units * shares).tolist()

    def unit_names(self, site: Site) -> list[str]:
        """`a0.h1->m3` for edges, `MODULE:KIND[NUMBER]` for other units."""
        if site.kind == "edges":
            nothing = torch.zeros(site.n_units, dtype=torch.bool)
            return edge_names([site], {site.name: nothing}, kept=False)
        return [f"{site.name}[{unit}]" for unit in range(site.n_units)]


def mean_by_chance(pairs: Sequence[Chance]) -> Chance | None:
    """Of the mean Jaccard index over all pairs of random masks; None without pairs.

    One pair is its own mean.
    The indices of two pairs of independent uniform sets are uncorrelated, also where
    the pairs share a set, so the variances add up. The interval is mean +- 1.96
    standard deviations, within [0, 1].
    """
    if len(pairs) < 2:
        return pairs[0] if pairs else None
    mean = sum(pair.mean for pair in pairs) / len(pairs)
    variance = sum(pair.variance for pair in pairs) / len(pairs) ** 2
    reach = 1.96 * math.sqrt(variance)
    return Chance(mean, variance, (max(mean - reach, 0.0), min(mean + reach, 1.0)))


def jaccard_by_chance(sizes: Sequence[tuple[int, ...]]) -> Chance | None:
    """The Jaccard index of two sets that are drawn at random, stratum by stratum.

    Args:
        sizes: Per stratum (number of units, number in the first set, number in the
            second set).

    Returns:
        None where both sets are empty.
    """
    total = sum(first + second for _, first, second in sizes)
    if total == 0:
        return None
    start, probabilities = 0, torch.ones(1, dtype=torch.float64)
    for n_units, first, second in sizes:
        lowest, further = hypergeometric(n_units, first, second)
        probabilities = _convolved(probabilities, further)
        start += lowest
    shared = start + torch.arange(len(probabilities), dtype=torch.float64)
    jaccard = shared / (total - shared)
    mean = (probabilities * jaccard).sum().item()
    variance = (probabilities * (jaccard - mean) ** 2).sum().item()
    below = probabilities.cumsum(0)
    low, high = (
        jaccard[min(int((below < limit).sum().item()), len(jaccard) - 1)].item()
        for limit in (_TAIL, 1 - _TAIL)
    )
    return Chance(mean, variance, (low, high))


def hypergeometric(
    n_units: int, first: int, second: int
) -> tuple[int, Float[Tensor, "count"]]:
    """P(x units in both) for x = lowest, lowest + 1, ...; negligible ends left out.

    C(first, x) C(n - first, second - x) / C(n, second).

    Returns:
        The lowest x, and the probabilities in float64.
    """
    low, high = max(0, first + second - n_units), min(first, second)
    x = torch.arange(low, high + 1, dtype=torch.float64)
    logs = _log_choose(first, x) + _log_choose(n_units - first, second - x)
    weights = (logs - logs.max()).exp()
    lasting = (weights > _NEGLIGIBLE).nonzero().flatten()
    begin, end = int(lasting[0]), int(lasting[-1]) + 1
    return low + begin, weights[begin:end] / weights[begin:end].sum()


def _log_choose(n: int, k: Tensor) -> Tensor:
    top = torch.tensor(n + 1.0, dtype=torch.float64)
    return top.lgamma() - (k + 1).lgamma() - (n - k + 1).lgamma()


def _convolved(
    one: Float[Tensor, "first"], other: Float[Tensor, "second"]
) -> Float[Tensor, "count"]:
    """Probabilities of a sum of two independent counts, to about 1e-16."""
    n = len(one) + len(other) - 1
    product = torch.fft.rfft(one, n) * torch.fft.rfft(other, n)
    return torch.fft.irfft(product, n).clamp_min(0.0)
