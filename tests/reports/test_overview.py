"""The overview: the numbers of both runs, read back from its panels."""

from io import BytesIO
from typing import Any

import pytest

from circuitcut.reports.figures import overview
from circuitcut.reports.load import Run, load_run
from tests.reports.conftest import import_results, mask_results


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_the_panels_show_the_cut_the_scores_and_relearning(
    mask_run: Run, relearn_run: Run
):
    figure = overview(mask_run, relearn_run)
    cells, concept, rest, curve = figure.axes
    assert texts(cells)[:2] == ["0 / 1,536", "2 / 1,536"]
    assert len(texts(cells)) == 12
    assert texts(concept) == ["0.733", "0.012", "0.017", "0.726"]
    assert texts(rest) == ["0.566", "0.520", "0.514", "0.563"]
    names = [tick.get_text() for tick in concept.get_yticklabels()]
    assert names == [
        "uncut",
        "learned cut",
        "attribution cut",
        "random cut\n(mean of 2)",
    ]
    lines = {line.get_label(): line for line in curve.lines}
    assert list(lines) == ["learned cut", "uncut", "random cut"]
    summary = relearn_run.results["summary"]
    by_hand = [
        entry["concept"] + 0.01
        for entry in summary
        if (entry["condition"], entry["holding"], entry["limit"])
        == ("cut", "lasting", 1)
    ]
    assert lines["learned cut"].get_ydata().tolist() == pytest.approx(by_hand)
    band = curve.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() - max(by_hand) == pytest.approx(0.03)
    said = [panel.get_suptitle() for panel in figure.subfigs]
    assert said[0] == "1. The cut\n13 of 9,288 neurons and heads ablated"
    assert said[2].endswith("fine-tuned on 1 concept example")


def test_of_edges_the_circuit_is_drawn_with_a_line_an_edge(
    relearn_run: Run, write_run: Any
):
    results = {**mask_results(), "circuit": import_results()["circuit"]}
    figure = overview(load_run(write_run(results)), relearn_run)
    circuit = figure.axes[0]
    edges = [line for line in circuit.lines if len(line.get_xdata()) == 2]
    assert len(edges) == 5
    assert all(line.get_ydata()[0] < line.get_ydata()[1] for line in edges)
    assert {"input", "logits", "m0", "m1"} <= set(texts(circuit))


def test_the_figure_is_white_and_a_thousand_pixels_wide(
    mask_run: Run, relearn_run: Run
):
    figure = overview(mask_run, relearn_run)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    assert int.from_bytes(buffer.getvalue()[16:20], "big") == 1000
    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)


def test_an_attribution_cut_or_random_cuts_may_be_missing(
    relearn_run: Run, write_run: Any
):
    results = mask_results()
    results["scores"] = {name: results["scores"][name] for name in ("uncut", "cut")}
    _, concept, *_ = overview(load_run(write_run(results)), relearn_run).axes
    assert texts(concept) == ["0.733", "0.012"]
