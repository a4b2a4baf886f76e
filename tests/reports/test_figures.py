"""Figures: what is drawn, read back from the axes."""

from typing import Any

import pytest
from matplotlib.container import ErrorbarContainer

from circuitcut.reports.drawing import known_points, spread
from circuitcut.reports.figures import (
    faithfulness_curves,
    mask_by_layer,
    probe_by_layer,
    recovery_by_examples,
    redistribution_by_layer,
    relearning_curves,
    score_by_size,
    scores_by_method,
    size_curve,
    training_curves,
)
from circuitcut.reports.findings import faithfulness_finding, relearning_finding
from circuitcut.reports.load import load_run
from tests.reports.conftest import (
    LIMITS,
    curve_results,
    faithfulness_results,
    mask_results,
    relearn_results,
)


@pytest.fixture
def mask_run(write_run: Any) -> Any:
    return load_run(write_run(mask_results()))


@pytest.fixture
def relearn_run(write_run: Any) -> Any:
    return load_run(write_run(relearn_results()))


def test_bars_are_as_high_as_the_units_ablated_in_each_layer(mask_run: Any):
    neurons, heads = mask_by_layer(mask_run).axes
    assert [bar.get_height() for bar in neurons.patches] == [0, 2, 4, 1, 3, 0]
    assert [bar.get_height() for bar in heads.patches] == [0, 1, 0, 1, 0, 1]
    assert neurons.get_ylabel() == "neurons ablated"
    assert heads.get_title() == "3 of 72 heads"


def test_dots_are_the_scores_of_every_model(mask_run: Any):
    concept, _ = scores_by_method(mask_run).axes
    dots = [bar for bar in concept.containers if isinstance(bar, ErrorbarContainer)]
    values = [float(dot.lines[0].get_xdata()[0]) for dot in dots]
    assert values == [0.7331, 0.0123, 0.0157, 0.7222, 0.7301, 0.0171, 0.2934]
    assert concept.get_xlabel() == "concept f1 (span F1)"


def test_curves_against_size_go_through_every_measured_size(mask_run: Any):
    concept, _ = score_by_size(mask_run).axes
    learned = next(line for line in concept.lines if line.get_label() == "learned")
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


def test_training_curves_show_losses_and_counts_by_step(mask_run: Any):
    losses, counts = training_curves(mask_run).axes
    assert [line.get_label() for line in losses.lines] == ["concept loss", "loss"]
    assert losses.lines[1].get_ydata()[0] == 2.0
    assert counts.get_ylabel() == "units ablated"
    assert len(counts.lines[0].get_xdata()) == 20


def test_relearning_has_a_column_a_number_of_examples(relearn_run: Any):
    axes = relearning_curves(relearn_run).axes
    assert len(axes) == 2 * len(LIMITS)
    titles = [a.get_title() for a in axes[: len(LIMITS)]]
    assert titles == ["1 example", "4 examples", "16 examples", "all examples"]
    labels = [line.get_label() for line in axes[0].lines]
    assert labels == ["cut, lasting", "cut, one shot", "uncut", "random, lasting"]
    summary = relearn_run.results["summary"]
    expected = [
        e["concept"]
        for e in summary
        if (e["condition"], e["holding"], e["limit"]) == ("cut", "lasting", 1)
    ]
    assert axes[0].lines[0].get_ydata().tolist() == expected
    assert axes[0].lines[1].get_linestyle() == "--"


def test_undefined_recoveries_are_left_out_not_drawn_as_zero(relearn_run: Any):
    ratio, normalised = recovery_by_examples(relearn_run).axes
    drawn = {bar.get_label(): bar for bar in normalised.containers}
    assert len(drawn["cut, lasting"].lines[0].get_xdata()) == len(LIMITS)
    assert len(drawn["random, lasting"].lines[0].get_xdata()) == 0
    assert len(ratio.containers[1].lines[0].get_xdata()) == len(LIMITS)


def test_redistribution_bars_are_the_shares_in_percent(relearn_run: Any):
    (axes,) = redistribution_by_layer(relearn_run).axes
    heights = {
        bars.get_label(): [b.get_height() for b in bars] for bars in axes.containers
    }
    after = heights["top units after relearning"]
    assert after == pytest.approx([40, 25, 15, 10, 5, 5])
    assert len(heights) == 4


def test_probes_have_a_solid_and_a_dotted_line_a_condition(relearn_run: Any):
    (axes,) = probe_by_layer(relearn_run).axes
    assert [line.get_linestyle() for line in axes.lines] == ["-", ":"] * 3
    assert axes.get_xticklabels()[0].get_text() == "emb."


def test_figures_without_data_are_not_drawn(write_run: Any):
    bare = {**mask_results(), "curve": [], "scores": {"uncut": {"concept_f1": 0.7}}}
    run = load_run(write_run(bare))
    run.metrics.clear()
    assert score_by_size(run) is None
    assert scores_by_method(run) is None
    assert training_curves(run) is None
    empty = {**relearn_results(), "recovery": [], "probe": [], "after": []}
    run = load_run(write_run(empty))
    assert recovery_by_examples(run) is None
    assert redistribution_by_layer(run) is None
    assert probe_by_layer(run) is None


def test_a_curve_is_drawn_before_the_run_is_finished(tmp_path: Any):
    path = size_curve(curve_results("evaluate"), tmp_path)
    assert path == tmp_path / "score_by_size.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert size_curve({**curve_results("evaluate"), "curve": []}, tmp_path) is None


def test_points_without_a_value_are_dropped_and_half_intervals_closed():
    given = [
        (1, None, [0, 1]),
        (2, 0.5, [0.4, 0.6]),
        (3, 0.7, [None, 0.9]),
        (4, 1.0, None),
    ]
    assert known_points(given) == [
        (2, 0.5, (0.4, 0.6)),
        (3, 0.7, (0.7, 0.7)),
        (4, 1.0, (1.0, 1.0)),
    ]


def test_ticks_keep_both_ends_and_stay_apart():
    assert spread([8, 12, 16, 24, 50, 200], 8)[0] == 8
    assert spread([8, 9, 10, 200], 8) == [8, 200]
    assert spread([0, 1, 3, 8, 22, 60], 7) == [0, 1, 3, 8, 22, 60]
    assert spread([5], 8) == [5]


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
        assert set(curves["retain only, lasting"]) == {0.25}
        assert set(curves["never learned"]) == {0.5}
    said = " ".join(relearning_finding(run))
    assert "without any example of the concept, the cut model (lasting) goes" in said
    assert "a model that never learned the concept goes from 0.500 to 0.500" in said
    ticks = recovery_by_examples(run).axes[0].get_xticklabels()
    assert next(tick.get_text() for tick in ticks) == "0"


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
    said = faithfulness_finding(run)
    assert said[0].startswith("topk: 10.0% of 1,000 edges keep at least 95%")
    assert said[1] == "random: no circuit measured keeps 95%."


def test_a_number_that_does_not_move_gets_no_panel(mask_run: Any):
    assert len(training_curves(mask_run).axes) == 2
    for entry in mask_run.metrics:
        entry["expected_ablated"] = 11.5
    assert len(training_curves(mask_run).axes) == 1
    for entry in mask_run.metrics:
        entry["expected_ablated"] = None
    assert len(training_curves(mask_run).axes) == 1
