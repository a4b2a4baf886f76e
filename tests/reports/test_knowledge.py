"""A report of knowledge neurons says its numbers."""

import csv
from pathlib import Path
from typing import Any

from circuitcut.reports.facts.figures import (
    language_overlap,
    relation_overlap,
    unit_activity,
)
from circuitcut.reports.facts.tables import (
    activity_rows,
    group_rows,
    language_rows,
    trigger_rows,
)
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
from circuitcut.reports.sections.registry import TABLES
from circuitcut.storage.results_schema import needed_for_report
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


def test_groups_of_facts_are_a_heat_map_with_chance_in_every_cell(write_run: Any):
    run = load_run(write_run(knowledge_results()))
    figure = relation_overlap(run)
    assert figure is not None
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[0.3, 0.02], [0.02, 0.3]]
    assert axes.texts[0].get_text() == "0.300\n(0.010)"
    figure = language_overlap(run)
    assert figure is not None
    same, one_relation = figure.axes[:2]
    assert [t.get_text() for t in same.get_xticklabels()] == ["en", "fr", "nl"]
    assert len(same.texts) == 6  # a fact in one language is no pair
    assert len(one_relation.texts) == 9


def test_many_groups_have_their_mean_chance_below_the_map(write_run: Any):
    results = knowledge_results()
    names = [f"P{i}" for i in range(20)]
    results["groups"] = [
        results["groups"][0] | {"one": one, "other": other}
        for i, one in enumerate(names)
        for other in names[i:]
    ]
    figure = relation_overlap(load_run(write_run(results)))
    assert figure is not None
    assert not figure.axes[0].texts
    assert figure.axes[0].get_xlabel() == "random sets: 0.01 (mean over cells)"


def test_one_group_alone_makes_no_map(write_run: Any):
    results = knowledge_results()
    results["groups"] = results["groups"][:1]
    run = load_run(write_run(results))
    assert relation_overlap(run) is None
    assert language_overlap(run) is None


def test_activations_are_bars_for_every_kind_of_prompt(write_run: Any):
    run = load_run(write_run(knowledge_results()))
    figure = unit_activity(run)
    assert figure is not None
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [1.5, 0.6, 0.9, 0.2, 0.1, 0.1, 0.1, -0.05]
    rows = activity_rows(run.results)
    assert rows[1]["prompts"] == "head alone"
    assert rows[1]["found"] == "0.600 [0.500, 0.700]"


def test_triggers_groups_and_languages_are_tables_and_files(
    write_run: Any, tmp_path: Path
):
    path = write_run(knowledge_results())
    page = write_report([path], tmp_path / "report.html").read_text()
    assert "The capital of Peru is" in page
    with (path / "tables" / "groups_of_facts_that_share_units.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert rows[1]["other"] == "The native language of [X] is [MASK]."
    first = group_rows(load_run(path).results)[0]
    assert (first["pairs"], first["jaccard"]) == ("the same fact", 0.6)
    assert trigger_rows(load_run(path).results)[1]["unit"] == "1.7"
    assert language_rows(load_run(path).results)[0]["share known"] == "50 %"


def test_a_run_from_before_these_entries_is_reported_without_them():
    new = {"groups", "languages", "activity", "triggers"}
    assert not needed_for_report("knowledge") & new
    results = {k: v for k, v in knowledge_results().items() if k not in new}
    tables = {table.title: table.rows for table in TABLES["knowledge"](results)}
    assert tables["Units by layer"]
    assert tables["Prompts that trigger a unit"] == []
