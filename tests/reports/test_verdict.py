"""Verdicts: what is left of concept and rest, by hand, and what that is called."""

import math
from typing import Any

import pytest

from circuitcut.reports.verdict import (
    base_warning,
    effect_warning,
    share_left,
    state,
    verdict,
)

UP = {"name": "f1", "higher_is_better": True}
LOSS = {"name": "nll", "higher_is_better": False}


def results(
    concept: float, rest: float, *, random: float = 0.8, direction: str = "break"
) -> dict[str, Any]:
    return {
        "direction": direction,
        "concept_metric": UP,
        "retain_metric": {**UP, "name": "rest"},
        "scores": {
            "uncut": {"f1": 0.8, "rest": 0.5},
            "cut": {"f1": concept, "rest": rest},
            "random": [{"f1": random, "rest": 0.5}],
        },
    }


def test_the_score_of_a_guess_is_subtracted():
    assert share_left({**UP, "chance": 0.5}, 0.9, 0.6) == pytest.approx(0.25)
    assert share_left(UP, 0.8, 0.2) == pytest.approx(0.25)
    assert share_left({**UP, "chance": 0.5}, 0.52, 0.5) is None
    assert share_left(UP, None, 0.5) is None


def test_of_a_loss_the_probability_per_token_is_left():
    assert share_left(LOSS, 2.0, 2.0 + math.log(4)) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (1.2, "kept"),
        (0.9, "kept"),
        (0.7, "weakened (70 % left)"),
        (0.5, "mostly lost"),
        (0.1, "lost"),
        (-0.3, "lost"),
        (None, "undefined"),
    ],
)
def test_shares_have_names(share: float | None, words: str):
    assert state(share) == words


@pytest.mark.parametrize(
    ("concept", "rest", "said"),
    [
        (0.79, 0.5, "The cut broke nothing: the concept and the rest are kept."),
        (0.01, 0.01, "The cut broke everything: the concept is lost, the rest is lost"),
        (0.01, 0.49, "The cut is selective: the concept is lost, the rest is kept."),
        (0.79, 0.2, "The cut missed the concept: the concept is kept, the rest is mo"),
        (0.6, 0.5, "The cut is partial: the concept is weakened (75 % left), the re"),
        (0.01, 0.4, "The cut is partial: the concept is lost, the rest is weakened"),
    ],
)
def test_a_cut_that_broke_nothing_or_everything_is_called_so(
    concept: float, rest: float, said: str
):
    assert verdict(results(concept, rest)).startswith(said)


def test_a_random_cut_that_does_the_same_is_named():
    assert "does not locate the concept" in verdict(results(0.0, 0.5, random=0.05))
    assert "Random" not in verdict(results(0.0, 0.5, random=0.7))


def test_a_circuit_is_sufficient_or_breaks_everything():
    circuit = {"direction": "isolate"}
    kept = verdict(results(0.79, 0.1, random=0.0, **circuit))
    assert kept == "The circuit is sufficient: the concept is kept."
    same = verdict(results(0.79, 0.1, random=0.79, **circuit))
    assert "Random circuits of the same size keep it as well" in same
    lost = verdict(results(0.0, 0.1, random=0.0, **circuit))
    assert lost.startswith("The cut broke everything")


def test_a_model_without_the_concept_gets_no_verdict():
    unlearned = results(0.0, 0.5)
    unlearned["scores"]["uncut"]["f1"] = 0.01
    assert verdict(unlearned).startswith("No verdict on the concept")


def measured(
    cut: float, *, low: float = 0.75, random: Any = (0.8,), **more: Any
) -> Any:
    """A run with an uncut score of 0.8 in [low, 0.85]."""
    found = results(cut, 0.5, **more)
    found["intervals"] = {"uncut": {"f1": [low, 0.85]}}
    found["scores"]["random"] = [{"f1": score} for score in random]
    return found


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (
            measured(0.76),
            "the cut broke nothing: f1, 0.760, is within the noise of the",
        ),
        (
            measured(0.74),
            "the cut broke nothing: f1 is 0.740, which is 92 % of the unc",
        ),
        (measured(0.6, low=0.5), "the cut broke nothing: f1, 0.600, is within the noi"),
        (measured(0.3, random=(0.2, 0.8)), "the cut breaks no more than random cuts:"),
        (measured(0.3), None),
        (measured(0.1, random=(0.2, 0.8)), None),
        (measured(0.79, direction="isolate"), None),
        (measured(0.3, random=()), None),
        (measured(float("nan")), None),
    ],
)
def test_a_cut_within_the_noise_or_among_random_cuts_is_warned_of(run: Any, said: Any):
    warning = effect_warning(run)
    assert warning is None if said is None else str(warning).startswith(said)
    if warning:
        assert verdict(run).endswith(f" Warning: {warning}")


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (measured(0.9), "the cut improves the concept instead of removing it: f1 is 0"),
        (measured(0.84), "the cut broke nothing: f1, 0.840, is within the noise"),
        (results(0.9, 0.5), "the cut improves the concept instead of removing it"),
    ],
)
def test_a_cut_that_improves_the_concept_is_called_so(run: Any, said: str):
    assert str(effect_warning(run)).startswith(said)
    is_better = said.startswith("the cut improves")
    assert verdict(run).startswith("The cut improves the concept") == is_better
    assert effect_warning({**run, "direction": "isolate"}) is None


def test_a_base_model_worse_than_uniform_is_named():
    uniform = {**LOSS, "chance": math.log(4096), "label": "loss on toxic text"}
    run: dict[str, Any] = {
        "concept_metric": uniform,
        "retain_metric": {**uniform, "name": "rest", "label": "loss on other text"},
        "scores": {"uncut": {"nll": 9.16, "rest": 5.0}, "cut": {"nll": 9.5}},
    }
    assert effect_warning(run) == (
        "the uncut model is no better than a guess on the concept: loss on toxic text "
        "is 9.160, of a uniform guess 8.318."
    )
    assert effect_warning({**run, "direction": "isolate"}) is not None
    run["scores"]["uncut"]["nll"] = 4.0
    assert effect_warning(run) is None
    run["concept_metric"] = LOSS | {"chance": 0.0}  # as in older runs
    run["scores"]["uncut"]["nll"] = 9.16
    assert base_warning(run) is None


def test_of_a_loss_a_cut_must_raise_it_above_the_interval_and_the_random_cuts():
    def run(cut: float, random: float) -> Any:
        names = ("uncut", "cut")
        values = {name: {"nll": v} for name, v in zip(names, (2.0, cut), strict=True)}
        return {
            "concept_metric": LOSS,
            "scores": values | {"random": [{"nll": random}]},
            "intervals": {"uncut": {"nll": [1.8, 2.3]}},
        }

    assert effect_warning(run(2.2, 2.0)) is not None
    assert effect_warning(run(2.9, 3.0)) is not None
    assert effect_warning(run(3.1, 3.0)) is None
