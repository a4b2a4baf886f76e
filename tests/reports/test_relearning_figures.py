"""Figures of relearning: what is drawn, read back from the axes."""

from typing import Any

from circuitcut.reports.findings import relearning_findings
from circuitcut.reports.load import Run, load_run
from circuitcut.reports.relearning_figures import (
    recovery_by_examples,
    relearning_curves,
)
from tests.reports.conftest import LIMITS, relearn_results


def test_relearning_has_a_column_a_number_of_examples(relearn_run: Run):
    axes = relearning_curves(relearn_run).axes
    assert len(axes) == 2 * len(LIMITS)
    titles = [a.get_title() for a in axes[: len(LIMITS)]]
    assert titles == [
        "1 concept\nexample",
        "4 concept\nexamples",
        "16 concept\nexamples",
        "all concept\nexamples",
    ]
    labels = [line.get_label() for line in axes[0].lines]
    assert labels == [
        "cut, mask held",
        "cut, written once",
        "uncut",
        "random cut, mask held",
    ]
    summary = relearn_run.results["summary"]
    expected = [
        e["concept"]
        for e in summary
        if (e["condition"], e["holding"], e["limit"]) == ("cut", "lasting", 1)
    ]
    assert axes[0].lines[0].get_ydata().tolist() == expected
    assert axes[0].lines[1].get_linestyle() == "--"


def test_undefined_recoveries_are_left_out_not_drawn_as_zero(relearn_run: Run):
    ratio, normalised = recovery_by_examples(relearn_run).axes
    drawn = {bar.get_label(): bar for bar in normalised.containers}
    assert len(drawn["cut, mask held"].lines[0].get_xdata()) == len(LIMITS)
    assert "random cut, mask held" not in drawn
    assert normalised.get_title() == "not defined: random cut, mask held"
    assert not ratio.get_title()
    assert len(ratio.containers[1].lines[0].get_xdata()) == len(LIMITS)


def test_controls_stand_beside_every_number_of_examples(write_run: Any):
    results = relearn_results()
    of_cut = [e for e in results["summary"] if e["condition"] == "cut"]
    shortest = [e for e in of_cut if (e["limit"], e["holding"]) == (1, "lasting")]
    results["summary"] += [
        entry | {"condition": "retain_only", "limit": 0, "concept": 0.25}
        for entry in shortest
    ]
    results["summary"] += [
        entry | {"condition": "never_learned", "holding": None, "concept": 0.5}
        for entry in of_cut
        if entry["holding"] == "lasting"
    ]
    first = results["recovery"][0]
    results["recovery"] += [
        first | {"condition": "retain_only", "limit": 0},
        first | {"condition": "never_learned", "holding": None},
    ]
    run = load_run(write_run(results))
    figure = relearning_curves(run)
    assert len(figure.axes) == 2 * len(LIMITS)
    for axes in figure.axes[: len(LIMITS)]:
        curves = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
        assert set(curves["cut, no concept examples, mask held"]) == {0.25}
        assert set(curves["never learned the concept"]) == {0.5}
    said = " ".join(relearning_findings(run))
    assert "without any concept example, cut model, 0 concept examples: F1" in said
    assert (
        "never learned the concept, 1 concept example: F1 of the concept is 0.500"
        in said
    )
    ticks = recovery_by_examples(run).axes[0].get_xticklabels()
    assert next(tick.get_text() for tick in ticks) == "0"


def test_recovery_starts_at_zero_and_wide_intervals_leave_the_axis(relearn_run: Run):
    for entry in relearn_run.results["recovery"]:
        entry["points"][-1]["ratio_interval"] = [-7.0, 9.0]
    ratio, normalised = recovery_by_examples(relearn_run).axes
    assert ratio.get_ylim() == (-0.5, 1.5)
    assert normalised.get_ylim()[0] == 0
