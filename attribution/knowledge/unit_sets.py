"""Sets of knowledge neurons: coarse ones of a prompt, refined over paraphrases.

D. Dai et al. (2022), "Knowledge Neurons in Pretrained Transformers",
https://arxiv.org/abs/2104.08696. A unit is a pair (layer, number of the neuron).
Departure: where a fact has fewer than three paraphrases, the published lower limit of
three is their number.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations, product
from statistics import fmean

from jaxtyping import Float
from torch import Tensor

from circuitcut.masks.overlap import jaccard_by_chance
from circuitcut.storage.errors import UserError

Unit = tuple[int, int]
"""Layer, and number of the neuron in it."""
Units = frozenset[Unit]
_FEWEST = 3
_STEP, _MOST_STEPS = 0.05, 6
SIZES = (2.0, 5.0)
"""Units of a fact, on average, that the original rule aims for."""


def coarse(
    scores: Float[Tensor, "layer unit"],
    *,
    threshold: float | None = None,
    adaptive: float | None = None,
    percentile: float | None = None,
) -> Units:
    """The units of one prompt whose score is high, by exactly one rule.

    Args:
        scores: Of all neurons of all layers.
        threshold: Scores above this.
        adaptive: Scores of at least this share of the largest one, in (0, 1]. Nothing
            is chosen where no score is above 0.
        percentile: Scores above this percentile of all scores, in (0, 100).

    Raises:
        UserError: When no rule or several are given, or a value is out of its range.
    """
    rules = {"threshold": threshold, "adaptive": adaptive, "percentile": percentile}
    given = [name for name, value in rules.items() if value is not None]
    if len(given) != 1:
        raise UserError(
            f"give exactly one of {', '.join(rules)}, got "
            f"{' and '.join(given) or 'none'}"
        )
    if threshold is not None:
        chosen = scores > threshold
    elif adaptive is not None:
        if not 0 < adaptive <= 1:
            raise UserError(
                f"argument adaptive must be a share in (0, 1], got {adaptive}"
            )
        largest = scores.max()
        chosen = (scores >= adaptive * largest) & (largest > 0)
    else:
        assert percentile is not None
        if not 0 < percentile < 100:
            raise UserError(
                f"argument percentile must lie in (0, 100), got {percentile}"
            )
        # the n-th smallest: torch.quantile takes no more than 16 million values
        n = max(1, round(percentile / 100 * scores.numel()))
        chosen = scores > scores.flatten().kthvalue(min(n, scores.numel())).values
    return frozenset((layer, unit) for layer, unit in chosen.nonzero().tolist())


def refined(sets: Sequence[Units], share: float = 0.5) -> Units:
    """The units in more than a share of the sets of a fact's paraphrases.

    The rule of EleutherAI's code.

    Raises:
        UserError: When there are no sets, or the share is not in [0, 1).
    """
    if not sets:
        raise UserError(
            "argument sets must hold the units of at least one paraphrase, got none"
        )
    if not 0 <= share < 1:
        raise UserError(f"argument share must be in [0, 1), got {share}")
    counts = Counter(unit for units in sets for unit in units)
    return frozenset(unit for unit, n in counts.items() if n > share * len(sets))


def refined_to_size(
    facts: Sequence[Sequence[Units]],
    share: float = 0.7,
    sizes: tuple[float, float] = SIZES,
) -> tuple[float, list[Units]]:
    """The units in at least a share of the sets of every fact, and the final share.

    The original rule: a unit must also be in at least three sets. The share moves by
    .05, at most six times, until the mean number of units of a fact is within `sizes`.

    Args:
        facts: The sets of every fact's paraphrases.

    Raises:
        UserError: When there are no facts, or one has no sets.
    """
    if not facts or not all(facts):
        raise UserError(
            "argument facts must hold the units of at least one paraphrase for every "
            f"fact, got {sum(not sets for sets in facts)} without, of {len(facts)}"
        )
    low, high = sizes
    for moved in range(_MOST_STEPS + 1):
        found = [_in_at_least(sets, share) for sets in facts]
        size = fmean(map(len, found))
        if low <= size <= high or moved == _MOST_STEPS:
            break
        share = round(share + (_STEP if size > high else -_STEP), 10)
    return share, found


def _in_at_least(sets: Sequence[Units], share: float) -> Units:
    least = max(share * len(sets), min(_FEWEST, len(sets)))
    counts = Counter(unit for units in sets for unit in units)
    # .7 * 10 is a little more than 7
    return frozenset(unit for unit, n in counts.items() if n >= least - 1e-9)


def without_negatives(
    units: Units, negatives: Sequence[Units], share: float = 0.0
) -> Units:
    """The units that are in at most a share of the sets of negative prompts.

    Negative prompts have the words of the fact but not the fact, or are about other
    facts; what they have in common with it is no knowledge of it.
    """
    counts = Counter(unit for others in negatives for unit in others)
    return frozenset(u for u in units if counts[u] <= share * len(negatives))


def of_relation(facts: Sequence[Units], share: float = 0.1) -> Units:
    """The units in at least a share of the sets of a relation's facts."""
    counts = Counter(unit for units in facts for unit in units)
    return frozenset(u for u, n in counts.items() if n >= share * len(facts) - 1e-9)


def most_common(
    facts: Iterable[Units], n: int, prompts: Iterable[Units] = ()
) -> list[Unit]:
    """The `n` units of the most facts.

    Of equal ones those of the most `prompts`, then the first in order.
    """
    counts = Counter(unit for units in facts for unit in units)
    among = Counter(unit for units in prompts for unit in units)
    return sorted(counts, key=lambda unit: (-counts[unit], -among[unit], unit))[:n]


def mean_overlap(
    sets: Sequence[Units],
    others: Sequence[Units] | None = None,
    *,
    n_units: int,
    most_pairs: int = 2000,
) -> dict[str, float | int | None]:
    """Mean Jaccard index of pairs of sets, beside that of random sets of these sizes.

    Args:
        sets: Every two of them are compared.
        others: If given, every set is compared with each of these instead.
        n_units: Number of units of the model.
        most_pairs: Of more pairs, so many evenly spaced ones are compared.

    Returns:
        As `overlap_of_pairs`.
    """
    pairs = combinations(sets, 2) if others is None else product(sets, others)
    return overlap_of_pairs(list(pairs), n_units=n_units, most_pairs=most_pairs)


def overlap_of_pairs(
    pairs: Sequence[tuple[Units, Units]], *, n_units: int, most_pairs: int = 2000
) -> dict[str, float | int | None]:
    """Mean Jaccard index of these pairs, beside that of random sets of these sizes.

    A pair of two empty sets is left out.

    Args:
        pairs: Two sets each, such as those of a fact in two languages.
        n_units: Number of units of the model.
        most_pairs: Of more pairs, so many evenly spaced ones are compared.

    Returns:
        `n_pairs`, `jaccard` and `random` (exact, by the hypergeometric distribution);
        None where all pairs are empty.
    """
    pairs = [pair for pair in pairs if pair[0] or pair[1]]
    step = max(1, -(-len(pairs) // most_pairs))
    pairs = pairs[::step]
    by_size = Counter((len(one), len(other)) for one, other in pairs)
    expected = 0.0
    for (first, second), n in by_size.items():
        chance = jaccard_by_chance([(n_units, first, second)])
        assert chance is not None  # one of them has units
        expected += n * chance.mean
    found = [len(one & other) / len(one | other) for one, other in pairs]
    return {
        "n_pairs": len(pairs),
        "jaccard": fmean(found) if found else None,
        "random": expected / len(pairs) if pairs else None,
    }
