"""Curves over seeds and documents: closed forms, another bootstrap, planted gaps."""

import math

import numpy as np
import pytest
import torch

from circuitcut.relearning.conditions import WHOLE, Condition
from circuitcut.relearning.records import ConditionRun, Measurement
from circuitcut.relearning.statistics import describe, interval, resampled_scores
from circuitcut.tasks.base import Task
from circuitcut.tasks.evaluation import Evaluation, bootstrap

N, DOCUMENTS = 240, 24


def _measurement(
    step: int, share: float, seed: int, unseen: float = 0.5
) -> Measurement:
    """A moment at which `share` of the concept examples are right."""
    rng = torch.Generator().manual_seed(1000 * seed + step)
    concept = torch.arange(N) % 2 == 0
    hits = torch.rand(N, generator=rng) < share
    counts = {
        "concept": concept.double(),
        "concept_hits": (concept & hits).double(),
        "retain": (~concept).double(),
        "retain_hits": (~concept).double(),
    }
    recall = float(counts["concept_hits"].sum() / counts["concept"].sum())
    return Measurement(
        step,
        8 * step,
        {"recall": recall, "retain_accuracy": 1.0},
        {"recall": recall, "retain_accuracy": 1.0},
        0.1 * step,
        counts,
        torch.arange(N) % DOCUMENTS,
        torch.arange(N) < unseen * N,
    )


def _run(
    name: str, seed: int, shares: list[float], limit: int | None = 4
) -> ConditionRun:
    holding = None if name in WHOLE else "lasting"
    moments = [_measurement(2**i - 1, share, seed) for i, share in enumerate(shares)]
    return ConditionRun(Condition(name, holding, seed, limit), moments, {}, True)


def test_intervals_of_a_measurement_are_the_library_bootstraps(task: Task):
    """One seed: the interval over documents alone, against tasks.evaluation."""
    measured = _measurement(0, 0.4, 0)
    found = describe(task, [_run("uncut", 0, [0.4])], n_resamples=2000)["summary"][0]
    evaluation = Evaluation(
        {}, {}, measured.counts, measured.clusters, measured.unseen, N
    )
    expected = bootstrap(task, evaluation, n_resamples=2000, seed=7)["recall"]
    assert found["concept"] == measured.scores["recall"]
    assert found["concept_interval"] == pytest.approx(expected, abs=0.01)


def test_weights_of_one_give_the_scores_themselves(task: Task):
    measured = _measurement(0, 0.4, 0)
    weights = torch.stack([torch.ones(N), 2 * torch.ones(N)]).double()
    scores = resampled_scores(task, measured, weights)["recall"]
    assert scores.tolist() == [measured.scores["recall"]] * 2


def test_the_interval_of_normal_draws_is_the_closed_form():
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=200_000)
    assert interval(draws) == pytest.approx((3 - 1.96 * 2, 3 + 1.96 * 2), abs=0.03)


def test_no_interval_where_many_resamples_are_undefined():
    draws = np.linspace(0, 1, 100)
    draws[:4] = math.nan
    assert interval(draws) == pytest.approx(
        tuple(np.percentile(draws[4:], [2.5, 97.5]))
    )
    draws[:6] = math.nan
    assert interval(draws) == (None, None)


def test_recovery_is_of_the_means_over_seeds(task: Task):
    runs = [_run("cut", seed, [0.0, 0.3, 0.6]) for seed in (0, 1, 2)]
    runs += [_run("uncut", seed, [0.8, 0.8, 0.8]) for seed in (0, 1, 2)]
    found = describe(task, runs, n_resamples=50)
    cut = np.mean(
        [[m.scores["recall"] for m in run.measurements] for run in runs[:3]], 0
    )
    uncut = np.mean([[m.scores["recall"] for m in r.measurements] for r in runs[3:]], 0)
    points = found["recovery"][0]["points"]
    assert [p["ratio"] for p in points] == pytest.approx(cut / uncut)
    expected = (cut - cut[0]) / (uncut - cut[0])
    assert [p["normalised"] for p in points] == pytest.approx(expected)
    for point in points[1:]:
        low, high = point["ratio_interval"]
        assert low < point["ratio"] < high


def test_paired_conditions_that_are_equal_recover_exactly_one(task: Task):
    """The same draws for both sides: no noise is left in the ratio."""
    start = {"cut": 0.1, "uncut": 0.6}
    runs = [
        _run(name, seed, [share, 0.6, 0.6])
        for name, share in start.items()
        for seed in (0, 1)
    ]
    entry = describe(task, runs, n_resamples=100)["recovery"][0]
    for point in entry["points"][1:]:
        for kind in ("ratio", "normalised"):
            assert point[kind] == 1.0
            assert point[f"{kind}_interval"] == [1.0, 1.0]
    assert entry["final_gap_interval"] == [0.0, 0.0]


def test_first_steps_have_intervals_and_never_is_none(task: Task):
    runs = [_run("cut", 0, [0.0, 0.05, 1.0, 1.0]), _run("uncut", 0, [1.0] * 4)]
    half = describe(task, runs, n_resamples=50)["recovery"][0]["reached"]["ratio"][0]
    assert (half["step"], half["step_interval"]) == (3, [3, 3])
    runs[0] = _run("cut", 0, [0.0, 0.05, 0.1, 0.1])
    never = describe(task, runs, n_resamples=50)["recovery"][0]["reached"]["ratio"][0]
    assert (never["step"], never["step_interval"]) == (None, [None, None])


def test_each_number_of_examples_has_its_own_uncut_model(task: Task):
    runs = [_run("cut", 0, [0.1, 0.4], 4), _run("uncut", 0, [0.8, 0.4], 4)]
    runs += [_run("cut", 0, [0.1, 0.8], None), _run("uncut", 0, [0.8, 0.8], None)]
    found = describe(task, runs, n_resamples=20)["recovery"]
    assert [(e["limit"], e["condition"]) for e in found] == [(4, "cut"), (None, "cut")]
    rows = describe(task, runs, n_resamples=20)["rows"]
    assert len(rows) == 8
    assert rows[0] == {
        "condition": "cut",
        "holding": "lasting",
        "seed": 0,
        "limit": 4,
        **runs[0].measurements[0].row(),
    }


def test_without_an_uncut_model_there_is_no_recovery(task: Task):
    assert describe(task, [_run("cut", 0, [0.1, 0.4])])["recovery"] == []


def test_scores_of_unseen_entities_are_of_those_examples_alone(task: Task):
    run = _run("cut", 0, [0.5])
    measured = run.measurements[0]
    hits = measured.counts["concept_hits"][measured.unseen].sum()
    expected = float(hits / measured.counts["concept"][measured.unseen].sum())
    summary = describe(task, [run], n_resamples=20)["summary"][0]
    assert summary["unseen_concept"] == pytest.approx(expected)


def test_runs_measured_at_different_steps_are_refused(task: Task):
    runs = [_run("cut", 0, [0.1, 0.2]), _run("cut", 1, [0.1])]
    with pytest.raises(ValueError, match="same steps"):
        describe(task, runs)


def test_a_control_without_examples_is_held_to_the_uncut_model_of_most(task: Task):
    shares = {4: [0.9, 0.9], None: [0.9, 1.0]}
    runs = [_run("uncut", 0, curve, limit) for limit, curve in shares.items()]
    runs += [_run("retain_only", 0, [0.0, 0.5], limit=0)]
    runs += [_run("never_learned", 0, [0.0, 0.9], limit=4)]
    found = describe(task, runs, n_resamples=20)
    control, never = found["recovery"]
    assert (control["condition"], control["limit"]) == ("retain_only", 0)
    assert control["uncut_limit"] is None
    assert control["points"][-1]["ratio"] == pytest.approx(0.5, abs=0.1)
    assert (never["limit"], never["uncut_limit"]) == (4, 4)
    alone = describe(task, runs[2:3], n_resamples=20)
    assert alone["recovery"] == []
