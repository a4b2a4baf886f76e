"""Figures of a mask: what is drawn, read back from the axes."""

import math

import pytest

from circuitcut.reports.load import Run
from circuitcut.reports.mask_figures import layer_counts, mask_by_layer, training_curves


def test_bars_are_as_high_as_the_units_ablated_in_each_layer(mask_run: Run):
    neurons, heads = mask_by_layer(mask_run).axes
    assert [bar.get_height() for bar in neurons.patches] == [0, 2, 4, 1, 3, 0]
    assert [bar.get_height() for bar in heads.patches] == [0, 1, 0, 1, 0, 1]
    assert neurons.get_ylabel() == "neurons ablated"
    assert heads.get_title() == "3 of 72 heads ablated"


def _drawn(run: Run, n: int) -> None:
    """A budget: every third step draws 10, 40 and 90 units; the loss is 1, 2 and 3."""
    run.metrics[:] = [
        {
            "step": i,
            "loss": 9.0,
            "concept_loss": 1.0 + i % 3,
            "retain_loss": 0.5,
            "sample_ablated": (10.0, 40.0, 90.0)[i % 3],
        }
        for i in range(n)
    ]


def test_training_curves_show_losses_and_counts_by_step(mask_run: Run):
    losses, counts = training_curves(mask_run).axes
    assert losses.get_ylabel() == "loss on the concept (nats)"
    assert losses.lines[-1].get_ydata()[0] == pytest.approx(
        0.75 * (1 + math.exp(-0.25))
    )
    assert counts.get_ylabel() == "units ablated"
    expected, frozen = counts.lines
    assert len(expected.get_xdata()) == 20
    assert frozen.get_ydata()[0] == mask_run.results["n_ablated"]
    assert frozen.get_label() == f"frozen: {mask_run.results['n_ablated']}"


def test_losses_are_means_over_steps_that_draw_equally_many_units(mask_run: Run):
    _drawn(mask_run, 300)
    figure = training_curves(mask_run)
    concept, rest, counts = figure.axes
    means = [line for line in concept.lines if line.get_marker() == "None"]
    labels = [line.get_label() for line in means]
    assert labels == ["10 to 10 ablated", "40 to 40 ablated", "90 to 90 ablated"]
    for loss, line in enumerate(means, 1):
        assert set(line.get_ydata()) == {loss}
    assert rest.get_ylabel() == "loss on the rest (nats)"
    assert set(counts.lines[0].get_ydata()) == {10.0, 40.0, 90.0}


def test_of_a_circuit_the_kept_units_are_counted(mask_run: Run):
    _drawn(mask_run, 300)
    mask_run.results["direction"] = "isolate"
    counts = training_curves(mask_run).axes[-1]
    n_units = mask_run.results["n_units"]
    assert counts.get_ylabel() == "units kept"
    assert set(counts.lines[0].get_ydata()) == {n_units - n for n in (10, 40, 90)}


def test_a_number_that_does_not_move_gets_no_panel(mask_run: Run):
    assert len(training_curves(mask_run).axes) == 2
    for entry in mask_run.metrics:
        entry["expected_ablated"] = 11.5
    assert len(training_curves(mask_run).axes) == 1
    for entry in mask_run.metrics:
        entry["expected_ablated"] = None
    assert len(training_curves(mask_run).axes) == 1


def test_long_trainings_have_a_dot_a_step_and_means_over_windows(mask_run: Run):
    mask_run.metrics[:] = [{"step": i, "loss": float(i)} for i in range(120)]
    (axes,) = training_curves(mask_run).axes
    every_step, means = axes.lines
    assert every_step.get_ydata().tolist() == list(range(120))
    assert means.get_ydata().tolist()[:2] == [4.5, 14.5]
    assert means.get_xdata().tolist()[:2] == [4.5, 14.5]


def test_sites_of_one_layer_are_added_up():
    sites = [
        {"layer": 1, "n_ablated": 1, "n_units": 4, "level": "logits"},
        {"layer": 0, "n_ablated": 2, "n_units": 8},
        {"layer": 0, "n_ablated": 3, "n_units": 8},
    ]
    assert layer_counts(sites) == [(0, 5, 16), ("logits", 1, 4)]
