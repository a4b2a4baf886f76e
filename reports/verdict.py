"""What is left of concept and rest after a cut, and what to call that.

The share left of a score where higher is better is (c - g) / (u - g), with c the cut
model's score, u the uncut model's and g the score of a guess; of a loss in nats per
token it is exp(u - c), the ratio of the probabilities per token.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from circuitcut.reports.load import SIDES
from circuitcut.reports.words import (
    format_cell,
    mean,
    mean_and_range,
    metric_name,
    percent,
)

Results = Mapping[str, Any]
KEPT, HALF, LOST = 0.9, 0.5, 0.1
"""Shares of the uncut score: kept from .9, mostly lost to .5, lost to .1."""
LEAST_SCORE = 0.05
"""Of the uncut model above a guess, below which no share is defined. Of a loss, nats
below a uniform guess."""
IMPROVED = 1.01
"""Share left from which a cut improves the concept, where no interval is known."""
SAME = 0.1
"""Difference of shares up to which a random cut counts as equal to the learned one."""
THRESHOLDS = (
    f"Kept: at least {percent(KEPT)} of the uncut score is left. Lost: at most "
    f"{percent(LOST)}. Mostly lost: at most {percent(HALF)}. Weakened: between. The "
    "score of a guess is subtracted first. Of a loss in nats per token, the share is "
    "the probability per token relative to the uncut model."
)


def share_left(metric: Results, uncut: Any, cut: Any) -> float | None:
    """Share of the uncut model's ability that is left, 1 where nothing changed."""
    if uncut is None or cut is None:
        return None
    if not metric["higher_is_better"]:
        return math.exp(uncut - cut)
    guess = metric.get("chance") or 0.0
    if uncut - guess < LEAST_SCORE:
        return None
    share: float = (cut - guess) / (uncut - guess)
    return share


def shares_left(results: Results, scores: Results) -> tuple[float | None, float | None]:
    """Of the concept and of the rest, with the scores of one cut model."""
    uncut = results["scores"]["uncut"]
    concept, retain = (
        share_left(metric, uncut.get(metric["name"]), scores.get(metric["name"]))
        for metric in (results[f"{side}_metric"] for side in SIDES)
    )
    return concept, retain


def state(share: float | None) -> str:
    """A share in words."""
    if share is None:
        return "undefined"
    if share >= KEPT:
        return "kept"
    if share > HALF:
        return f"weakened ({percent(share)} left)"
    return "mostly lost" if share > LOST else "lost"


def verdict(results: Results) -> str:
    """A few sentences on a run with an uncut and a cut model."""
    concept, rest = shares_left(results, results["scores"]["cut"])
    isolates = results.get("direction") == "isolate"
    if base_warning(results):
        said = "No verdict on the concept."
    elif concept is None:
        said = (
            "No verdict on the concept: the uncut model's score is undefined or close "
            f"to a guess; the rest is {state(rest)}."
        )
    elif improves(results):
        said = f"The cut improves the concept; the rest is {state(rest)}."
    else:
        said = _of_circuit(concept) if isolates else _of_cut(concept, rest)
    if warning := effect_warning(results):
        return f"{said} Warning: {warning}"
    return (
        said if concept is None else said + _against_random(results, concept, isolates)
    )


def effect_warning(results: Results) -> str | None:
    """What to know before the cut is relearned; None where the cut broke the concept.

    The uncut model may be no better than a guess. A cut broke nothing if the concept
    keeps at least 90 % of its ability or its score is inside the uncut model's 95 %
    interval; it may even improve the concept, or break no more than the worst of the
    random cuts. A circuit (`isolate`) is meant to keep the concept, so of it only the
    uncut model is checked.

    Args:
        results: `scores`, both metrics and, where known, `intervals` and `direction`,
            as in results.json.
    """
    if warning := base_warning(results):
        return warning
    metric, scores = results["concept_metric"], results["scores"]
    uncut, cut = (scores.get(name, {}).get(metric["name"]) for name in ("uncut", "cut"))
    if results.get("direction") == "isolate" or _unknown(uncut) or _unknown(cut):
        return None
    name, value = metric_name(metric), format_cell(cut)
    said, reasons = "the cut breaks no more than random cuts", []
    share = share_left(metric, uncut, cut)
    interval = _interval_of_uncut(results)
    if improves(results):
        said = "the cut improves the concept instead of removing it"
        reasons.append(f"{name} is {value}, of the uncut model {format_cell(uncut)}")
    elif interval is not None and not _worse(metric, cut, interval):
        ends = f"[{format_cell(interval[0])}, {format_cell(interval[1])}]"
        said = "the cut broke nothing"
        reasons.append(
            f"{name}, {value}, is within the noise of the uncut model, "
            f"{format_cell(uncut)} {ends} (95 % interval)"
        )
    elif share is not None and share >= KEPT:
        said = "the cut broke nothing"
        reasons.append(
            f"{name} is {value}, which is {percent(share)} of the uncut model's ability"
        )
    randoms = [s.get(metric["name"]) for s in scores.get("random") or []]
    known = [score for score in randoms if not _unknown(score)]
    if known and not _worse(metric, cut, known):
        reasons.append(
            f"random cuts of the same counts give {mean_and_range(known)}, and this "
            f"cut gives {value}"
        )
    return f"{said}: {'; '.join(reasons)}." if reasons else None


def base_warning(results: Results) -> str | None:
    """Why no cut of this model shows anything: it is no better than a guess.

    Args:
        results: `scores` of the `uncut` model and, where known, the metrics.
    """
    scores = results["scores"].get("uncut") or {}
    said = []
    for side, what in zip(SIDES, ("the concept", "the rest"), strict=True):
        metric = results.get(f"{side}_metric")
        score = scores.get(metric["name"]) if metric else None
        if metric and _is_a_guess(metric, score):
            said.append(
                f"on {what}: {metric_name(metric)} is {format_cell(score)}, of a "
                f"{'guess' if metric['higher_is_better'] else 'uniform guess'} "
                f"{format_cell(metric.get('chance') or 0.0)}"
            )
    return (
        f"the uncut model is no better than a guess {'; '.join(said)}."
        if said
        else None
    )


def _is_a_guess(metric: Results, score: float | None) -> bool:
    if score is None or math.isnan(score):
        return False
    guess = metric.get("chance") or 0.0
    if metric["higher_is_better"]:
        return score - guess < LEAST_SCORE
    return guess > 0 and guess - score < LEAST_SCORE  # unknown in older runs


def improves(results: Results) -> bool:
    """Whether a cut that should break the concept makes its score better.

    Better than the uncut model's 95 % interval, or where none is known by a hundredth
    of the ability.
    """
    metric, scores = results["concept_metric"], results["scores"]
    uncut, cut = (scores.get(name, {}).get(metric["name"]) for name in ("uncut", "cut"))
    if results.get("direction") == "isolate" or _unknown(uncut) or _unknown(cut):
        return False
    interval = _interval_of_uncut(results)
    if interval is not None:
        better: bool = (
            cut > interval[1] if metric["higher_is_better"] else cut < interval[0]
        )
        return better
    share = share_left(metric, uncut, cut)
    return share is not None and share > IMPROVED


def _unknown(score: float | None) -> bool:
    return score is None or math.isnan(score)


def _worse(metric: Results, score: float, others: Sequence[float]) -> bool:
    """Whether a score shows less ability than all others."""
    if metric["higher_is_better"]:
        return score < min(others)
    return score > max(others)


def _interval_of_uncut(results: Results) -> tuple[float, float] | None:
    """The 95 % interval of the uncut model's concept score, where it is known."""
    name = results["concept_metric"]["name"]
    low, high = (results.get("intervals") or {}).get("uncut", {}).get(name, (None,) * 2)
    return None if _unknown(low) or _unknown(high) else (low, high)


def _of_circuit(concept: float) -> str:
    if concept >= KEPT:
        return "The circuit is sufficient: the concept is kept."
    if concept <= LOST:
        return "The cut broke everything: the circuit does not keep the concept."
    return f"The circuit is not sufficient: the concept is {state(concept)}."


def _of_cut(concept: float, rest: float | None) -> str:
    states = f"the concept is {state(concept)}, the rest is {state(rest)}."
    if rest is None:
        return f"{states[0].upper()}{states[1:]}"
    if concept >= KEPT and rest >= KEPT:
        return "The cut broke nothing: the concept and the rest are kept."
    if concept >= KEPT:
        return f"The cut missed the concept: {states}"
    if concept <= HALF and rest <= HALF:
        return f"The cut broke everything: {states}"
    if concept <= HALF and rest >= KEPT:
        return f"The cut is selective: {states}"
    return f"The cut is partial: {states}"


def _against_random(results: Results, concept: float, isolates: bool) -> str:
    """A warning where random cuts of the same counts do the same to the concept."""
    controls = results["scores"].get("random") or []
    left = mean([shares_left(results, scores)[0] for scores in controls])
    if left is None:
        return ""
    if isolates and concept >= KEPT and left >= concept - SAME:
        return (
            " Random circuits of the same size keep it as well, so this result does "
            "not locate the concept."
        )
    if not isolates and concept < KEPT and left <= concept + SAME:
        return (
            " Random cuts of the same counts remove as much of it, so this result "
            "does not locate the concept."
        )
    return ""
