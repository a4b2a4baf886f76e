"""Span F1 from counts: an entity counts when its type and both its ends are right."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitcut.data.ner.tagged import entity_type


class SpanCounter:
    """Counts entities of batches of tag ids, read as `ner.tagged.spans` does.

    Args:
        tags: The tag of every id.
        kinds: Entity types in the order of the counts.
    """

    def __init__(self, tags: Sequence[str], kinds: Sequence[str]):
        self.n_kinds = len(kinds)
        self._padding = len(tags)  # an id of its own, outside every entity
        places = {kind: place for place, kind in enumerate(kinds)}
        found = [places.get(entity_type(tag) or "", -1) for tag in tags]
        self._kind = torch.tensor([*found, -1])
        self._begins = torch.tensor([*(tag[:2] == "B-" for tag in tags), False])

    def __call__(
        self,
        gold: Int[Tensor, "row seq"],
        given: Int[Tensor, "row seq"],
        counted: Bool[Tensor, "row seq"],
    ) -> dict[str, Int[Tensor, "row kind"]]:
        """True and false positives and misses (`tp`, `fp`, `fn`) of each row.

        Positions that are not `counted` (later pieces of a word) are passed over.
        """
        order = (~counted).long().argsort(dim=1, stable=True)
        there = counted.gather(1, order)
        (kind, start, end), (kind_given, start_given, end_given) = (
            self._spans(tags.gather(1, order).where(there, self._padding))
            for tags in (gold, given)
        )
        same = start & start_given & (kind == kind_given) & (end == end_given)
        right = self._by_kind(kind, same)
        return {
            "tp": right,
            "fp": self._by_kind(kind_given, start_given) - right,
            "fn": self._by_kind(kind, start) - right,
        }

    def _spans(self, tags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Type (-1 outside), whether a span starts, and one past its last place."""
        kind, begins = self._kind[tags], self._begins[tags]
        before = torch.nn.functional.pad(kind, (1, 0), value=-1)[:, :-1]
        boundary = begins | (kind != before)
        seq = tags.shape[1]
        places = torch.arange(seq).expand_as(tags).where(boundary, seq)
        later = torch.nn.functional.pad(places, (0, 1), value=seq)[:, 1:]
        end = later.flip(1).cummin(1).values.flip(1)
        return kind, boundary & (kind >= 0), end

    def _by_kind(self, kind: Tensor, where: Tensor) -> Tensor:
        counts = torch.zeros(len(kind), self.n_kinds, dtype=torch.long)
        return counts.scatter_add_(1, kind.clamp(min=0), where.long())


def precision_recall_f1(tp: float, fp: float, fn: float) -> tuple[float, float, float]:
    """Fractions; NaN where there is nothing to divide by."""
    return ratio(tp, tp + fp), ratio(tp, tp + fn), ratio(2 * tp, 2 * tp + fp + fn)


def ratio(part: float, whole: float) -> float:
    """`part / whole`, NaN for nothing out of nothing."""
    return part / whole if whole else math.nan


def mean_defined(scores: Sequence[float]) -> float:
    """The mean of the scores that are not NaN; NaN if none is."""
    defined = [score for score in scores if not math.isnan(score)]
    return sum(defined) / len(defined) if defined else math.nan


def sums(counts: Mapping[str, Tensor]) -> dict[str, float]:
    """Counts as numbers, summed over their examples."""
    return {name: value.sum().item() for name, value in counts.items()}
