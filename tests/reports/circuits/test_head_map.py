"""The map of heads: crosses at the ablated ones, colours by score."""

from typing import Any

import numpy as np

from circuitcut.reports.circuits.edge_names import head_rows
from circuitcut.reports.circuits.head_map import heads_by_layer, score_table
from circuitcut.reports.load import load_run
from tests.reports.conftest import heads_entry, mask_results

NAMES = ["a0.h8", "a17.h3", "a17.h5", "a29.h0"]


def test_a_cross_stands_at_every_ablated_head_of_a_deep_model(write_run: Any):
    heads = heads_entry(30, 9, NAMES)
    figure = heads_by_layer(load_run(write_run(mask_results() | {"heads": heads})))
    axes, bar = figure.axes
    places = {tuple(points.get_offsets()[0]) for points in axes.collections}
    assert places == {(0, 8), (17, 3), (17, 5), (29, 0)}
    (image,) = axes.images
    assert image.get_array().shape == (9, 30)
    assert image.get_array()[3, 17] == -1
    assert axes.get_title() == "4 of 270 heads ablated"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", "head")
    assert "ablated first" in bar.get_ylabel()
    wide, high = figure.get_size_inches()
    assert wide <= 11
    assert high <= 8


def test_without_scores_the_crosses_stay_and_there_is_no_colour_bar(write_run: Any):
    heads = heads_entry(30, 9, NAMES)
    for layer in heads["layers"]:
        layer["scores"] = None
    run = load_run(write_run(mask_results() | {"heads": heads}))
    (axes,) = heads_by_layer(run).axes
    assert len(axes.collections) == 2 * len(NAMES)
    old = {key: value for key, value in mask_results().items() if key != "heads"}
    assert heads_by_layer(load_run(write_run(old))) is None


def test_scores_that_are_not_known_and_missing_heads_are_nan():
    layers = [
        {"n_heads": 2, "scores": [0.5, None]},
        {"n_heads": 1, "scores": [1.0]},
    ]
    expected = [[0.5, 1.0], [np.nan, np.nan]]
    np.testing.assert_array_equal(score_table(layers, 2), expected)


def test_heads_are_listed_by_layer():
    assert head_rows({"heads": heads_entry(30, 9, NAMES)})[1] == {
        "layer": "17",
        "heads ablated": 2,
        "names": "a17.h3, a17.h5",
    }
