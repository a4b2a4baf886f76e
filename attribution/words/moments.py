"""Running moments of hidden units over words by label, and the rankings they give.

O. Antverg and Y. Belinkov (2022), "On the Pitfalls of Analyzing Individual Neurons in
Language Models", https://arxiv.org/abs/2110.07483: with q(z) the mean vector of the
words with label z, the score of unit i is the sum over pairs z, z' of
|q(z)_i - q(z')_i|. With two labels it is the absolute difference of means. Every pair
counts once here (twice in the paper, which changes no order).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcut.attribution.words.states import Words
from circuitcut.storage.errors import UserError

PIECE = 256
"""Units that are added in float64 at a time, to save memory."""


@dataclass(frozen=True)
class Moments:
    """Counts, sums and sums of squares of every unit, float64 on the CPU."""

    counts: Float[Tensor, "label"]
    sums: Float[Tensor, "label unit"]
    squares: Float[Tensor, "label unit"]
    is_concept: Bool[Tensor, "label"]

    @classmethod
    def over(
        cls, batches: Iterable[tuple[Words, Float[Tensor, "_word unit"]]]
    ) -> "Moments":
        """Sums over all batches; memory does not grow with their number.

        Raises:
            UserError: When the words of the concept, or all other words, are missing.
        """
        counts = torch.zeros(0, dtype=torch.float64)
        is_concept = torch.zeros(0, dtype=torch.bool)
        sums = squares = torch.zeros(0, 0, dtype=torch.float64)
        for words, states in batches:
            if not len(words.labels):
                continue
            n_labels = max(len(counts), int(words.labels.max()) + 1)
            of_label = torch.nn.functional.one_hot(words.labels, n_labels)
            weights = of_label.T.to(states.device, torch.float64)  # (label, word)
            counts = _grown(counts, n_labels) + weights.sum(1).cpu()
            sums = _grown(sums, n_labels, states.shape[1])
            squares = _grown(squares, n_labels, states.shape[1])
            for first in range(0, states.shape[1], PIECE):
                piece = slice(first, first + PIECE)
                values = states[:, piece].double()  # (word, unit)
                sums[:, piece] += (weights @ values).cpu()
                squares[:, piece] += (weights @ values.square()).cpu()
            concept = words.labels[words.is_concept].unique().cpu()
            is_concept = _grown(is_concept, n_labels)
            is_concept[concept] = True
        n_concept = counts[is_concept].sum().item()
        if not 0 < n_concept < counts.sum().item():
            raise UserError(
                "a ranking needs words of the concept and other words, got "
                f"{n_concept:.0f} and {counts.sum().item() - n_concept:.0f}; give more "
                "data, another --concept or another --split_seed"
            )
        return cls(counts, sums, squares, is_concept)

    @property
    def mean(self) -> Float[Tensor, "unit"]:
        """Mean over all words."""
        return self.sums.sum(0) / self.counts.sum()

    @property
    def std(self) -> Float[Tensor, "unit"]:
        """Standard deviation over all words; 0 for a constant unit."""
        total = self.counts.sum()
        mean_square = self.squares.sum(0) / total
        variance = mean_square - self.mean.square()
        # a constant unit has a variance of rounding errors
        variance = torch.where(variance > 1e-12 * mean_square, variance, 0.0)
        return variance.clamp(min=0).sqrt()

    def probeless(self) -> Float[Tensor, "unit"]:
        """|mean over the concept's words - mean over all other words|."""
        return (self._mean_of(self.is_concept) - self._mean_of(~self.is_concept)).abs()

    def probeless_labels(self) -> Float[Tensor, "unit"]:
        """Sum over pairs of labels that have words of |difference of means|."""
        present = (self.counts > 0).nonzero().flatten().tolist()
        means = [self.sums[label] / self.counts[label] for label in present]
        differences = [(one - other).abs() for one, other in combinations(means, 2)]
        return torch.stack(differences).sum(0)

    def effect(self) -> Float[Tensor, "unit"]:
        """`probeless` in standard deviations of the unit within the two classes.

        Unlike a rank it says how much a unit tells, and unlike the difference of means
        it does not depend on the scale of a level. 0 for a constant unit.
        """
        within = torch.zeros_like(self.mean)
        for side in (self.is_concept, ~self.is_concept):
            n, mean = self.counts[side].sum(), self._mean_of(side)
            within += self.squares[side].sum(0) - n * mean.square()
        spread = (within / self.counts.sum()).clamp(min=0).sqrt()
        is_constant = (self.std == 0) | (spread == 0)
        return torch.where(is_constant, 0.0, self.probeless() / spread)

    def _mean_of(self, labels: Bool[Tensor, "label"]) -> Float[Tensor, "unit"]:
        return self.sums[labels].sum(0) / self.counts[labels].sum()


def _grown(values: Tensor, n_labels: int, width: int | None = None) -> Tensor:
    """The values with zeros for labels that have not come before."""
    shape = (n_labels,) if width is None else (n_labels, width)
    if values.shape == shape:
        return values
    grown = values.new_zeros(shape)
    grown[: len(values)] = values if len(values) else 0
    return grown
