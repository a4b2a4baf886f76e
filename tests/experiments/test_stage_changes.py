"""Changes of a study in stages against numbers worked out by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from circuitcut.experiments.stages.changes import OTHERS, changes, relearned
from circuitcut.relearning.stages.arms import Arm
from circuitcut.relearning.stages.comparing import saliency_of
from circuitcut.tasks.base import Metric

WIDTHS = [4, 4]
NOTHING = torch.zeros(8, dtype=torch.bool)
TASK: Any = SimpleNamespace(
    concept_metric=Metric("f1", True, "fraction", chance=0.1),
    retain_metric=Metric("nll", False, "nats/token"),
)


def record(
    score: list[float], f1: float, pruned=NOTHING, constant=NOTHING, nll: float = 1.0
) -> Any:
    scores = torch.tensor(score)
    tensors = {
        "score": scores,
        "effect": scores,
        "constant": constant,
        "saliency": saliency_of(scores, constant),
        "pruned": pruned,
    }
    return SimpleNamespace(header={"scores": {"f1": f1, "nll": nll}}, tensors=tensors)


def study(seed: int) -> Any:
    """The base model's four salient units are at level 1; the cut prunes them."""
    base = record([1, 2, 3, 4, 5, 6, 7, 8], 0.9)
    top = torch.arange(8) >= 4
    first = torch.arange(8) < 4
    later = [8, 7, 6, 5, 1, 2, 3, 4]
    arms = {
        Arm("cut", "one_shot", 0.5, seed): [
            record([1, 2, 3, 4, 0, 0, 0, 0], 0.1, top, top),
            record(later, 0.7 + 0.1 * seed, top, nll=1 + math.log(2)),
        ],
        Arm("random", "one_shot", 0.5, seed): [
            record([0, 0, 0, 0, 5, 6, 7, 8], 0.5, first, first),
            record([1, 2, 3, 4, 5, 6, 7, 8], 0.6, first),
        ],
    }
    return SimpleNamespace(seed=seed, base=base, arms=arms)


def at(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    [row] = [r for r in rows if all(r[key] == v for key, v in wanted.items())]
    return row


def test_scores_are_shares_of_the_base_models_above_a_guess():
    rows = relearned(TASK, [study(0), study(1)])
    cut = {"condition": "cut", "stage": 1}
    # seed 0 has .6 of .8 above a guess, seed 1 .7 of .8
    assert at(rows, **cut)["concept"] == pytest.approx(0.8125)
    low, high = at(rows, **cut)["concept_interval"]
    # t(.975, 1) = 12.706 and a standard error of .0625
    assert (high - low) / 2 == pytest.approx(12.7062 * 0.0625, rel=1e-4)
    assert at(rows, condition="cut", stage=0)["concept"] == pytest.approx(0.0)
    # the loss goes from 1 to 1 + log 2: half of the probability per token
    assert at(rows, **cut)["retain"] == pytest.approx(0.5)
    # the cut lost .8 and regained .6 and .7, the random cut lost .4 and regained .1
    assert at(rows, **cut)["regained"] == pytest.approx(0.8125)
    assert at(rows, **cut)["beyond_random"] == pytest.approx(0.8125 - 0.25)
    assert "beyond_random" not in at(rows, condition="random", stage=1)


def test_what_was_hardly_lost_is_not_regained():
    one = study(0)
    for arm, records in one.arms.items():
        if arm.condition == "random":
            records[0].header["scores"]["f1"] = 0.89
    rows = relearned(TASK, [one])
    assert at(rows, condition="random", stage=1)["regained"] is None
    assert at(rows, condition="cut", stage=1)["beyond_random"] is None


def test_salient_units_that_move_are_told_from_those_that_were_pruned():
    rows = changes([study(0), study(1)], WIDTHS, None)
    cut = {"condition": "cut", "stage": 1}
    row = at(rows, **cut, level=0, measure="salient_share")
    assert (row["value"], row["change"], row["beyond_random"]) == (1.0, 1.0, 1.0)
    assert row["change_interval"] == [1.0, 1.0]
    row = at(rows, **cut, level=None, measure="salient_share")
    assert (row["value"], row["change"]) == (0.0, -1.0)  # mean level 1 before, now 0
    # without the pruned units, level 0 has all salient units before and after
    row = at(rows, **cut, level=0, measure=OTHERS)
    assert (row["value"], row["change"]) == (1.0, 0.0)
    random = at(rows, condition="random", stage=1, level=0, measure="salient_share")
    assert (random["value"], random["change"]) == (0.0, 0.0)
    assert "beyond_random" not in random


def test_without_words_no_unit_is_polysemantic():
    rows = changes([study(0)], WIDTHS, None)
    row = at(rows, condition="cut", stage=1, level=None, measure="polysemantic")
    assert (row["value"], row["change"]) == (None, None)


def test_of_a_loss_the_probability_per_token_is_lost_and_regained():
    task: Any = SimpleNamespace(
        concept_metric=TASK.retain_metric, retain_metric=TASK.retain_metric
    )
    one = study(0)
    losses = {"cut": (1 + math.log(4), 1 + math.log(2)), "random": (2.0, 1.0)}
    for arm, records in one.arms.items():
        for entry, loss in zip(records, losses[arm.condition], strict=True):
            entry.header["scores"]["nll"] = loss
    rows = relearned(task, [one])
    cut = {"condition": "cut", "stage": 1}
    assert at(rows, condition="cut", stage=0)["concept"] == pytest.approx(0.25)
    assert at(rows, **cut)["concept"] == pytest.approx(0.5)
    # a quarter of the three quarters that were lost; the random cut regains all
    assert at(rows, **cut)["regained"] == pytest.approx(1 / 3)
    assert at(rows, **cut)["beyond_random"] == pytest.approx(1 / 3 - 1)
