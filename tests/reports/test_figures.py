"""Which figures a run has, and that each has a caption."""

import logging
from typing import Any

import pytest

from circuitcut.reports.figures import CAPTIONS, FIGURES, draw_all
from circuitcut.reports.load import Run, load_run
from circuitcut.reports.mask_figures import training_curves
from circuitcut.reports.relearning_figures import recovery_by_examples
from circuitcut.reports.score_figures import score_by_size, scores_by_method
from circuitcut.reports.whereabouts import probe_by_layer, redistribution_by_layer
from circuitcut.storage import progress
from tests.reports.conftest import mask_results, relearn_results


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


def test_every_figure_has_a_caption():
    assert {name for figures in FIGURES.values() for name in figures} == set(CAPTIONS)


def test_all_figures_of_a_run_are_written_as_png(mask_run: Run):
    written = draw_all(mask_run)
    assert list(written) == list(FIGURES["train_mask"])
    for name, path in written.items():
        assert path == mask_run.path / "figures" / f"{name}.png"
        assert path.read_bytes().startswith(b"\x89PNG")


def test_drawing_that_lasts_says_so(
    mask_run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(progress, "WAIT", 0.0)
    one = {"mask_by_layer": FIGURES["train_mask"]["mask_by_layer"]}
    monkeypatch.setitem(FIGURES, "train_mask", one)
    with caplog.at_level(logging.INFO, "circuitcut"):
        draw_all(mask_run)
    assert caplog.messages[0].startswith("drawing the figures, ")
