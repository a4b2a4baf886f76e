"""A report of knowledge neurons says its numbers."""

from pathlib import Path
from typing import Any

from circuitcut.reports.html import write_report
from circuitcut.reports.knowledge import (
    edit_rows,
    edit_sentence,
    effect_rows,
    gain_rows,
    knowledge_findings,
    knowledge_opening,
    layer_rows,
)
from circuitcut.reports.load import load_run
from tests.reports.known import knowledge_results


def test_the_sentences_say_what_was_measured(write_run: Any):
    run = load_run(write_run(knowledge_results()))
    verdict, said = knowledge_opening(run)
    assert verdict == "Suppressing a fact's units changes its probability by -50 %."
    assert "1.5 units a fact" in said[0]
    assert said[1] == (
        "Suppressed, they change the object's probability by -50 % [-55, -45] of the "
        "fact; -2 % [-7, 3] of other relations' facts; -1 % [-6, 4] of the fact, with "
        "random units of the same layers."
    )
    assert "25 % [20, 30] of the fact" in said[2]
    assert said[3] == (
        "Edited (2 facts), the target has rank 1 in 50 % and is in the first five in "
        "100 %; with random units it has rank 1 in 0 %; the perplexity of the "
        "relation's other facts changes by 50 %."
    )
    assert edit_rows(run.results)[0] == {
        "measure": "target has rank 1",
        "facts": 2,
        "before": 0.0,
        "found": 0.5,
        "as many random ones": 0.0,
    }
    assert gain_rows(run.results)[0]["gain"] == "0.5 [0, 1]"
    (found,) = knowledge_findings(run)
    assert "other relations: Jaccard index 0.200, random sets 0.05000" in found
    assert effect_rows(run.results)[2]["units"] == "as many random ones"
    assert layer_rows(run.results)[1]["refined"] == "100.0 %"


def test_without_units_nothing_is_claimed(write_run: Any):
    run = load_run(write_run(knowledge_results() | {"effects": []}))
    assert knowledge_opening(run)[0] == "No fact has units."


def test_the_page_has_its_figure_and_tables(write_run: Any, tmp_path: Path):
    path = write_run(knowledge_results())
    page = write_report([path], tmp_path / "report.html").read_text()
    assert (path / "figures" / "units_by_layer.png").exists()
    for text in (
        *("as many random ones", "Share of the found units", "Units by layer"),
        *("Edited facts", "Not edited: not predicted: 1"),
    ):
        assert text in page


def test_a_run_before_edits_is_reported_without_them(write_run: Any):
    results = knowledge_results()
    del results["edits"]
    _, said = knowledge_opening(load_run(write_run(knowledge_results())))
    assert edit_rows(results) == gain_rows(results) == []
    assert edit_sentence(results) is None
    assert edit_sentence(knowledge_results()) == said[3]
