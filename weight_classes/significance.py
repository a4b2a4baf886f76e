"""Which cosines are larger than those of unrelated vectors.

Two regions that chance stays in with probability 1 - alpha, one for each question:

beta: the vectors are independent and Gaussian in d dimensions. Their cosine is
    distributed as 2 B - 1 with B ~ Beta((d - 1) / 2, (d - 1) / 2); the region is the
    central one. Vectors that are centred over d_model have d = d_model - 1.
mismatched: the vectors belong to two different neurons of one MLP. The region lies
    between the quantiles alpha / 2 and 1 - alpha / 2 of such cosines.

cos(w_gate, w_in) is >= 0 after the refactor; its region begins at 0 and ends at the
quantile 1 - alpha of the absolute value. Both are of Gerstner & Schuetze (2025), see
`classes.py`. Departures: mismatched pairs are drawn (w_in of neuron i beside w_out of
neuron i + k, for a few random k) instead of all n (n - 1); shares outside the beta
region are also given at alpha divided by the number of neurons of the model
(Bonferroni), at which a model of independent Gaussian vectors has a single cosine of
one kind outside with a probability of at most alpha.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import beta
from torch import Tensor

from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.cosines import COSINES, Cosines, cosine
from circuitcut.weight_classes.mlp_weights import MlpWeights

ALPHA = 0.05
N_SHIFTS = 8
Region = tuple[float, float]


def check_alpha(alpha: float) -> None:
    """Refuse a level that is no probability.

    Raises:
        UserError: When it is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise UserError(
            f"argument alpha must lie between 0 and 1, both excluded, got {alpha}"
        )


def beta_region(d: int, alpha: float = ALPHA) -> Region:
    """The central region of the cosine of two Gaussian vectors in `d` dimensions.

    Raises:
        UserError: When `alpha` is not between 0 and 1.
    """
    check_alpha(alpha)
    end = float(-beta.ppf(alpha / 2, (d - 1) / 2, (d - 1) / 2, loc=-1.0, scale=2.0))
    return -end, end


def beta_regions(d: int, alpha: float, *, gated: bool) -> dict[str, Region]:
    """The region of every cosine; the same, but for the one that is never negative."""
    low, high = beta_region(d, alpha)
    regions = {"gate_in": (0.0, high), "gate_out": (low, high), "in_out": (low, high)}
    return regions if gated else {"in_out": (low, high)}


def mismatched_cosines(
    weights: MlpWeights, *, seed: int, n_shifts: int = N_SHIFTS
) -> dict[str, Float[Tensor, "pair"]]:
    """Cosines of vectors of different neurons of one MLP, after the refactor.

    Args:
        n_shifts: Pairs of each neuron; an MLP of n neurons has at most n - 1.
    """
    weights, n = weights.refactored(), weights.n_units
    rng = torch.Generator().manual_seed(seed)
    shifts = (torch.randperm(n - 1, generator=rng)[:n_shifts] + 1).tolist()
    found: dict[str, list[Tensor]] = {name: [] for name in COSINES}
    for shift in shifts:
        w_out = weights.w_out.roll(shift, 0)
        found["in_out"].append(cosine(weights.w_in, w_out))
        if weights.gate is not None:
            found["gate_out"].append(cosine(weights.gate, w_out))
            w_in = weights.w_in.roll(shift, 0)
            found["gate_in"].append(cosine(weights.gate, w_in).abs())
    return {name: torch.cat(parts) for name, parts in found.items() if parts}


def mismatched_regions(
    pairs: Mapping[str, Float[Tensor, "pair"]], alpha: float
) -> dict[str, Region]:
    """Quantiles of mismatched cosines, by cosine.

    Raises:
        UserError: When `alpha` is not between 0 and 1.
    """
    check_alpha(alpha)
    ends = {name: (alpha / 2, 1 - alpha / 2) for name in pairs}
    regions = {
        name: tuple(np.quantile(pairs[name].double().numpy(), ends[name]).tolist())
        for name in pairs
    }
    if "gate_in" in pairs:
        high = np.quantile(pairs["gate_in"].double().numpy(), 1 - alpha)
        regions["gate_in"] = (0.0, float(high))
    return regions


def outside(cosines: Cosines, regions: Mapping[str, Region]) -> dict[str, int]:
    """Number of neurons whose cosine lies outside its region, by cosine."""
    return {
        name: int(((value < regions[name][0]) | (value > regions[name][1])).sum())
        for name, value in cosines.cosines().items()
    }
