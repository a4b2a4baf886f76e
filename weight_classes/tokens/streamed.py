"""Means, intervals and quantiles of numbers that are seen once, in constant memory."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
ERROR = 0.01
"""Largest relative error of a quantile."""
_LEAST, _MOST = 1e-7, 1e9
_RATIO = (1 + ERROR) / (1 - ERROR)
_N_BINS = math.ceil(math.log(_MOST / _LEAST) / math.log(_RATIO)) + 1


class Quantiles:
    """Counts in bins whose ends grow by a constant ratio, on both sides of 0.

    A quantile is the middle of its bin, within 1 % of the number itself; below 1e-7 it
    is 0. The same bins as in Masson, Rim & Lee (2019), "DDSketch: A Fast and
    Fully-Mergeable Quantile Sketch with Relative-Error Guarantees",
    https://arxiv.org/abs/1908.10693. Departure: the bins are fixed, for absolute values
    from 1e-7 to 1e9; larger ones are counted in the last one.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(2 * _N_BINS + 1, dtype=torch.int64)
        self.least, self.greatest = math.inf, -math.inf

    def add(self, values: Float[Tensor, "number"]) -> None:
        """Count these numbers."""
        if not len(values):
            return
        numbers = values.double().cpu()
        size = (numbers.abs() / _LEAST).clamp_min(1.0).log() / math.log(_RATIO)
        place = size.ceil().long().clamp_max(_N_BINS) * numbers.sign().long()
        self.counts += torch.bincount(place + _N_BINS, minlength=len(self.counts))
        self.least = min(self.least, float(numbers.min()))
        self.greatest = max(self.greatest, float(numbers.max()))

    def state(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        ends = torch.tensor([self.least, self.greatest], dtype=torch.float64)
        return {"counts": self.counts, "ends": ends}

    def restore_(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.counts = state["counts"].clone()
        self.least, self.greatest = state["ends"].tolist()

    def at(self, share: float) -> float:
        """The smallest number that at least this share of all is not above.

        Args:
            share: Above 0 and at most 1.
        """
        up_to = self.counts.cumsum(0)
        rank = max(1, math.ceil(share * int(up_to[-1])))
        place = int((up_to >= rank).nonzero()[0]) - _N_BINS
        # in (ratio^(k-1), ratio^k] at most 1 % from both ends
        middle = _LEAST * _RATIO ** abs(place) * (1 - ERROR) if place else 0.0
        return min(max(math.copysign(middle, place), self.least), self.greatest)


class Stream:
    """The mean of a number over tokens, its interval over texts, and its quantiles."""

    def __init__(self) -> None:
        self.quantiles = Quantiles()
        # of the sums s and numbers of tokens n of texts: sums of s, n, s^2, s n, n^2
        self.sums = torch.zeros(5, dtype=torch.float64)
        self.n_texts = 0

    def add(self, values: Float[Tensor, "token"], texts: Int[Tensor, "token"]) -> None:
        """Add the tokens of some whole texts.

        Args:
            texts: Number of the text of each token, from 0 in every call.
        """
        if not len(values):
            return
        self.quantiles.add(values)
        s = torch.bincount(texts.cpu(), weights=values.double().cpu())
        n = torch.bincount(texts.cpu()).double()
        self.sums += torch.stack(
            [s.sum(), n.sum(), (s * s).sum(), (s * n).sum(), (n * n).sum()]
        )
        self.n_texts += int((n > 0).sum())

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "quantiles": self.quantiles.state(),
            "sums": self.sums,
            "n_texts": self.n_texts,
        }

    def restore_(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.quantiles.restore_(state["quantiles"])
        self.sums, self.n_texts = state["sums"].clone(), state["n_texts"]

    @property
    def mean(self) -> float:
        """Mean over all tokens."""
        return float(self.sums[0] / self.sums[1])

    def interval(self) -> tuple[float, float] | tuple[None, None]:
        """95 % interval of the mean, from its standard error over texts.

        The mean is a ratio of sums over texts; its variance is that of s - mean n,
        summed over texts. With fewer than two texts there is none.
        """
        if self.n_texts < 2:
            return None, None
        _, n, ss, sn, nn = self.sums.tolist()
        mean = self.mean
        squares = max(ss - 2 * mean * sn + mean * mean * nn, 0.0)
        error = math.sqrt(squares * self.n_texts / (self.n_texts - 1)) / n
        return mean - 1.96 * error, mean + 1.96 * error

    def described(self) -> dict[str, Any]:
        """As results.json has it."""
        return {
            "mean": self.mean,
            "interval": list(self.interval()),
            "least": self.quantiles.least,
            "quantiles": [self.quantiles.at(share) for share in QUANTILES],
            "greatest": self.quantiles.greatest,
        }
