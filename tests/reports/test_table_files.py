"""Tables as files: CSV keeps every digit, LaTeX prints what the page shows."""

import csv
import io
from typing import Any

from circuitcut.reports.html import write_report
from circuitcut.reports.sections.table import Table
from circuitcut.reports.stages.unit_tables import (
    flat,
    overlap_rows,
    polysemantic_rows,
    similarity_rows,
    took_over_rows,
)
from circuitcut.reports.table_files import csv_text, file_name, latex_text
from tests.reports.staged import stages_results


def test_csv_has_every_column_digit_and_an_empty_cell_for_none():
    rows = [{"a": 1 / 3, "b": 'x, "y"'}, {"a": None, "c": 2}]
    read = list(csv.DictReader(io.StringIO(csv_text(Table("t", rows)))))
    assert float(read[0]["a"]) == 1 / 3
    assert [row["b"] for row in read] == ['x, "y"', ""]
    assert [row["c"] for row in read] == ["", "2"]


def test_csv_is_made_of_the_data_where_a_table_has_them():
    assert csv_text(Table("t", [{"a": 1}], data=[{"b": 2}])) == "b\n2\n"


def test_latex_escapes_what_has_a_meaning_there():
    rows = [{"share": "10 %", "n_units": 1234, "f": 0.5}, {"share": "a_b → {c}\\"}]
    text = latex_text(Table("A & B", rows, "Note #1."))
    assert r"\begin{tabular}{lrr}" in text
    assert r"share & n\_units & f \\" in text
    assert r"10 \% & 1,234 & 0.500 \\" in text
    assert r"a\_b $\to$ \{c\}\textbackslash{} &  &  \\" in text
    assert r"\caption{A \& B. Note \#1.}" in text


def test_a_file_has_the_title_as_its_name():
    assert file_name("Units that took over, with words") == (
        "units_that_took_over_with_words"
    )


def test_an_interval_becomes_two_columns():
    assert flat([{"a": 1, "interval": [0.5, None], "b": {"c": 1}}]) == [
        {"a": 1, "interval_low": 0.5, "interval_high": None}
    ]


def test_units_that_took_over_have_their_words_by_stage_and_stars_for_the_concept():
    (row,) = took_over_rows(stages_results())
    assert (row["place"], row["level"], row["unit"]) == (1, 1, 3)
    assert (row["saliency, base"], row["saliency, last stage"]) == (0.25, 1.0)
    assert row["words, base"] == "runs, eats"
    assert row["words, pruned"] == "none"
    assert row["words, stage 1"] == "Oslo*, runs"
    everything = took_over_rows(stages_results(), everything=True)
    assert everything[1]["words, stage 1"] == "Oslo*, runs*"


def test_polysemantic_units_are_counted_among_those_with_words():
    base, pruned, last = polysemantic_rows(stages_results())
    kinds = ("the concept alone", "the concept and others", "others alone")
    assert [base[k] for k in kinds] == [0.0, 0.0, 1.0]
    assert (pruned["units with words"], pruned[kinds[0]]) == (0, None)
    assert [last[k] for k in kinds] == [0.5, 0.5, 0.0]


def test_similarity_and_overlap_stand_under_their_stages():
    (row,) = similarity_rows(stages_results())
    assert (row["stage"], row["to base"], row["to pruned"]) == (
        "stage 1",
        "0.500",
        "0.500",
    )
    (row,) = overlap_rows(stages_results())
    assert row["with the base model's"] == "0.250 [0.125, 0.375]"
    assert "new masks, now and at the base model" not in row


def test_a_report_writes_its_tables_beside_the_figures(write_run: Any, tmp_path):
    runs = [write_run(stages_results()) for _ in range(2)]
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert "Units that took over, with their words" in page
    assert str(runs[0] / "tables") in page
    for suffix in (".csv", ".tex", ".md"):
        assert (runs[0] / "tables" / f"scores_at_every_stage{suffix}").is_file()
        assert (runs[1] / "tables" / f"concepts_compared{suffix}").is_file()
