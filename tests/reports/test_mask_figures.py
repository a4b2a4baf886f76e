"""Figures of a mask: what is drawn, read back from the axes."""

from circuitcut.reports.load import Run
from circuitcut.reports.mask_figures import layer_counts, mask_by_layer, training_curves


def test_bars_are_as_high_as_the_units_ablated_in_each_layer(mask_run: Run):
    neurons, heads = mask_by_layer(mask_run).axes
    assert [bar.get_height() for bar in neurons.patches] == [0, 2, 4, 1, 3, 0]
    assert [bar.get_height() for bar in heads.patches] == [0, 1, 0, 1, 0, 1]
    assert neurons.get_ylabel() == "neurons ablated"
    assert heads.get_title() == "3 of 72 heads ablated"


def test_training_curves_show_losses_and_counts_by_step(mask_run: Run):
    losses, counts = training_curves(mask_run).axes
    assert [line.get_label() for line in losses.lines] == [
        "loss on the concept",
        "total loss",
    ]
    assert losses.lines[1].get_ydata()[0] == 2.0
    assert counts.get_ylabel() == "units ablated"
    assert len(counts.lines[0].get_xdata()) == 20


def test_a_number_that_does_not_move_gets_no_panel(mask_run: Run):
    assert len(training_curves(mask_run).axes) == 2
    for entry in mask_run.metrics:
        entry["expected_ablated"] = 11.5
    assert len(training_curves(mask_run).axes) == 1
    for entry in mask_run.metrics:
        entry["expected_ablated"] = None
    assert len(training_curves(mask_run).axes) == 1


def test_long_trainings_have_a_thin_line_a_step_and_means_over_windows(mask_run: Run):
    mask_run.metrics[:] = [{"step": i, "loss": float(i)} for i in range(100)]
    (axes,) = training_curves(mask_run).axes
    every_step, means = axes.lines
    assert every_step.get_ydata().tolist() == list(range(100))
    assert means.get_ydata().tolist()[:2] == [1.5, 5.5]
    assert means.get_xdata().tolist()[:2] == [1.5, 5.5]


def test_sites_of_one_layer_are_added_up():
    sites = [
        {"layer": 1, "n_ablated": 1, "n_units": 4, "level": "logits"},
        {"layer": 0, "n_ablated": 2, "n_units": 8},
        {"layer": 0, "n_ablated": 3, "n_units": 8},
    ]
    assert layer_counts(sites) == [(0, 5, 16), ("logits", 1, 4)]
