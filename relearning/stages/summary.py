"""What one stage's record says level by level, and how its top units overlap."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from circuitcut.relearning.stages.comparing import (
    SALIENT,
    by_level,
    n_concept_words,
    polysemantic,
    shares_by_level,
)
from circuitcut.relearning.stages.vocabulary import NONE

Tensors = Mapping[str, Tensor]
MEASURES = (
    *("salient_share", "saliency", "effect", "similarity", "concept_units"),
    *("polysemantic", "fresh_share"),
)
"""What `level_values` gives for every level, None where it is not defined."""


def level_values(
    tensors: Tensors,
    widths: Sequence[int],
    is_concept: Bool[Tensor, "type"] | None,
    n_top: int,
) -> list[dict[str, Any]]:
    """Every measure of `MEASURES` at each level, level 0 first.

    `n_left_out` units of the level are constant and left out of all means.

    Args:
        widths: Units of each level.
        is_concept: Words that are the concept's; None where words are not read.
        n_top: Number of units that a fresh mask would ablate.
    """
    out = tensors["constant"]
    columns = {
        "salient_share": _shares(tensors["saliency"] > SALIENT, widths),
        "saliency": _means(tensors["saliency"], widths),
        "effect": _means(_without(tensors["effect"], out), widths),
    }
    if "similarity" in tensors:
        columns["similarity"] = _means(tensors["similarity"], widths)
    if is_concept is not None and "top_words" in tensors:
        words = tensors["top_words"]
        has_words = (words.long() != NONE).any(1)
        of_concept = n_concept_words(words, is_concept) > 0
        mixed = polysemantic(words, is_concept)
        columns["concept_units"] = _means(_without(of_concept, ~has_words), widths)
        columns["polysemantic"] = _means(_without(mixed, ~has_words), widths)
    if "fresh_score" in tensors:
        columns["fresh_share"] = _shares(top(tensors["fresh_score"], n_top), widths)
    left_out = [int(part.sum()) for part in out.split(list(widths))]
    return [
        {"level": level, "n_units": width, "n_left_out": left_out[level]}
        | {name: columns[name][level] if name in columns else None for name in MEASURES}
        for level, width in enumerate(widths)
    ]


def top(scores: Shaped[Tensor, "unit"], n: int) -> Bool[Tensor, "unit"]:
    """The `n` units with the highest scores; of equal ones the first."""
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[scores.double().sort(descending=True, stable=True).indices[:n]] = True
    return chosen


def jaccard(one: Bool[Tensor, "unit"], other: Bool[Tensor, "unit"]) -> float | None:
    """Units in both sets divided by units in either; None where both are empty."""
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else None


def overlaps(
    base: Tensors, tensors: Tensors, pruned: Bool[Tensor, "unit"]
) -> dict[str, Any]:
    """Overlap of a stage's top units with those of the base model and with the cut.

    Args:
        pruned: What the arm prunes; the sets have as many units.
    """
    n = int(pruned.sum())
    now = top(tensors["score"], n)
    row: dict[str, Any] = {
        "n_compared": n,
        "with_base": jaccard(now, top(base["score"], n)),
        "with_pruned": jaccard(now, pruned),
    }
    if "fresh_score" in tensors:
        fresh = top(tensors["fresh_score"], n)
        row["fresh_with_score"] = jaccard(fresh, now)
        row["fresh_with_pruned"] = jaccard(fresh, pruned)
        if "fresh_score" in base:
            row["fresh_with_base"] = jaccard(fresh, top(base["fresh_score"], n))
    return row


def _without(values: Tensor, out: Bool[Tensor, "unit"]) -> Tensor:
    return torch.where(out, torch.nan, values.float())


def _means(values: Tensor, widths: Sequence[int]) -> list[float | None]:
    return [row["mean"] for row in by_level(values, widths)]


def _shares(chosen: Tensor, widths: Sequence[int]) -> list[float | None]:
    return [row["share"] for row in shares_by_level(chosen, widths)]
