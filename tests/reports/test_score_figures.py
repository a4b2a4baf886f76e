"""Figures of scores: what is drawn, read back from the axes."""

from typing import Any

import pytest
from matplotlib.container import ErrorbarContainer

from circuitcut.reports.drawing import png
from circuitcut.reports.load import Run, load_run
from circuitcut.reports.score_figures import (
    faithfulness_curves,
    score_by_size,
    scores_by_method,
)
from tests.reports.conftest import (
    curve_results,
    faithfulness_results,
    mask_results,
)


def test_dots_are_the_scores_of_every_model(mask_run: Run):
    concept, _ = scores_by_method(mask_run).axes
    dots = [bar for bar in concept.containers if isinstance(bar, ErrorbarContainer)]
    values = [float(dot.lines[0].get_xdata()[0]) for dot in dots]
    assert values == [0.7331, 0.0123, 0.0157, 0.7222, 0.7301, 0.0171, 0.2934]
    assert concept.get_xlabel() == "F1 of the concept (span F1)"


def test_curves_against_size_go_through_every_measured_size(mask_run: Run):
    concept, _ = score_by_size(mask_run).axes
    learned = next(line for line in concept.lines if line.get_label() == "learned mask")
    assert learned.get_xdata().tolist() == [8, 12, 16, 24, 50, 200]
    expected = [
        entry["scores"]["concept_f1"] for entry in mask_run.results["curve"][:6]
    ]
    assert learned.get_ydata().tolist() == expected
    assert concept.get_xscale() == "log"


def test_seeds_of_one_size_become_their_mean_and_range(write_run: Any):
    results = curve_results("attribute")
    results["curve"] = [
        {
            "method": "random",
            "n_ablated": size,
            "seed": seed,
            "scores": {"concept_f1": 0.1 * seed, "retain_f1": 0.5},
        }
        for size in (0, 4)
        for seed in (1, 2, 6)
    ]
    concept, _ = score_by_size(load_run(write_run(results))).axes
    assert concept.lines[0].get_ydata().tolist() == pytest.approx([0.3, 0.3])
    band = concept.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.1, 0.6))
    assert concept.get_xscale() == "symlog"


def test_faithfulness_is_drawn_by_share_with_the_range_of_seeds(write_run: Any):
    run = load_run(write_run(faithfulness_results()))
    shares, without, score, kl = faithfulness_curves(run).axes
    learned, random = shares.lines[:2]
    assert list(learned.get_xdata()) == pytest.approx([1, 10, 100])
    assert list(learned.get_ydata()) == pytest.approx([0.4, 0.97, 1.0])
    assert list(random.get_ydata()) == pytest.approx([0.1, 0.1, 1.0])
    assert list(without.lines[0].get_ydata()) == pytest.approx([0.5] * 3)
    assert list(score.lines[0].get_ydata()) == pytest.approx([0.28, 0.679, 0.7])
    assert list(kl.lines[1].get_ydata()) == pytest.approx([0.2] * 3)


def test_a_panel_without_a_defined_value_says_so(write_run: Any):
    results = faithfulness_results()
    for entry in results["curve"]:
        entry["faithfulness"] = None
    figure = faithfulness_curves(load_run(write_run(results)))
    assert [text.get_text() for text in figure.axes[0].texts] == ["undefined"]
    assert png(figure)  # the ticks of an empty log axis are drawn


def test_chance_is_a_dashed_line_where_it_is_not_zero(write_run: Any):
    results = mask_results()
    results["concept_metric"] = {**results["concept_metric"], "chance": 0.25}
    concept, rest = scores_by_method(load_run(write_run(results))).axes
    dashed = [line for line in concept.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [0.25]
    assert not [line for line in rest.lines if line.get_linestyle() == "--"]
