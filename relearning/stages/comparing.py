"""What changed between two stages: saliency, similarity of words, polysemantic units.

Lo et al. (2024), "Large Language Models Relearn Removed Concepts",
https://arxiv.org/abs/2401.01814. Departures: held units are left out of the ranks, and
a level's numbers are means over the units that are compared.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from circuitcut.relearning.redistribution import saliency
from circuitcut.relearning.stages.vocabulary import NONE

SALIENT = 0.5
Values = Float[Tensor, "unit"]


def saliency_of(
    score: Shaped[Tensor, "unit"],
    left_out: Bool[Tensor, "unit"],
    unnamed: Bool[Tensor, "unit"] | None = None,
) -> Values:
    """Saliency of every unit by its rank among those not left out, NaN for these.

    Args:
        score: The highest has rank 0; of equal units the first.
        left_out: Held units, which cannot say anything.
        unnamed: Units whose saliency is missing though they have a rank: those whose
            top words all have no letter.
    """
    values = torch.full((len(score),), torch.nan)
    kept = (~left_out).nonzero().flatten()
    order = kept[score[kept].sort(descending=True, stable=True).indices]
    assert bool((score[order][:-1] >= score[order][1:]).all()), "descending order"
    values[order] = saliency(len(order)).float()
    if unnamed is not None:
        values[unnamed] = torch.nan
    return values


def without_letters(
    top_words: Shaped[Tensor, "unit place"], words: Sequence[str]
) -> Bool[Tensor, "unit"]:
    """Units that have top words, none of which has a letter."""
    has_letter = torch.tensor([any(c.isalpha() for c in w) for w in words] + [False])
    named = top_words.long() != NONE
    return named.any(1) & ~has_letter[top_words.long()].any(1)


def similarity(
    one: Shaped[Tensor, "unit place"],
    other: Shaped[Tensor, "unit place"],
    vectors: Float[Tensor, "type width"],
) -> Values:
    """Cosine of the mean word vectors of each unit's top words at two stages.

    1 for identical lists. NaN where a list is empty or its words have no vector.

    Args:
        vectors: NaN rows are words without a vector.
    """
    first, second = (_mean_vectors(lists.long(), vectors) for lists in (one, other))
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=1)
    same = (one == other).all(1) & ~first.isnan().any(1)
    return torch.where(same, 1.0, cosine)


def same_words(
    one: Shaped[Tensor, "unit place"], other: Shaped[Tensor, "unit place"]
) -> Bool[Tensor, "unit"]:
    """Units that have the same top words at two stages, in any order."""
    return (one.long().sort(1).values == other.long().sort(1).values).all(1)


def compared_similarity(
    one: Shaped[Tensor, "unit place"],
    other: Shaped[Tensor, "unit place"],
    vectors: Float[Tensor, "type width"],
) -> Values:
    """`similarity`, NaN also where the words are the same, as in the paper."""
    values = similarity(one, other, vectors)
    return torch.where(same_words(one, other), torch.nan, values)


def n_concept_words(
    top_words: Shaped[Tensor, "unit place"], is_concept: Bool[Tensor, "type"]
) -> Int[Tensor, "unit"]:
    """How many of a unit's top words are the concept's."""
    padded = torch.cat([is_concept, torch.tensor([False])])
    return padded[top_words.long()].sum(1)


def polysemantic(
    top_words: Shaped[Tensor, "unit place"], is_concept: Bool[Tensor, "type"]
) -> Bool[Tensor, "unit"]:
    """Units whose top words are partly the concept's and partly others."""
    n = n_concept_words(top_words, is_concept)
    return (n > 0) & (n < (top_words.long() != NONE).sum(1))


def by_level(
    values: Shaped[Tensor, "unit"], widths: Sequence[int]
) -> list[dict[str, Any]]:
    """Mean over the defined values of each level, level 0 first: `mean` and `n`."""
    rows = []
    for level, part in enumerate(values.float().split(list(widths))):
        defined = part[~part.isnan()]
        mean = float(defined.double().mean()) if len(defined) else None
        rows.append({"level": level, "n": len(defined), "mean": mean})
    return rows


def shares_by_level(
    chosen: Bool[Tensor, "unit"], widths: Sequence[int]
) -> list[dict[str, Any]]:
    """How the units of a set are distributed over levels: `n` and `share` of the set.

    The shares of all levels have the sum 1.
    """
    counts = [int(part.sum()) for part in chosen.split(list(widths))]
    total = sum(counts)
    return [
        {"level": level, "n": n, "share": n / total if total else None}
        for level, n in enumerate(counts)
    ]


def _mean_vectors(lists: Tensor, vectors: Tensor) -> Float[Tensor, "unit width"]:
    """Means over the words that have a vector; NaN where none has."""
    padded = torch.cat([vectors, vectors.new_full((1, vectors.shape[1]), torch.nan)])
    of_words = padded[lists]  # (unit, place, width); NONE is the last row
    has_vector = ~of_words.isnan().any(-1, keepdim=True)
    sums = torch.where(has_vector, of_words, 0.0).sum(1)
    counts = has_vector.sum(1)
    return torch.where(counts > 0, sums / counts.clamp(min=1), torch.nan)
