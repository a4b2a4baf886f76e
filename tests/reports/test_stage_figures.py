"""Figures of a study in stages show the numbers of its results and records."""

from typing import Any

import numpy as np
import pytest
import torch

from circuitcut.reports.figures import draw_all
from circuitcut.reports.load import Run, load_run
from circuitcut.reports.stages.curves import score_by_share, score_by_stage
from circuitcut.reports.stages.figures import FIGURES
from circuitcut.reports.stages.levels import redistribution, saliency_by_level
from circuitcut.reports.stages.records import unit_values
from circuitcut.reports.stages.unit_maps import (
    grid_of,
    most_changed,
    saliency_map,
    similarity_against_saliency,
    similarity_map,
)
from circuitcut.storage.atomic import write_tensors
from circuitcut.storage.errors import UserError
from tests.reports.staged import stages_results, write_records

CUT = (0.1, "cut", "lasting")


@pytest.fixture
def run(write_run: Any) -> Run:
    """A study whose records are there."""
    path = write_run(stages_results())
    write_records(path)
    return load_run(path)


def _lines(axes: Any) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}


def test_scores_begin_at_the_base_model_and_have_a_line_an_arm(run: Run):
    figure = score_by_stage(run)
    assert figure is not None
    concept, retain = figure.axes
    assert _lines(concept)["cut, mask held"] == [0.95, 0.02, 0.9]
    assert _lines(retain)["uncut"] == [0.8, 0.8, 0.81]
    ticks = [tick.get_text() for tick in retain.get_xticklabels()]
    assert ticks == ["base", "pruned", "1"]


def test_scores_by_share_are_means_over_seeds_and_mark_what_was_retrained(run: Run):
    figure = score_by_share(run)
    assert figure is not None
    lines = _lines(figure.axes[0])
    assert lines["cut, mask held"] == [0.01, 0.01]
    retrained = [x for x in figure.axes[0].get_lines() if x.get_label() == "retrained"]
    assert list(retrained[0].get_xdata()) == [0.1, 0.1]


def test_redistribution_has_a_bar_a_stage_and_level_in_percent(run: Run):
    figure = redistribution(run)
    assert figure is not None
    cut = figure.axes[0]
    assert [len(bars.patches) for bars in _bars(cut)] == [2, 2, 2]
    assert {tuple(p.get_height() for p in bars.patches) for bars in _bars(cut)} == {
        (25.0, 75.0)
    }
    low, high = cut.get_ylim()
    assert low == 0
    assert 75 < high < 110, "intervals from -300 to 400 % leave the axis"


def _bars(axes: Any) -> list[Any]:
    return [c for c in axes.containers if hasattr(c, "patches")]


def test_measures_by_level_have_a_row_a_measure_that_was_taken(run: Run):
    figure = saliency_by_level(run)
    assert figure is not None
    assert len(figure.axes) == 2, "cut and uncut; no effect and no similarity"
    bars = figure.axes[0].containers
    assert [list(b.lines[0].get_ydata()) for b in bars] == [
        pytest.approx([0.4, 0.6])
    ] * 3
    assert figure.axes[0].get_ylim()[1] < 1


def test_levels_stand_below_each_other_and_narrow_ones_are_filled_up():
    grid = grid_of(np.arange(5.0), [3, 2])
    np.testing.assert_equal(grid, [[0, 1, 2], [3, 4, np.nan]])


def test_the_frame_stands_where_most_changed():
    before, after = np.zeros((2, 100)), np.zeros((2, 100))
    after[1, 60:64] = 1
    after[0, :4] = 0.5
    after[1, 99] = np.nan
    first = most_changed(before, after)
    assert first <= 60
    assert first + 32 >= 64


def test_heat_maps_show_every_unit_of_every_stage(run: Run):
    figure = saliency_map(run)
    assert figure is not None
    images = [axes.images[0].get_array() for axes in figure.axes[:6:2]]
    assert [image.shape for image in images] == [(2, 100)] * 3
    np.testing.assert_allclose(images[0][1], np.arange(100, 200) / 200)
    assert (images[2][1, 50:] == 1).all()
    similar = similarity_map(run)
    assert similar is not None
    values = similar.axes[0].images[0].get_array()
    assert values.mask.sum() == 101
    assert values.mean() == pytest.approx(0.5)


def test_similarity_is_averaged_in_bins_of_saliency(run: Run):
    figure = similarity_against_saliency(run)
    assert figure is not None
    (mean,) = figure.axes[0].get_lines()
    assert list(mean.get_xdata()) == pytest.approx([0.5, 0.7, 0.9])
    assert list(mean.get_ydata()) == pytest.approx([0.5] * 3)


def test_figures_of_units_are_left_out_where_records_were_removed(write_run: Any):
    run = load_run(write_run(stages_results()))
    assert unit_values(run, 0, CUT) == []
    unit_figures = {"saliency_map", "similarity_map", "similarity_against_saliency"}
    assert not unit_figures & set(draw_all(run))


def test_all_figures_are_written_in_both_formats(run: Run):
    written = draw_all(run)
    assert list(written) == list(FIGURES)
    for path in written.values():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in path.with_suffix(".svg").read_bytes()[:1000]


def test_a_damaged_record_and_one_of_another_model_are_refused(run: Run):
    stage = run.path / "seeds/seed-0/arms/cut/stage-1"
    file = stage / "units.safetensors"
    write_tensors(file, {"saliency": torch.zeros(7)})
    with pytest.raises(UserError, match=r"units\.safetensors is not the file"):
        unit_values(run, 0, CUT)
    (stage / "stage.json").write_text('{"sha256": {}}')
    with pytest.raises(UserError, match=r"saliency, .* of shape \(200,\).*got \(7,\)"):
        unit_values(run, 0, CUT)


def test_labels_of_many_levels_do_not_overlap_in_narrow_panels(write_run: Any):
    """31 levels and five arms, as of SmolLM2: at most six labels a panel."""
    results = stages_results()
    one = results["stages"][0]
    arms = [("base", None, 0.0, None)]
    arms += [("cut", h, 0.1, 0) for h in ("lasting", "one_shot")]
    arms += [("random", h, 0.1, 0) for h in ("lasting", "one_shot")]
    arms += [("uncut", None, 0.0, 0)]
    results["levels"] = [{"level": n, "site": f"{n}", "n_units": 4} for n in range(31)]
    results["stages"] = [
        one
        | {"condition": name, "holding": holding, "share": share}
        | {"stage": stage, "level": level}
        for name, holding, share, stage in arms
        for level in range(31)
    ]
    figure = saliency_by_level(load_run(write_run(results)))
    assert figure is not None
    ticks = [axes.get_xticks() for axes in figure.axes]
    assert len(ticks) == 5
    assert all(len(of_panel) <= 6 for of_panel in ticks)
