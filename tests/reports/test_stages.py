"""Tables of a study in stages: every number stands under its stage."""

from typing import Any

import pytest

from circuitcut.reports.html import write_report
from circuitcut.reports.load import load_run
from circuitcut.reports.stages.tables import (
    concept_rows,
    level_rows,
    scan_rows,
    stage_rows,
    stages_opening,
)
from tests.reports.staged import stages_results


def test_scores_stand_under_their_stage_beside_the_mean_of_the_base_models():
    rows = stage_rows(stages_results())
    found = [[row[k] for k in ("base", "pruned", "stage 1")] for row in rows]
    assert found[:2] == [[0.95, 0.02, 0.9], [0.8, 0.6, 0.7]]
    assert found[2:] == [[0.95, 0.95, 0.96], [0.8, 0.8, 0.81]]
    assert [row["share"] for row in rows] == ["10.0 %", "10.0 %", "", ""]
    with_intervals = stage_rows(stages_results(), intervals=True)[0]
    assert with_intervals["stage 1"] == "0.900 [0.000, 1.000]"


def test_the_scan_is_a_mean_over_seeds():
    rows = scan_rows(stages_results())
    assert [row["units pruned"] for row in rows] == [20, 100]
    assert [list(row.values())[-2:] for row in rows] == [[0.01, 0.6]] * 2


def test_salient_units_have_a_row_a_level_and_arm():
    rows = level_rows(stages_results())
    assert [(row["level"], row["base"], row["stage 1"]) for row in rows] == [
        (0, 0.25, 0.25),
        (1, 0.75, 0.75),
    ] * 2


def test_concepts_stand_side_by_side_with_where_their_units_went():
    other = stages_results()
    other["concept_metric"] = other["concept_metric"] | {"label": "PER span F1"}
    first, second = concept_rows([stages_results(), other])
    assert (first["base"], first["after pruning"], first["after stage 1"]) == (
        0.95,
        0.02,
        0.9,
    )
    assert first["salient at level 0"] == "25.0 % → 25.0 %"
    assert first["salient at last level"] == "75.0 % → 75.0 %"
    assert [row["concept"] for row in (first, second)] == ["concept_f1", "PER span F1"]


@pytest.mark.usefixtures("without_figures")
def test_a_report_of_two_studies_compares_their_concepts(write_run: Any, tmp_path):
    runs = [write_run(stages_results()) for _ in range(2)]
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert "Concepts compared" in page
    for suffix in (".csv", ".tex"):
        assert (runs[-1] / "tables" / f"concepts_compared{suffix}").exists()
    alone = write_report(runs[:1], tmp_path / "alone.html").read_text()
    assert "Concepts compared" not in alone


def test_the_opening_has_the_scores_before_and_after(write_run: Any):
    verdict, sentences = stages_opening(load_run(write_run(stages_results())))
    assert "2 seeds, 10.0 % of 200 hidden units" in verdict
    assert "0.950 of the base model, 0.020 right after" in sentences[0]
    assert "0.900 after 1 stage of retraining" in sentences[0]
    warned = stages_results() | {"warning": "it learned nothing."}
    verdict, _ = stages_opening(load_run(write_run(warned)))
    assert verdict.startswith("Warning: it learned nothing.")
