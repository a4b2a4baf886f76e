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
neuron i + k, for a few random k, in large MLPs within blocks of neurons) instead of all
n (n - 1); shares outside the beta region are also given at alpha divided by the number
of neurons of the model (Bonferroni), at which a model of independent Gaussian vectors
has a single cosine of one kind outside with a probability of at most alpha.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import beta
from torch import Tensor

from circuitcut.weight_classes.cosines import Cosines, cosine, norms
from circuitcut.weight_classes.mlp_weights import MlpWeights, signs
from circuitcut.weight_classes.settings import ALPHA, check_alpha

Region = tuple[float, float]


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
    weights: MlpWeights, *, n_pairs: int, seed: int
) -> dict[str, Float[Tensor, "pair"]]:
    """Cosines of vectors of different neurons of one MLP, after the refactor.

    Args:
        n_pairs: At least so many, if the MLP of n neurons has them: n (n - 1).
    """
    n, sign = weights.n_units, None
    rng = torch.Generator().manual_seed(seed)
    n_shifts = math.ceil(n_pairs / n)
    shifts = (torch.randperm(n - 1, generator=rng)[:n_shifts] + 1).tolist()
    vectors = {"in": weights.w_in, "out": weights.w_out}
    if weights.gate is not None:
        vectors["gate"] = weights.gate
        sign = signs(weights.gate, weights.w_in)
    of_norm = {name: norms(value) for name, value in vectors.items()}

    def pairs(one: str, other: str) -> Tensor:
        found = []
        for shift in shifts:  # neuron i beside neuron i + shift, around the end
            for first, second in (
                (slice(None, n - shift), slice(shift, None)),
                (slice(n - shift, None), slice(None, shift)),
            ):
                part = cosine(
                    vectors[one][first],
                    vectors[other][second],
                    of_norm[one][first],
                    of_norm[other][second],
                )
                if sign is not None:
                    part = part * sign[second]
                    part = part * sign[first] if one == "in" else part
                found.append(part)
        return torch.cat(found)

    if sign is None:
        return {"in_out": pairs("in", "out")}
    return {
        "gate_in": pairs("gate", "in").abs(),
        "gate_out": pairs("gate", "out"),
        "in_out": pairs("in", "out"),
    }


def mismatched_regions(
    pairs: Mapping[str, Float[Tensor, "pair"]], alpha: float
) -> dict[str, Region]:
    """Quantiles of mismatched cosines, by cosine.

    Raises:
        UserError: When `alpha` is not between 0 and 1.
    """
    check_alpha(alpha)
    ends = dict.fromkeys(pairs, (alpha / 2, 1 - alpha / 2))
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
