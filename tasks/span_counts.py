"""Span F1 from counts; a predicted entity is correct if type, start and end match."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitcut.data.ner.tagged import entity_type


class SpanCounter:
    """Counts entities of batches of tag ids; decodes them like `ner.tagged.spans`.

    Args:
        tags: The tag of each id.
        kinds: Entity types in the order of the counts.
    """

    def __init__(self, tags: Sequence[str], kinds: Sequence[str]):
        self.n_kinds = len(kinds)
        self._padding = len(tags)  # an extra id, which is outside every entity
        kind_ids = {kind: kind_id for kind_id, kind in enumerate(kinds)}
        kind_of_tag = [kind_ids.get(entity_type(tag) or "", -1) for tag in tags]
        self._kind = torch.tensor([*kind_of_tag, -1])
        self._begins = torch.tensor([*(tag[:2] == "B-" for tag in tags), False])

    def __call__(
        self,
        targets: Int[Tensor, "row seq"],
        predictions: Int[Tensor, "row seq"],
        counted: Bool[Tensor, "row seq"],
    ) -> dict[str, Int[Tensor, "row kind"]]:
        """True positives, false positives and false negatives (tp, fp, fn) of each row.

        Positions that are not `counted` (further pieces of a word) are skipped.
        """
        order = (~counted).long().argsort(dim=1, stable=True)
        is_counted = counted.gather(1, order)
        (kind, start, end), (predicted_kind, predicted_start, predicted_end) = (
            self._spans(tags.gather(1, order).where(is_counted, self._padding))
            for tags in (targets, predictions)
        )
        correct = start & predicted_start
        correct &= (kind == predicted_kind) & (end == predicted_end)
        n_correct = self._by_kind(kind, correct)
        return {
            "tp": n_correct,
            "fp": self._by_kind(predicted_kind, predicted_start) - n_correct,
            "fn": self._by_kind(kind, start) - n_correct,
        }

    def _spans(self, tags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Type (-1 outside), whether a span starts, and one past its last position."""
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
    """Precision, recall and F1 as fractions; NaN if the denominator is 0."""
    return ratio(tp, tp + fp), ratio(tp, tp + fn), ratio(2 * tp, 2 * tp + fp + fn)


def ratio(part: float, whole: float) -> float:
    """`part / whole`; NaN if `whole` is 0."""
    return part / whole if whole else math.nan


def mean_defined(scores: Sequence[float]) -> float:
    """The mean of the scores that are not NaN; NaN if all are NaN."""
    defined = [score for score in scores if not math.isnan(score)]
    return sum(defined) / len(defined) if defined else math.nan


def sums(counts: Mapping[str, Tensor]) -> dict[str, float]:
    """Sums of the counts over the examples."""
    return {name: value.sum().item() for name, value in counts.items()}
